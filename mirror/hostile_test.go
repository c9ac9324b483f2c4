package mirror

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// pour sends zeros until the client hangs up.
func pour(w http.ResponseWriter) {
	chunk := make([]byte, 64<<10)
	for {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// bomb is a manifest's answer of a few KiB that is 256 MiB when unpacked.
func bomb(w http.ResponseWriter) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Content-Encoding", "gzip")
	packed, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is right
	chunk := make([]byte, 1<<20)
	for range 256 {
		if _, err := packed.Write(chunk); err != nil {
			return
		}
	}
	_ = packed.Close() // the client has hung up
}

// TestHostileUpstream: whatever a registry answers, the client gets a sentence and the disk nothing.
func TestHostileUpstream(t *testing.T) {
	blob := make([]byte, 100_000)
	rand.Read(blob)
	d := digest.FromBytes(blob)
	serve := func(w http.ResponseWriter, req *http.Request, size int64, body func()) {
		w.Header().Set("Accept-Ranges", "bytes")
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		if req.Method != http.MethodHead {
			body()
		}
	}
	var stolen atomic.Value // what another host was sent
	stolen.Store("")
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		stolen.Store(req.Header.Get("Authorization") + req.Header.Get("Cookie"))
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(thief.Close)

	for name, tc := range map[string]struct {
		path   string // what the client asks for
		answer http.HandlerFunc
		want   string // in the error
	}{
		"a blob that is shorter than its content": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			serve(w, req, 1000, func() { w.Write(blob[:1000]) })
		}, "DIGEST_INVALID"},
		"a blob that is longer than its content": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			serve(w, req, 200_000, func() { w.Write(append(blob, blob...)) })
		}, "DIGEST_INVALID"},
		"a blob without an end": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodHead {
				serve(w, req, int64(len(blob)), nil)
				return
			}
			pour(w)
		}, "DIGEST_INVALID"},
		"a blob larger than the disk": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			serve(w, req, 1<<48, func() { pour(w) })
		}, "no room"},
		"a blob larger than any disk": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			serve(w, req, 1<<60, func() { pour(w) })
		}, "1152921504606846976 bytes"},
		"a blob of a negative size": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-0/-5")
			w.WriteHeader(http.StatusPartialContent)
		}, "does not tell its size"},
		"a blob on another host": {blobPath(d), func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, thief.URL+"/stolen", http.StatusTemporaryRedirect)
		}, "DENIED"},
		"a manifest on another host": {manifestPath("v1"), func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, thief.URL+"/stolen", http.StatusTemporaryRedirect)
		}, "DENIED"},
		"redirects in a circle": {manifestPath("v1"), func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.String(), http.StatusTemporaryRedirect)
		}, "redirects"},
		"a manifest of more than 4 MiB": {manifestPath("v1"), func(w http.ResponseWriter, _ *http.Request) {
			w.Write(bytes.Repeat([]byte(" "), maxManifest+1))
		}, "more than 4194304 bytes"},
		"a manifest without an end":          {manifestPath("v1"), func(w http.ResponseWriter, _ *http.Request) { pour(w) }, "more than 4194304 bytes"},
		"a manifest that unpacks to 256 MiB": {manifestPath("v1"), func(w http.ResponseWriter, _ *http.Request) { bomb(w) }, "no JSON"},
		"another manifest": {manifestPath(d.String()), func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"schemaVersion":2}`)
		}, "DIGEST_INVALID"},
		"another manifest than its header says": {manifestPath("v1"), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", d.String())
			fmt.Fprint(w, `{"schemaVersion":2}`)
		}, "DIGEST_INVALID"},
		"tags without an end":      {"/v2/" + repo + "/tags/list", func(w http.ResponseWriter, _ *http.Request) { pour(w) }, "more than"},
		"referrers without an end": {"/v2/" + repo + "/referrers/" + d.String(), func(w http.ResponseWriter, _ *http.Request) { pour(w) }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			stolen.Store("")
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if user, password, _ := req.BasicAuth(); user != "reader" || password != "pa55word" {
					w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				tc.answer(w, req)
			}))
			t.Cleanup(upstream.Close)
			host := upstream.Listener.Addr().String()
			dir := t.TempDir()
			r := &rig{t: t, client: &http.Client{Transport: &http.Transport{}}}
			r.start(Config{Dir: dir, Retry: testRetry(), Upstreams: []Upstream{{
				Name: "reg.example.com", Registry: host, PlainHTTP: true,
				Credential: auth.StaticCredential(host, auth.Credential{Username: "reader", Password: "pa55word"}),
			}}})
			got := r.get(tc.path)
			if got.err == nil && got.status < 400 {
				// The size was believed when the answer began; the body must not look whole.
				t.Errorf("a whole-looking answer: %d, %d bytes", got.status, len(got.body))
			}
			until(t, "the fill is over", func() bool { return r.fill(d) == nil })
			if got = r.get(tc.path); got.status < 400 || !strings.Contains(string(got.body), tc.want) {
				t.Errorf("%d %.300s %v; want %q", got.status, got.body, got.err, tc.want)
			}
			if strings.Contains(string(got.body), "pa55word") {
				t.Error("the answer tells the secret")
			}
			if s := stolen.Load(); s != "" {
				t.Errorf("another host was sent %q", s)
			}
			until(t, "nothing is kept", func() bool { return len(kept(t, dir)) == 0 })
		})
	}
}

// kept returns the files with content below a mirror's folder.
func kept(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Base(name) == "lock" {
			return nil //nolint:nilerr // what vanishes meanwhile is not kept
		}
		if info, err := entry.Info(); err == nil && info.Size() > 0 {
			out = append(out, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
