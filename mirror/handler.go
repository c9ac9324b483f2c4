package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/peer/store"
)

// Handler serves the read side of the OCI distribution API: /v2/, blobs, manifests, referrers; and,
// for nodes, the segments of blobs without a pieces root.
func (m *Mirror) Handler() http.Handler { return http.HandlerFunc(m.serve) }

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if m.cfg.Identify != nil {
		if id, ok := m.cfg.Identify(r); !ok || !mayRead(id.Role) {
			writeError(w, http.StatusForbidden, "DENIED", "this mirror serves nodes, mirrors, controllers and clients of its fleet: show such a certificate")
			return
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this mirror is read-only: push to the registry itself")
		return
	}
	t, err := m.paths.parsePath(r.URL.Path)
	if err != nil {
		m.refuse(w, r, t, err)
		return
	}
	if t.kind == base {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
		return
	}
	name, err := m.pick(namespace(r))
	if err != nil {
		m.refuse(w, r, t, err)
		return
	}
	src := Source{Upstream: name, Repository: t.repository}
	switch t.kind {
	case blobs:
		err = m.serveBlob(w, r, src, t)
	case manifests:
		err = m.serveManifest(w, r, src, t)
	case referrers:
		err = m.serveReferrers(w, r, src, t)
	case segmentsOf:
		err = m.serveSegments(w, r, src, t)
	}
	if err != nil {
		m.refuse(w, r, t, err)
	}
}

func mayRead(role certs.Role) bool {
	switch role {
	case certs.Node, certs.Mirror, certs.Client, certs.Controller:
		return true
	}
	return false
}

// serveBlob answers with a blob or a part of it. An error means that nothing was sent yet.
func (m *Mirror) serveBlob(w http.ResponseWriter, r *http.Request, src Source, t target) error {
	d, _ := t.digest()
	header := w.Header()
	if r.Method == http.MethodHead {
		size, err := m.Stat(r.Context(), src, d)
		if err != nil {
			return err
		}
		blobHeader(header, d)
		header.Set("Content-Length", strconv.FormatInt(size, 10))
		return nil
	}
	blob, err := m.Blob(r.Context(), src, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	size := blob.Size()
	rangeHeader := r.Header.Get("Range")
	if tag := r.Header.Get("If-Range"); tag != "" && tag != etag(d) {
		rangeHeader = "" // RFC 9110, section 13.1.5
	}
	off, n, partial, err := parseRange(rangeHeader, size)
	if err != nil {
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return err
	}
	// The first byte is waited for before the header is sent: until then an error has a status.
	if err := blob.Wait(r.Context(), off); err != nil {
		return err
	}
	blobHeader(header, d)
	header.Set("Content-Length", strconv.FormatInt(n, 10))
	status := http.StatusOK
	if partial {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if err := blob.CopyRange(r.Context(), w, off, n); err != nil {
		if r.Context().Err() == nil {
			m.log.DebugContext(r.Context(), "blob is broken off", slog.String("digest", d.String()), slog.Any("error", err))
		}
		panic(http.ErrAbortHandler) // the only way to tell the client that the body is not whole
	}
	return nil
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

func blobHeader(header http.Header, d digest.Digest) {
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Docker-Content-Digest", d.String())
	header.Set("Accept-Ranges", "bytes")
	header.Set("Etag", etag(d))
}

func (m *Mirror) serveManifest(w http.ResponseWriter, r *http.Request, src Source, t target) error {
	manifest, err := m.Manifest(r.Context(), src, t.reference)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", manifest.MediaType)
	header.Set("Content-Length", strconv.Itoa(len(manifest.Content)))
	header.Set("Docker-Content-Digest", manifest.Digest.String())
	header.Set("Etag", etag(manifest.Digest))
	if r.Header.Get("If-None-Match") == etag(manifest.Digest) {
		header.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if r.Method == http.MethodHead {
		return nil
	}
	_, _ = w.Write(manifest.Content) // the client is gone where this fails
	return nil
}

func (m *Mirror) serveReferrers(w http.ResponseWriter, r *http.Request, src Source, t target) error {
	d, _ := t.digest()
	query := r.URL.Query()
	query.Del("ns") // is for us
	content, answer, err := m.Referrers(r.Context(), src, d, query.Encode())
	if err != nil {
		return err
	}
	for _, name := range []string{"Content-Type", "Oci-Filters-Applied"} {
		if value := answer.Get(name); value != "" {
			w.Header().Set(name, value)
		}
	}
	if next := nextPage(answer.Get("Link"), r.URL.Path, namespace(r)); next != "" {
		w.Header().Set("Link", next)
	}
	_, _ = w.Write(content)
	return nil
}

// nextPage makes upstream's link to the next page (RFC 8288, <url>; rel="next") one to this mirror.
func nextPage(link, path, ns string) string {
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.HasPrefix(link, "<") {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns")
	if ns != "" {
		query.Set("ns", ns)
	}
	return fmt.Sprintf(`<%s?%s>; rel="next"`, path, query.Encode())
}

// refuse answers an error with its status and its code of the distribution-spec.
func (m *Mirror) refuse(w http.ResponseWriter, r *http.Request, t target, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody listens
	}
	status, code := classify(t.kind, err)
	if status == http.StatusServiceUnavailable {
		after := 1.0
		if e, ok := errors.AsType[*UpstreamError](err); ok {
			after = max(after, math.Ceil(e.RetryAfter.Seconds()))
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(after)))
	}
	m.log.DebugContext(r.Context(), "request refused", slog.String("path", r.URL.Path), slog.Int("status", status), slog.Any("error", err))
	writeError(w, status, code, err.Error())
}

// classify returns the status and the code for err.
func classify(k kind, err error) (status int, code string) {
	unknown := map[kind]string{blobs: "BLOB_UNKNOWN", manifests: "MANIFEST_UNKNOWN", segmentsOf: "BLOB_UNKNOWN"}[k]
	if unknown == "" {
		unknown = "UNSUPPORTED" // referrers: oras-go takes the fallback tag, but not after NAME_UNKNOWN
	}
	e, upstream := errors.AsType[*UpstreamError](err)
	switch {
	case errors.Is(err, ErrUnknownUpstream):
		return http.StatusNotFound, "NAME_UNKNOWN"
	case errors.Is(err, errNoRoute):
		return http.StatusNotFound, "UNSUPPORTED"
	case errors.Is(err, errBadName):
		return http.StatusBadRequest, "NAME_INVALID"
	case errors.Is(err, errBadReference):
		return http.StatusBadRequest, "DIGEST_INVALID"
	case errors.Is(err, errRange):
		return http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID"
	case errors.Is(err, ErrWrongBytes):
		return http.StatusBadGateway, "DIGEST_INVALID"
	case errors.Is(err, ErrStopped), errors.Is(err, errDamaged), errors.Is(err, store.ErrNoSpace), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable, "UNAVAILABLE"
	case !upstream:
		return http.StatusInternalServerError, "UNKNOWN"
	case e.Status == http.StatusNotFound:
		return http.StatusNotFound, unknown
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		return http.StatusForbidden, "DENIED"
	case e.Status == http.StatusTooManyRequests:
		return http.StatusServiceUnavailable, "TOOMANYREQUESTS"
	case e.down():
		return http.StatusServiceUnavailable, "UNAVAILABLE"
	}
	return http.StatusBadGateway, "UNKNOWN"
}

// writeError answers with an error document (distribution-spec, "Error codes").
func writeError(w http.ResponseWriter, status int, code, message string) {
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
