package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
)

func TestMain(m *testing.M) {
	if beChild() {
		return
	}
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

const (
	mib  = 1 << 20
	repo = "ns/deep/model"
)

// rig is a real registry with a mirror before it.
type rig struct {
	t        testing.TB
	upstream *registryserver.Server
	mirror   *Mirror
	url      string
	client   *http.Client

	mu    sync.Mutex
	fault func(*http.Request) registryserver.Fault
	seen  []string // method, path and range of the requests to upstream
}

func testRetry() registry.Retry {
	return registry.Retry{Tries: 3, Base: time.Millisecond, Max: 5 * time.Millisecond}
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	var err error
	if r.upstream, err = registryserver.New(registryserver.Config{Dir: t.TempDir(), Faults: r.faults}); err != nil {
		t.Fatal(err)
	}
	run(t, r.upstream.Run)
	cfg := Config{Dir: t.TempDir(), Upstreams: []Upstream{r.upstreamConfig()}, Retry: testRetry(), Stall: 10 * time.Second, RangeSize: 4 * mib}
	for _, c := range change {
		c(&cfg)
	}
	r.start(cfg)
	return r
}

func (r *rig) upstreamConfig() Upstream {
	return Upstream{
		Name: "reg.example.com", Registry: r.upstream.Addr().String(), PlainHTTP: true,
		Credential: auth.StaticCredential("", auth.EmptyCredential),
	}
}

func (r *rig) start(cfg Config) {
	r.t.Helper()
	m, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mirror = m
	r.t.Cleanup(func() {
		r.client.CloseIdleConnections()
		if err := m.Close(); err != nil {
			r.t.Error(err)
		}
	})
	server := httptest.NewServer(m.Handler())
	r.t.Cleanup(server.Close)
	run(r.t, m.Run)
	r.url = server.URL
}

// run runs a server until the test ends.
func run(t testing.TB, fn func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) faults(req *http.Request) registryserver.Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = append(r.seen, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+req.Header.Get("Range")))
	if r.fault == nil {
		return registryserver.Fault{}
	}
	return r.fault(req)
}

func (r *rig) setFault(fault func(*http.Request) registryserver.Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// asked returns the requests to upstream since the last call.
func (r *rig) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func (r *rig) open(name string) *registry.Repository {
	repo, err := registry.Open(r.upstream.Addr().String()+"/"+name, registry.Config{
		PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential), Retry: testRetry(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(repo.Close)
	return repo
}

// push puts a random blob upstream.
func (r *rig) push(size int) (digest.Digest, []byte) {
	r.t.Helper()
	blob := make([]byte, size)
	rand.Read(blob)
	desc := content.NewDescriptorFromBytes("application/octet-stream", blob)
	if err := r.open(repo).Push(r.t.Context(), desc, bytes.NewReader(blob)); err != nil {
		r.t.Fatal(err)
	}
	r.asked()
	return desc.Digest, blob
}

// pushTag puts a manifest upstream under a tag.
func (r *rig) pushTag(tag, what string) ocispec.Descriptor {
	r.t.Helper()
	target := r.open(repo)
	config := content.NewDescriptorFromBytes("application/vnd.test", []byte(what))
	if err := target.Push(r.t.Context(), config, strings.NewReader(what)); err != nil {
		r.t.Fatal(err)
	}
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"application/vnd.test","digest":"` +
		config.Digest.String() + `","size":` + itoa(config.Size) + `},"layers":[]}`)
	desc := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, raw)
	if err := target.PushReference(r.t.Context(), desc, bytes.NewReader(raw), tag); err != nil {
		r.t.Fatal(err)
	}
	r.asked()
	return desc
}

type answer struct {
	status int
	header http.Header
	body   []byte
	err    error
}

func (r *rig) do(ctx context.Context, method, path string, header ...string) answer {
	req, err := http.NewRequestWithContext(ctx, method, r.url+path, nil)
	if err != nil {
		return answer{err: err}
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body, err}
}

func (r *rig) get(path string, header ...string) answer {
	return r.do(r.t.Context(), http.MethodGet, path, header...)
}

func blobPath(d digest.Digest) string { return "/v2/" + repo + "/blobs/" + d.String() }

// fill returns the running fill of d.
func (r *rig) fill(d digest.Digest) *fill { return r.mirror.fillOf(d) }

func (m *Mirror) fillOf(d digest.Digest) *fill {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fills[d]
}

func (f *fill) waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiters)
}

// until waits for what another goroutine is about to do.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		runtime.Gosched()
	}
}

func TestManyReadersOneCopy(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(21*mib + 12345)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			if i%2 == 0 {
				if got := r.get(blobPath(d)); got.status != http.StatusOK || !bytes.Equal(got.body, blob) {
					t.Errorf("reader %d: %d, %d bytes, %v", i, got.status, len(got.body), got.err)
				}
				return
			}
			off := i * mib
			got := r.get(blobPath(d), "Range", "bytes="+itoa(int64(off))+"-"+itoa(int64(off+2*mib-1)))
			if got.status != http.StatusPartialContent || !bytes.Equal(got.body, blob[off:off+2*mib]) {
				t.Errorf("reader %d: %d, %d bytes, %v", i, got.status, len(got.body), got.err)
			}
		})
	}
	group.Wait()
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
	r.asked()
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("from the disk: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if asked := r.asked(); len(asked) != 0 {
		t.Errorf("a blob on the disk needs %v", asked)
	}
}

func TestSizes(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{0, 1, 2, 4*mib - 1, 4 * mib, 4*mib + 1, 9 * mib} {
		d, blob := r.push(size)
		got := r.get(blobPath(d))
		if got.status != http.StatusOK || !bytes.Equal(got.body, blob) || got.err != nil {
			t.Errorf("%d bytes: %d, %d, %v", size, got.status, len(got.body), got.err)
		}
		if sent := r.upstream.Sent(d); sent != int64(size) {
			t.Errorf("%d bytes: upstream sent %d", size, sent)
		}
	}
}

// TestJump shows that a range far ahead is fetched next, and nothing twice.
func TestJump(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Parallel = 1 })
	d, blob := r.push(32 * mib)
	gate := make(chan struct{})
	r.setFault(func(req *http.Request) registryserver.Fault {
		if strings.HasPrefix(req.Header.Get("Range"), "bytes=0-") {
			return registryserver.Fault{Wait: gate, At: mib / 4}
		}
		return registryserver.Fault{}
	})
	var group sync.WaitGroup
	group.Go(func() {
		if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
			t.Errorf("whole: %d, %d bytes, %v", got.status, len(got.body), got.err)
		}
	})
	// What is there is served while the fill waits.
	if got := r.get(blobPath(d), "Range", "bytes=1000-1999"); !bytes.Equal(got.body, blob[1000:2000]) {
		t.Errorf("written part: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	group.Go(func() {
		if got := r.get(blobPath(d), "Range", "bytes=29360128-30408703"); !bytes.Equal(got.body, blob[28*mib:29*mib]) {
			t.Errorf("far range: %d, %d bytes, %v", got.status, len(got.body), got.err)
		}
	})
	until(t, "two readers wait", func() bool { return r.fill(d).waiting() == 2 })
	close(gate)
	group.Wait()
	asked := r.asked()
	if len(asked) < 3 || !strings.HasSuffix(asked[2], "bytes=29360128-29884415") {
		t.Errorf("the asked range was not the next: %v", asked)
	}
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}

// TestHangUp shows that the fill goes on when its only reader is gone.
func TestHangUp(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(12 * mib)
	gate := make(chan struct{})
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Wait: gate, At: mib / 4} })
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan answer, 1)
	go func() { gone <- r.do(ctx, http.MethodGet, blobPath(d)) }()
	until(t, "the reader waits in the middle", func() bool { f := r.fill(d); return f != nil && f.waiting() == 1 && f.at0() == mib/4 })
	f := r.fill(d)
	hangUp()
	if got := <-gone; !errors.Is(got.err, context.Canceled) {
		t.Errorf("%d %v", got.status, got.err)
	}
	until(t, "the reader is gone", func() bool { return f.waiting() == 0 })
	r.setFault(nil)
	close(gate)
	until(t, "the fill is over", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.complete })
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}

// at0 is how far the first range is.
func (f *fill) at0() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.plan == nil {
		return -1
	}
	return f.plan.available(0, f.plan.size)
}

func TestWrongBytes(t *testing.T) {
	for name, size := range map[string]int{"small": 100, "large": 9 * mib} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			d, blob := r.push(size)
			r.setFault(func(req *http.Request) registryserver.Fault {
				return registryserver.Fault{Flip: req.Method == http.MethodGet, At: 10}
			})
			got := r.get(blobPath(d))
			if got.err == nil && got.status == http.StatusOK {
				t.Fatalf("a complete-looking body of %d bytes", len(got.body))
			}
			until(t, "the fill is over", func() bool { return r.fill(d) == nil })
			r.asked()
			got = r.get(blobPath(d))
			if got.status != http.StatusBadGateway || !strings.Contains(string(got.body), "DIGEST_INVALID") {
				t.Errorf("%d %s", got.status, got.body)
			}
			if asked := r.asked(); len(asked) != 0 {
				t.Errorf("asked again at once: %v", asked)
			}
			until(t, "the bytes are dropped", func() bool { return len(r.mirror.store.Blobs()) == 0 })

			r.setFault(nil)
			r.mirror.failures.forget(failureKey{Source{"reg.example.com", repo}, d.String()})
			if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
				t.Errorf("later: %d, %d bytes, %v", got.status, len(got.body), got.err)
			}
		})
	}
}

func TestBrokenBodies(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(9 * mib)
	var cuts int
	r.setFault(func(req *http.Request) registryserver.Fault {
		if req.Method != http.MethodGet || cuts >= 3 {
			return registryserver.Fault{}
		}
		cuts++
		return registryserver.Fault{Cut: true, At: int64(cuts) * 100_000}
	})
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}

func TestUpstreamErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		status, want int
		code         string
	}{
		"not found":    {http.StatusNotFound, http.StatusNotFound, "_UNKNOWN"},
		"unauthorized": {http.StatusUnauthorized, http.StatusForbidden, "DENIED"},
		"forbidden":    {http.StatusForbidden, http.StatusForbidden, "DENIED"},
		"too many":     {http.StatusTooManyRequests, http.StatusServiceUnavailable, "TOOMANYREQUESTS"},
		"broken":       {http.StatusBadGateway, http.StatusServiceUnavailable, "UNAVAILABLE"},
		"strange":      {http.StatusTeapot, http.StatusBadGateway, "UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			d, _ := r.push(1000)
			r.setFault(func(*http.Request) registryserver.Fault {
				return registryserver.Fault{Status: tc.status, Header: http.Header{"Retry-After": {"0"}}}
			})
			for _, path := range []string{blobPath(d), "/v2/" + repo + "/manifests/v1", "/v2/" + repo + "/manifests/" + d.String()} {
				got := r.get(path)
				if got.status != tc.want || !strings.Contains(string(got.body), tc.code) || !strings.Contains(string(got.body), "reg.example.com") {
					t.Errorf("%s: %d %s", path, got.status, got.body)
				}
				if (got.header.Get("Retry-After") != "") != (tc.want == http.StatusServiceUnavailable) {
					t.Errorf("%s: Retry-After %q", path, got.header.Get("Retry-After"))
				}
				r.asked()
				if again := r.get(path); again.status != tc.want {
					t.Errorf("%s again: %d", path, again.status)
				}
				if asked := r.asked(); len(asked) != 0 {
					t.Errorf("%s: asked again at once: %v", path, asked)
				}
			}
			if head := r.do(t.Context(), http.MethodHead, blobPath(d)); head.status != tc.want {
				t.Errorf("head: %d", head.status)
			}
		})
	}
}

// TestOtherRepository shows that one repository's refusal says nothing of another.
func TestOtherRepository(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(1000)
	gate := make(chan struct{})
	r.setFault(func(req *http.Request) registryserver.Fault {
		if strings.Contains(req.URL.Path, "/other/") {
			return registryserver.Fault{Status: http.StatusNotFound, Wait: gate}
		}
		return registryserver.Fault{}
	})
	var group sync.WaitGroup
	group.Go(func() {
		if got := r.get("/v2/some/other/blobs/" + d.String()); got.status != http.StatusOK && got.status != http.StatusNotFound {
			t.Errorf("%d", got.status)
		}
	})
	until(t, "the fill began", func() bool { return r.fill(d) != nil })
	group.Go(func() {
		if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	close(gate)
	group.Wait()
}

// TestRetryLater shows that a blob whose upstream came back needs no restart.
func TestRetryLater(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(9 * mib)
	r.setFault(func(req *http.Request) registryserver.Fault {
		if req.Method == http.MethodGet && strings.HasPrefix(req.Header.Get("Range"), "bytes=4194304-") {
			return registryserver.Fault{Status: http.StatusServiceUnavailable}
		}
		return registryserver.Fault{}
	})
	if got := r.get(blobPath(d)); got.err == nil && got.status == http.StatusOK {
		t.Errorf("whole without its second range: %d bytes", len(got.body))
	}
	until(t, "the fill is over", func() bool { return r.fill(d) == nil })
	r.setFault(nil)
	r.mirror.failures.forget(failureKey{Source{"reg.example.com", repo}, d.String()})
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
}

// TestNoRanges reads from a registry that does not know ranges.
func TestNoRanges(t *testing.T) {
	blob := make([]byte, 9*mib+1)
	rand.Read(blob)
	d := digest.FromBytes(blob)
	var sent int
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", itoa(int64(len(blob))))
		if r.Method == http.MethodGet {
			sent += len(blob)
			w.Write(blob)
		}
	}))
	t.Cleanup(plain.Close)
	r := newRig(t, func(c *Config) { c.Upstreams[0].Registry = strings.TrimPrefix(plain.URL, "http://") })
	if got := r.get(blobPath(d), "Range", "bytes=9000000-9000009"); !bytes.Equal(got.body, blob[9000000:9000010]) {
		t.Errorf("range: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("whole: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if sent != len(blob) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}

func TestQuota(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Quota = 10 * mib })
	for range 5 {
		d, blob := r.push(4 * mib)
		if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
			t.Fatalf("%d %.200s %v", got.status, got.body, got.err)
		}
	}
	var sum int64
	for _, b := range r.mirror.store.Blobs() {
		sum += b.Size
	}
	if sum > 10*mib {
		t.Errorf("%d bytes on the disk", sum)
	}
	d, _ := r.push(11 * mib)
	if got := r.get(blobPath(d)); got.status != http.StatusServiceUnavailable || !strings.Contains(string(got.body), "quota") {
		t.Errorf("too large: %d %s", got.status, got.body)
	}
}

// TestStop shows that readers of a mirror that shuts down are told so, and what is there is kept.
func TestStop(t *testing.T) {
	r := newRig(t)
	d, _ := r.push(9 * mib)
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Wait: gate, At: mib / 4} })
	reg := prometheus.NewRegistry()
	m, err := New(Config{Dir: t.TempDir(), Upstreams: []Upstream{r.upstreamConfig()}, Retry: testRetry(), Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	src := Source{"reg.example.com", repo}
	b, err := m.Blob(t.Context(), src, d)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	copied := make(chan error, 1)
	go func() { copied <- b.CopyRange(t.Context(), &got, 0, b.Size()) }()
	stop()
	if err := <-copied; !errors.Is(err, ErrStopped) {
		t.Errorf("reader: %v", err)
	}
	b.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := m.Blob(t.Context(), src, d); !errors.Is(err, ErrStopped) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := m.Manifest(t.Context(), src, "v1"); !errors.Is(err, ErrStopped) {
		t.Errorf("manifest after the end: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if families, err := reg.Gather(); err != nil || len(families) == 0 {
		t.Errorf("%d metrics, %v", len(families), err)
	}
}

// TestDamage shows that a part which was damaged on the disk between two runs is never passed on as
// a whole blob, and that the next request reads it anew without a wait.
func TestDamage(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(9 * mib)
	dir := t.TempDir()
	src := Source{"reg.example.com", repo}
	cfg := Config{Dir: dir, Upstreams: []Upstream{r.upstreamConfig()}, Retry: testRetry(), RangeSize: 4 * mib, Parallel: 1}
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	r.setFault(func(req *http.Request) registryserver.Fault {
		if strings.HasPrefix(req.Header.Get("Range"), "bytes=4194304-") {
			return registryserver.Fault{Wait: gate}
		}
		return registryserver.Fault{}
	})
	first, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	b, err := first.Blob(t.Context(), src, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.CopyRange(t.Context(), io.Discard, 0, 4*mib); err != nil {
		t.Fatal(err)
	}
	b.Close()
	stop()
	if err := errors.Join(<-done, first.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := filepath.Glob(filepath.Join(dir, "store", "blobs", "*", "data"))
	if err != nil || len(data) != 1 {
		t.Fatalf("%v, %v", data, err)
	}
	f, err := os.OpenFile(data[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^blob[0]}, 0); err != nil {
		t.Fatal(err)
	}
	f.Close()

	r.setFault(nil)
	r.start(cfg)
	if got := r.get(blobPath(d)); got.err == nil && got.status == http.StatusOK {
		t.Errorf("damaged bytes look whole: %d", len(got.body))
	}
	until(t, "the fill is over", func() bool { return r.fill(d) == nil })
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("the next request: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
}
