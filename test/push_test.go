package test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// fault decides what goes wrong with a request.
type fault func(*http.Request) registryserver.Fault

// upstream is a real registry on loopback whose faults can be changed while it runs.
type upstream struct {
	*registryserver.Server
	host string

	mu    sync.Mutex
	fault fault
}

func newUpstream(t *testing.T, users map[string]string, change ...func(*registryserver.Config)) *upstream {
	t.Helper()
	u := &upstream{}
	cfg := registryserver.Config{Dir: t.TempDir(), Users: users, Faults: u.ask}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	u.Server, err = registryserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	u.host = u.Addr().String()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- u.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return u
}

func (u *upstream) ask(r *http.Request) registryserver.Fault {
	u.mu.Lock()
	f := u.fault
	u.mu.Unlock()
	if f == nil {
		return registryserver.Fault{}
	}
	return f(r)
}

func (u *upstream) set(f fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fault = f
}

// bigLayer is the path of the layer that has bigFile alone.
func (u *upstream) bigLayer(t *testing.T, ref string) string {
	t.Helper()
	var image struct{ Layers []model.Layer }
	if err := json.Unmarshal([]byte(succeed(t, "inspect", ref, "--plain-http", "--json")), &image); err != nil {
		t.Fatal(err)
	}
	for _, l := range image.Layers {
		if l.Members[0].Path == bigFile {
			return "/blobs/" + l.Digest.String()
		}
	}
	t.Fatalf("no layer has %s", bigFile)
	return ""
}

// request says which requests a fault is for.
type request func(*http.Request) bool

func every(*http.Request) bool { return true }

func method(m string) request {
	return func(r *http.Request) bool { return r.Method == m }
}

// reads picks what is read below a path that contains part.
func reads(part string) request {
	return func(r *http.Request) bool { return r.Method == http.MethodGet && strings.Contains(r.URL.Path, part) }
}

// readsBut picks the reads of blobs but those that reads(part) picks.
func readsBut(part string) request {
	blobs, but := reads("/blobs/"), reads(part)
	return func(r *http.Request) bool { return blobs(r) && !but(r) }
}

const forever = 1 << 40

// fails brings f into the first times requests that pick picks.
func fails(pick request, times int64, f registryserver.Fault) fault {
	var seen atomic.Int64
	return func(r *http.Request) registryserver.Fault {
		if !pick(r) || seen.Add(1) > times {
			return registryserver.Fault{}
		}
		return f
	}
}

// status is a registry's refusal. It asks to come back at once where that means anything, so that
// no test waits for the back-off's minute.
func status(code int) registryserver.Fault {
	return registryserver.Fault{Status: code, Header: http.Header{"Retry-After": {"0"}}}
}

const bigFile = "model-00001-of-00001.safetensors"

// writeModel makes a directory that looks like a model, with one layer of size bytes and more.
func writeModel(t *testing.T, size int) (dir string, files map[string][]byte) {
	t.Helper()
	big := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size >> 20)}).Read(big) // never fails
	files = map[string][]byte{
		bigFile:               big,
		"config.json":         []byte(`{"model_type":"qwen3"}`),
		"empty":               {},
		"分词器/a tokenizer.txt": []byte("a b c"),
	}
	dir = t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

// checkTree compares the files below dir with want, bit by bit.
func checkTree(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	got := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		got[name] = true
		if expected, ok := want[name]; !ok || string(content) != string(expected) {
			t.Errorf("%s: wrong content, or a file that nobody packed (%d bytes)", name, len(content))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// checkEmpty fails if a command left something in dir.
func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		t.Errorf("left behind: %s", entry.Name())
	}
}

// checkRefused fails unless the run ended as a command should that could not do its work.
func checkRefused(t *testing.T, res result, want string) {
	t.Helper()
	if res.code != 1 {
		t.Errorf("exit code %d, want 1", res.code)
	}
	if res.stdout != "" {
		t.Errorf("stdout of a failure: %q", res.stdout)
	}
	lines := strings.Split(strings.TrimSpace(res.stderr), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "shoal: ") || !strings.Contains(last, want) {
		t.Errorf("the last line of stderr is %q, want it to say %q", last, want)
	}
	if strings.Contains(res.stderr, "goroutine ") {
		t.Errorf("a panic:\n%s", res.stderr)
	}
}

// gate lets the first bytes of all uploads pass and then holds the body that is being read until
// opened is closed.
type gate struct {
	left    atomic.Int64
	held    context.Context // of the request whose body is held
	reached chan struct{}   // closed when it is
	opened  chan struct{}
	once    sync.Once
}

func newGate(pass int64) *gate {
	g := &gate{reached: make(chan struct{}), opened: make(chan struct{})}
	g.left.Store(pass)
	return g
}

func (g *gate) fault(r *http.Request) registryserver.Fault {
	if r.Method == http.MethodPatch {
		r.Body = &gatedBody{r.Body, r.Context(), g}
	}
	return registryserver.Fault{}
}

type gatedBody struct {
	io.ReadCloser
	request context.Context // ends when the request was handled
	gate    *gate
}

func (b *gatedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.gate.left.Add(-int64(n)) < 0 {
		b.gate.once.Do(func() {
			b.gate.held = b.request
			close(b.gate.reached)
			<-b.gate.opened
		})
	}
	return n, err
}

// pushed is what `shoal push --json` prints.
type pushed struct {
	Digest       string `json:"digest"`
	Layers       int    `json:"layers"`
	LayersReused int    `json:"layers_reused"`
	BytesRead    int64  `json:"bytes_read"`
	BytesSent    int64  `json:"bytes_sent"`
}

func parsePushed(t *testing.T, stdout string) pushed {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var p pushed
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &p); err != nil {
		t.Fatalf("last line of stdout: %v\n%s", err, stdout)
	}
	return p
}

func TestKilledPushGoesOn(t *testing.T) {
	const (
		size  = 64 << 20
		chunk = 8 << 20 // what a push sends, and may lose, at a time
	)
	reg := newUpstream(t, nil)
	dir, files := writeModel(t, size)
	ref := reg.host + "/models/killed:v1"
	push := []string{"push", dir, ref, "--plain-http", "--json", "--parallel", "1", "--state", t.TempDir()}

	held := newGate(5*chunk + chunk/2)
	reg.set(held.fault)
	first := begin(t, shoal(t, push...))
	select {
	case <-held.reached:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	first.signal(syscall.SIGKILL)
	if res := first.wait(); res.code != -1 {
		t.Fatalf("the first push was not killed, its exit code is %d\n%s", res.code, res.stderr)
	}
	close(held.opened)
	<-held.held.Done() // the registry has noticed
	reg.set(nil)
	if res := finish(t, shoal(t, "inspect", ref, "--plain-http")); res.code != 1 {
		t.Errorf("a killed push is visible: %s", res.stdout)
	}

	got := parsePushed(t, succeed(t, push...))
	const before = 4 * chunk // safely accepted and written down when the kill came
	if got.BytesSent > size-before+1<<20 {
		t.Errorf("the second push sent %d of %d bytes", got.BytesSent, size)
	}
	if got.BytesRead > size-before+1<<20 {
		t.Errorf("the second push read %d of %d bytes", got.BytesRead, size)
	}
	if all := reg.Received(); all > size+2*chunk {
		t.Errorf("the registry received %d bytes for %d", all, size)
	}
	out := filepath.Join(t.TempDir(), "out")
	succeed(t, "pull", ref, out, "--plain-http")
	checkTree(t, out, files)

	// The same again is known by its checksums: nothing is read.
	again := parsePushed(t, succeed(t, push...))
	if again.Digest != got.Digest || again.BytesRead != 0 || again.LayersReused != again.Layers {
		t.Errorf("push of the same files: %+v, want %s again, read nothing", again, got.Digest)
	}
}

func TestPushOverFaults(t *testing.T) {
	dir, files := writeModel(t, 17<<20)
	for name, tc := range map[string]struct {
		fault fault
		want  string // "" means that the push succeeds
	}{
		"401":                      {fails(every, forever, status(http.StatusUnauthorized)), "docker login"},
		"403":                      {fails(method(http.MethodPost), forever, status(http.StatusForbidden)), "ask for the right"},
		"404 of the repository":    {fails(method(http.MethodPost), forever, status(http.StatusNotFound)), "check the repository's name"},
		"429 for a while":          {fails(method(http.MethodPatch), 3, status(http.StatusTooManyRequests)), ""},
		"429 for ever":             {fails(method(http.MethodPatch), forever, status(http.StatusTooManyRequests)), "limits the rate"},
		"503 for a while":          {fails(every, 3, status(http.StatusServiceUnavailable)), ""},
		"503 for ever":             {fails(method(http.MethodPut), forever, status(http.StatusServiceUnavailable)), "look at its health"},
		"500 once":                 {fails(method(http.MethodPatch), 1, status(http.StatusInternalServerError)), ""},
		"uploads lost for a while": {fails(method(http.MethodPatch), 2, status(http.StatusNotFound)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := newUpstream(t, nil)
			ref := reg.host + "/models/faults:v1"
			push := []string{"push", dir, ref, "--plain-http", "--state", t.TempDir()}
			reg.set(tc.fault)
			res := finish(t, shoal(t, push...))
			reg.set(nil)
			if tc.want != "" {
				checkRefused(t, res, tc.want)
				if !strings.Contains(res.stderr, reg.host) {
					t.Errorf("stderr does not name the registry: %s", res.stderr)
				}
				checkRefused(t, finish(t, shoal(t, "inspect", ref, "--plain-http")), "not found")
				succeed(t, push...) // the way is free again, whatever the failure left
			} else if res.code != 0 {
				t.Fatalf("exit code %d\n%s", res.code, res.stderr)
			}
			out := filepath.Join(t.TempDir(), "out")
			succeed(t, "pull", ref, out, "--plain-http")
			checkTree(t, out, files)
		})
	}
}

func TestPullOverFaults(t *testing.T) {
	dir, files := writeModel(t, 17<<20)
	reg := newUpstream(t, nil)
	ref := reg.host + "/models/faults:v1"
	succeed(t, "push", dir, ref, "--plain-http", "--state", t.TempDir())
	layer := reg.bigLayer(t, ref)
	const manifests = "/manifests/"
	for name, tc := range map[string]struct {
		fault fault
		want  string // "" means that the pull succeeds
	}{
		"401":             {fails(every, forever, status(http.StatusUnauthorized)), "docker login"},
		"403":             {fails(every, forever, status(http.StatusForbidden)), "ask for the right"},
		"404 of the tag":  {fails(every, forever, status(http.StatusNotFound)), "check the repository's name"},
		"404 of a layer":  {fails(reads(layer), forever, status(http.StatusNotFound)), "not found"},
		"429 for a while": {fails(every, 5, status(http.StatusTooManyRequests)), ""},
		"429 for ever":    {fails(reads(layer), forever, status(http.StatusTooManyRequests)), "limits the rate"},
		"503 for a while": {fails(reads(layer), 3, status(http.StatusServiceUnavailable)), ""},
		"503 for ever":    {fails(every, forever, status(http.StatusServiceUnavailable)), "look at its health"},
		"500 once":        {fails(reads(layer), 1, status(http.StatusInternalServerError)), ""},
		"short bodies":    {fails(reads(layer), 2, registryserver.Fault{At: 5 << 20, Cut: true}), ""},
		"a wrong byte":    {fails(reads(layer), forever, registryserver.Fault{At: 9 << 20, Flip: true}), "the member table says"},
		"a wrong header":  {fails(reads(layer), forever, registryserver.Fault{At: 0, Flip: true}), "contradicts the member table"},
		"a wrong table":   {fails(readsBut(layer), forever, registryserver.Fault{At: 99, Flip: true}), "mismatched digest"},
		"a wrong index":   {fails(reads(manifests), forever, registryserver.Fault{At: 99, Flip: true}), "mismatched digest"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			out := filepath.Join(parent, "out")
			reg.set(tc.fault)
			res := finish(t, shoal(t, "pull", ref, out, "--plain-http"))
			reg.set(nil)
			if tc.want != "" {
				checkRefused(t, res, tc.want)
				checkEmpty(t, parent)
				succeed(t, "pull", ref, out, "--plain-http")
			} else if res.code != 0 {
				t.Fatalf("exit code %d\n%s", res.code, res.stderr)
			}
			checkTree(t, out, files)
		})
	}
}

// Credentials come from the docker configuration, and nothing goes without them.
func TestPrivateRegistry(t *testing.T) {
	reg := newUpstream(t, map[string]string{"ann": "secret"})
	dir, files := writeModel(t, 1<<20)
	ref := reg.host + "/models/private:v1"
	login := func(cmd *exec.Cmd, password string) *exec.Cmd {
		config := t.TempDir()
		token := base64.StdEncoding.EncodeToString([]byte("ann:" + password))
		raw := fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, reg.host, token)
		if err := os.WriteFile(filepath.Join(config, "config.json"), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+config) // the last one counts
		return cmd
	}
	push := func() *exec.Cmd { return shoal(t, "push", dir, ref, "--plain-http", "--state", t.TempDir()) }
	checkRefused(t, finish(t, push()), "docker login "+reg.host)
	wrong := finish(t, login(push(), "wrong"))
	checkRefused(t, wrong, "docker login "+reg.host)
	if strings.Contains(wrong.stderr, "wrong") {
		t.Errorf("the password is in the message: %s", wrong.stderr)
	}
	if res := finish(t, login(push(), "secret")); res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.stderr)
	}

	parent := t.TempDir()
	out := filepath.Join(parent, "out")
	checkRefused(t, finish(t, shoal(t, "pull", ref, out, "--plain-http")), "docker login "+reg.host)
	checkEmpty(t, parent)
	if res := finish(t, login(shoal(t, "pull", ref, out, "--plain-http"), "secret")); res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.stderr)
	}
	checkTree(t, out, files)
}

// A registry that names a time is not asked before it.
func TestPullKeepsToRetryAfter(t *testing.T) {
	reg := newUpstream(t, nil)
	dir, files := writeModel(t, 1<<20)
	ref := reg.host + "/models/limited:v1"
	succeed(t, "push", dir, ref, "--plain-http", "--state", t.TempDir())

	var mu sync.Mutex
	var limited, next time.Time
	reg.set(func(*http.Request) registryserver.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch now := time.Now(); {
		case limited.IsZero():
			limited = now
			return registryserver.Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}}
		case next.IsZero():
			next = now
		}
		return registryserver.Fault{}
	})
	out := filepath.Join(t.TempDir(), "out")
	succeed(t, "pull", ref, out, "--plain-http")
	checkTree(t, out, files)
	if waited := next.Sub(limited); waited < time.Second {
		t.Errorf("asked again after %v, the registry said 1 s", waited)
	}
}

// A pull that is asked to stop in mid-transfer leaves nothing.
func TestStoppedPullLeavesNothing(t *testing.T) {
	reg := newUpstream(t, nil)
	dir, _ := writeModel(t, 17<<20)
	ref := reg.host + "/models/stopped:v1"
	succeed(t, "push", dir, ref, "--plain-http", "--state", t.TempDir())

	layer, reached := reads(reg.bigLayer(t, ref)), make(chan struct{})
	reg.set(func(r *http.Request) registryserver.Fault {
		switch {
		case !layer(r):
			return registryserver.Fault{}
		case r.Header.Get("Range") == "":
			return registryserver.Fault{At: 9 << 20, Cut: true}
		}
		close(reached) // it has half of the layer and comes back for the rest
		return registryserver.Fault{Wait: make(chan struct{})}
	})
	parent := t.TempDir()
	pull := begin(t, shoal(t, "pull", ref, filepath.Join(parent, "out"), "--plain-http"))
	select {
	case <-reached:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 || entries[0].Name() == "out" {
		t.Errorf("half a model is visible: %v %v", entries, err)
	}
	pull.signal(syscall.SIGTERM)
	checkRefused(t, pull.wait(), "")
	checkEmpty(t, parent)
}
