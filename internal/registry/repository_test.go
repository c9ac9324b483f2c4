package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
)

func TestMain(m *testing.M) {
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// newApp is distribution v3 in memory.
func newApp(t *testing.T) http.Handler {
	t.Helper()
	config := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"inmemory":    {},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.Log.AccessLog.Disabled = true
	config.Log.Level = "error"
	config.HTTP.Secret = "test"
	app := handlers.NewApp(t.Context(), config)
	t.Cleanup(func() {
		if err := app.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return app
}

// serve puts handler on loopback and opens a repository in it.
func serve(t *testing.T, handler http.Handler, change ...func(*Config)) *Repository {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cfg := Config{
		PlainHTTP:  true,
		Credential: auth.StaticCredential("", auth.EmptyCredential),
		Retry:      Retry{Tries: 4, Base: time.Millisecond, Max: 5 * time.Millisecond},
		Stall:      50 * time.Millisecond,
	}
	for _, c := range change {
		c(&cfg)
	}
	repo, err := Open(strings.TrimPrefix(server.URL, "http://")+"/ns/model", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(repo.Close)
	return repo
}

func blobOf(n int) ([]byte, ocispec.Descriptor) {
	b := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	return b, ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(n)}
}

func TestUploadInChunks(t *testing.T) {
	blob, desc := blobOf(10_000)
	app := newApp(t)
	for name, tc := range map[string]struct {
		// spoil is given each PATCH by its number, from 1; true: the answer was given.
		spoil func(n int64, w http.ResponseWriter, r *http.Request) bool
	}{
		"all well": {func(int64, http.ResponseWriter, *http.Request) bool { return false }},
		"the answer is lost": {func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n != 2 {
				return false
			}
			app.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}},
		"the chunk is lost": {func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n != 2 {
				return false
			}
			panic(http.ErrAbortHandler)
		}},
		"half of the chunk arrives": {func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n != 2 {
				return false
			}
			half := r.Clone(r.Context())
			length := r.ContentLength / 2
			var start, end int64
			if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "%d-%d", &start, &end); err != nil {
				panic(err)
			}
			half.Header.Set("Content-Range", fmt.Sprintf("%d-%d", start, start+length-1))
			half.Header.Set("Content-Length", fmt.Sprint(length))
			half.ContentLength = length
			half.Body = io.NopCloser(io.LimitReader(r.Body, length))
			app.ServeHTTP(httptest.NewRecorder(), half)
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}},
		"429": {func(n int64, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var patches atomic.Int64
			repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPatch || !tc.spoil(patches.Add(1), w, r) {
					app.ServeHTTP(w, r)
				}
			}))
			location, err := repo.StartUpload(t.Context())
			for off := 0; off < len(blob) && err == nil; off += 3000 {
				location, err = repo.UploadChunk(t.Context(), location, int64(off), blob[off:min(off+3000, len(blob))])
			}
			if err != nil {
				t.Fatal(err)
			}
			next, has, err := repo.UploadStatus(t.Context(), location)
			if err != nil || has != desc.Size {
				t.Fatalf("the registry has %d bytes, %v", has, err)
			}
			if err := repo.CommitUpload(t.Context(), next, desc.Digest, desc.Size); err != nil {
				t.Fatal(err)
			}
			if err := repo.CommitUpload(t.Context(), next, desc.Digest, desc.Size); err != nil {
				t.Errorf("a commit whose first answer was lost: %v", err)
			}
			rc, err := repo.Fetch(t.Context(), desc)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, blob) {
				t.Errorf("read back: %v", err)
			}
		})
	}
}

func TestUploadErrors(t *testing.T) {
	repo := serve(t, newApp(t))
	location, err := repo.StartUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.UploadChunk(t.Context(), location, 100, []byte("x")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a chunk beyond the end: %v", err)
	}
	location, _, err = repo.UploadStatus(t.Context(), location)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.CommitUpload(t.Context(), location, digest.FromString("other"), 5); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a wrong digest: %v", err)
	}
	if err := repo.CancelUpload(t.Context(), location); err != nil && !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("cancel after the registry dropped the upload: %v", err)
	}
	if _, _, err := repo.UploadStatus(t.Context(), location); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("status of a dropped upload: %v", err)
	}
	if _, err := repo.UploadChunk(t.Context(), "http://elsewhere.example/upload", 0, []byte("x")); err == nil || !strings.Contains(err.Error(), "another place") {
		t.Errorf("a location elsewhere: %v", err)
	}
}

func TestOpenRange(t *testing.T) {
	blob, desc := blobOf(100_000)
	whole := func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}
	for name, tc := range map[string]struct {
		handler func(n int64, w http.ResponseWriter, r *http.Request)
		want    string
	}{
		"ranges": {func(_ int64, w http.ResponseWriter, r *http.Request) { whole(w, r) }, ""},
		"no ranges": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			whole(w, r)
		}, ""},
		"breaks off": {func(n int64, w http.ResponseWriter, r *http.Request) {
			if n%2 == 1 {
				w = &cutWriter{w, 7000}
			}
			whole(w, r)
		}, ""},
		"no Content-Range": {func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) }, "asked for bytes from"},
		"stalls": {func(n int64, w http.ResponseWriter, r *http.Request) {
			if n < 3 {
				whole(&stallWriter{w, r.Context()}, r)
				return
			}
			whole(w, r)
		}, ""},
		"another range": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=0-")
			whole(w, r)
		}, "asked for bytes from"},
		"not there":       {func(_ int64, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "not found"},
		"breaks for ever": {func(_ int64, _ http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tc.handler(requests.Add(1), w, r) }))
			rc, err := repo.OpenRange(t.Context(), desc, 1000, 90_000)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(rc)
				rc.Close()
			}
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, blob[1000:91_000]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	repo := serve(t, http.HandlerFunc(whole))
	if _, err := repo.OpenRange(t.Context(), desc, 1, desc.Size); err == nil {
		t.Error("a range past the end was accepted")
	}
	empty, err := repo.OpenRange(t.Context(), desc, 5, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if n, err := empty.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("an empty range: %d, %v", n, err)
	}
}

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		if _, err := c.ResponseWriter.Write(p[:c.left]); err != nil {
			return 0, err
		}
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

// stallWriter sends the header and then nothing until the client gives up.
type stallWriter struct {
	http.ResponseWriter
	ctx context.Context
}

func (s *stallWriter) Write([]byte) (int, error) {
	if err := http.NewResponseController(s.ResponseWriter).Flush(); err != nil {
		return 0, err
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func TestCredentialsStayHome(t *testing.T) {
	blob, desc := blobOf(1000)
	var leaked atomic.Int64
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	defer storage.Close()
	asked := make(map[string]bool)
	repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodPost {
			w.Header().Set("Location", storage.URL+"/upload")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		http.Redirect(w, r, storage.URL+"/blob", http.StatusTemporaryRedirect)
	}), func(cfg *Config) {
		cfg.Credential = func(_ context.Context, host string) (auth.Credential, error) {
			asked[host] = true
			return auth.Credential{Username: "me", Password: "secret"}, nil
		}
	})
	for _, off := range []int64{0, 10} {
		rc, err := repo.OpenRange(t.Context(), desc, off, desc.Size-off)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || !bytes.Equal(got, blob[off:]) {
			t.Errorf("through the redirect: %d bytes, %v", len(got), err)
		}
	}
	if _, err := repo.StartUpload(t.Context()); err == nil {
		t.Error("an upload to another host was accepted")
	}
	if leaked.Load() > 0 || len(asked) != 1 {
		t.Errorf("credentials went elsewhere: %d requests, asked for %v", leaked.Load(), asked)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for status, want := range map[int]string{
		http.StatusUnauthorized: "docker login", http.StatusForbidden: "ask for the right", http.StatusNotFound: "not found",
		http.StatusTooManyRequests: "limits the rate", http.StatusBadGateway: "look at its health", http.StatusTeapot: "418",
	} {
		repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		_, err := repo.Resolve(t.Context(), "v1")
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != status || refused.Repository != "ns/model" || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: %v", status, err)
		}
		if errors.Is(err, errdef.ErrNotFound) != (status == http.StatusNotFound) {
			t.Errorf("%d: errdef.ErrNotFound of %v", status, err)
		}
	}
}

func TestRetryPause(t *testing.T) {
	r := Retry{Tries: 5, Base: time.Second, Max: 30 * time.Second}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tc := range map[string]struct {
		asked    string
		min, max time.Duration
	}{
		"nothing asked":  {"", time.Second / 2, time.Second},
		"seconds":        {"7", 7 * time.Second, 7 * time.Second},
		"a date":         {now.Add(9 * time.Second).Format(http.TimeFormat), 9 * time.Second, 9 * time.Second},
		"asked too long": {"3600", 30 * time.Second, 30 * time.Second},
	} {
		resp := &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {tc.asked}}}
		if got := pause(r, 0, resp, now); got < tc.min || got > tc.max {
			t.Errorf("%s: %v is not in %v to %v", name, got, tc.min, tc.max)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "0-0", "0-99", "bytes=0-5", "0--1", "0-9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseRange(s); err == nil && n < 0 {
			t.Errorf("%q is %d bytes", s, n)
		}
	})
}
