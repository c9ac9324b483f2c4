package pullapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// Blob is a blob that is there or arrives.
type Blob interface {
	// Size is its length in bytes.
	Size() int64
	// Wait returns once the byte at off is there (the whole blob, where off is its size), or the error
	// that keeps it away.
	Wait(ctx context.Context, off int64) error
	// CopyRange writes the n bytes at off to w as they arrive, through a buffer: sendfile(2) could not encrypt
	// them, and containerd and the fleet speak TLS, which Go does not leave to the kernel.
	CopyRange(ctx context.Context, w io.Writer, off, n int64) error
	// Close gives it back. What is on its way goes on.
	Close()
}

// Manifest is a manifest or an index, checked against its digest.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Content   []byte
}

const (
	// AccessHeader says of a manifest who may have it. Without the header nobody knows.
	AccessHeader = "Shoal-Access"
	// Public means that upstream gives it to everyone.
	Public = "public"
	// Granted means that upstream gives it to the client whose token came with the request.
	Granted = "granted"
	// ClientHeader marks a request for a manifest that a node sends on behalf of a client of its own, with
	// the client's Authorization: it is for the client that upstream is to decide.
	ClientHeader = "Shoal-Client"
)

// ServeBlob answers a GET with a blob or a part of it, and returns how many bytes that was. An error that
// is not ErrBroken means that nothing was sent yet, and that the caller has to answer it.
func ServeBlob(w http.ResponseWriter, r *http.Request, d digest.Digest, blob Blob) (int64, error) {
	header, size := w.Header(), blob.Size()
	rangeHeader := r.Header.Get("Range")
	if tag := r.Header.Get("If-Range"); tag != "" && tag != etag(d) {
		rangeHeader = "" // RFC 9110, section 13.1.5
	}
	off, n, partial, err := ParseRange(rangeHeader, size)
	if err != nil {
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return 0, err
	}
	// The first byte is waited for before the header is sent: until then an error has a status.
	if err := blob.Wait(r.Context(), off); err != nil {
		return 0, err
	}
	blobHeader(header, d, n)
	status := http.StatusOK
	if partial {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if err := blob.CopyRange(r.Context(), w, off, n); err != nil {
		return 0, &BrokenError{err}
	}
	return n, nil
}

// BrokenError says that a body is not whole. The only way to tell the client is to break the connection:
// panic(http.ErrAbortHandler).
type BrokenError struct{ Err error }

// Error implements error.
func (e *BrokenError) Error() string { return "the body was broken off: " + e.Err.Error() }

// Unwrap returns why.
func (e *BrokenError) Unwrap() error { return e.Err }

// HeadBlob answers a HEAD of a blob of size bytes.
func HeadBlob(w http.ResponseWriter, d digest.Digest, size int64) { blobHeader(w.Header(), d, size) }

// ServeManifest answers a GET or HEAD with a manifest.
func ServeManifest(w http.ResponseWriter, r *http.Request, m Manifest) {
	header := w.Header()
	header.Set("Content-Type", m.MediaType)
	header.Set("Docker-Content-Digest", m.Digest.String())
	header.Set("Etag", etag(m.Digest))
	if r.Header.Get("If-None-Match") == etag(m.Digest) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(m.Content)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(m.Content) // the client is gone where this fails
	}
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

func blobHeader(header http.Header, d digest.Digest, length int64) {
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.FormatInt(length, 10))
	header.Set("Docker-Content-Digest", d.String())
	header.Set("Accept-Ranges", "bytes")
	header.Set("Etag", etag(d))
}

// WriteError answers with an error document (distribution-spec, "Error codes").
func WriteError(w http.ResponseWriter, status int, code, message string) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	raw, err := json.Marshal(map[string][]item{"errors": {{code, message}}})
	if err != nil {
		raw = []byte(`{"errors":[]}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}
