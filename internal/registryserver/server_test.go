package registryserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
)

func TestMain(m *testing.M) {
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(t *testing.T, s *Server, name string, credential auth.Credential) *registry.Repository {
	t.Helper()
	repo, err := registry.Open(s.Addr().String()+"/"+name, registry.Config{
		PlainHTTP: true, Credential: auth.StaticCredential(s.Addr().String(), credential),
		Retry: registry.Retry{Tries: 3, Base: time.Millisecond, Max: 10 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(repo.Close)
	return repo
}

func push(t *testing.T, repo *registry.Repository, size int) (ocispec.Descriptor, []byte) {
	t.Helper()
	blob := make([]byte, size)
	rand.Read(blob)
	desc := content.NewDescriptorFromBytes("application/octet-stream", blob)
	if err := repo.Push(t.Context(), desc, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	return desc, blob
}

func TestPushPullCount(t *testing.T) {
	for name, cfg := range map[string]Config{
		"memory": {}, "files": {Dir: filepath.Join(t.TempDir(), "registry")}, "limited": {UplinkBytesPerSecond: 64 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, cfg)
			repo := open(t, s, "ns/deep/model", auth.EmptyCredential)
			desc, blob := push(t, repo, 1<<20)
			config, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/x.test", oras.PackManifestOptions{Layers: []ocispec.Descriptor{desc}})
			if err != nil {
				t.Fatal(err)
			}
			if err := repo.Tag(t.Context(), config, "v1"); err != nil {
				t.Fatal(err)
			}
			got, err := content.FetchAll(t.Context(), repo, desc)
			if err != nil || !bytes.Equal(got, blob) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if n := s.Sent(desc.Digest); n != desc.Size {
				t.Errorf("sent %d of %d bytes", n, desc.Size)
			}
			if s.Received() < desc.Size || s.SentTotal() < desc.Size || s.Requests() < 4 {
				t.Errorf("received %d, sent %d, %d requests", s.Received(), s.SentTotal(), s.Requests())
			}
			if err := repo.Delete(t.Context(), config); err != nil {
				t.Errorf("deletes are not enabled: %v", err)
			}
		})
	}
}

func TestUsers(t *testing.T) {
	s := start(t, Config{Users: map[string]string{"me": "secret"}})
	push(t, open(t, s, "a/b", auth.Credential{Username: "me", Password: "secret"}), 10)
	for name, credential := range map[string]auth.Credential{
		"none": auth.EmptyCredential, "wrong": {Username: "me", Password: "x"}, "unknown": {Username: "you", Password: "secret"},
	} {
		_, err := open(t, s, "a/b", credential).Resolve(t.Context(), "v1")
		if refused, ok := errors.AsType[*registry.Error](err); !ok || refused.Status != http.StatusUnauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFaults(t *testing.T) {
	var fault atomic.Pointer[Fault]
	s := start(t, Config{Faults: func(r *http.Request) Fault {
		if f := fault.Load(); f != nil && r.Method == http.MethodGet {
			return *f
		}
		return Fault{}
	}})
	repo := open(t, s, "a/b", auth.EmptyCredential)
	desc, blob := push(t, repo, 300<<10)
	get := func() (int, []byte, error) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+"/v2/a/b/blobs/"+desc.Digest.String(), nil)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, body, err
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)

	fault.Store(&Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"7"}}})
	if status, body, _ := get(); status != http.StatusTooManyRequests || !strings.Contains(string(body), "errors") {
		t.Errorf("status: %d %s", status, body)
	}
	for _, at := range []int64{0, 1, 100 << 10} {
		before := s.Sent(desc.Digest)
		fault.Store(&Fault{Cut: true, At: at})
		if _, body, err := get(); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(body, blob[:at]) {
			t.Errorf("cut at %d: %d bytes, %v", at, len(body), err)
		}
		if n := s.Sent(desc.Digest) - before; n != at {
			t.Errorf("cut at %d: counted %d", at, n)
		}
	}
	fault.Store(&Fault{Flip: true, At: 200 << 10})
	want := bytes.Clone(blob)
	want[200<<10] ^= 0xff
	if _, body, err := get(); err != nil || !bytes.Equal(body, want) {
		t.Errorf("flip: %d bytes, %v", len(body), err)
	}
	release := make(chan struct{})
	fault.Store(&Fault{Wait: release, At: 64 << 10})
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr().String()+"/v2/a/b/blobs/"+desc.Digest.String(), nil)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, 64<<10)
	if _, err := io.ReadFull(resp.Body, head); err != nil {
		t.Fatal(err)
	}
	close(release)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(head, rest...), blob) {
		t.Errorf("wait: %d bytes, %v", len(rest), err)
	}
}

// TestRestart shows that content and unfinished uploads outlive the process's registry.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	first, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	repo := open(t, first, "a/b", auth.EmptyCredential)
	desc, _ := push(t, repo, 1000)
	location, err := repo.StartUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	location, err = repo.UploadChunk(t.Context(), location, 0, []byte("hello "))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	second := start(t, Config{Dir: dir})
	repo = open(t, second, "a/b", auth.EmptyCredential)
	if ok, err := repo.Exists(t.Context(), desc); err != nil || !ok {
		t.Errorf("blob is gone: %v", err)
	}
	location = strings.Replace(location, first.Addr().String(), second.Addr().String(), 1)
	if location, err = repo.UploadChunk(t.Context(), location, 6, []byte("world")); err != nil {
		t.Fatal(err)
	}
	if err := repo.CommitUpload(t.Context(), location, digest.FromString("hello world"), 11); err != nil {
		t.Error(err)
	}
}

func TestLogger(t *testing.T) {
	var log syncBuffer
	s := start(t, Config{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if _, err := open(t, s, "a/b", auth.EmptyCredential).Resolve(t.Context(), "none"); err == nil {
		t.Fatal("found")
	}
	if !strings.Contains(log.String(), "response completed with error") {
		t.Errorf("distribution's log does not come here any more: %s", log.String())
	}
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestNewErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"a file as Dir":   {Dir: file},
		"negative uplink": {UplinkBytesPerSecond: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
