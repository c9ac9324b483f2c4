package peer

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

func TestMain(m *testing.M) {
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// region is a registry and a tracker on loopback, and the nodes that use them.
type region struct {
	t        *testing.T
	upstream *registryserver.Server
	url      string // of the tracker
	control  *client.Client
	nodes    int
	wait     func(context.Context, int) error // before nodes to be made read an origin

	mu    sync.Mutex
	fault func(*http.Request) registryserver.Fault
	down  bool // the tracker
}

func newRegion(t *testing.T) *region {
	t.Helper()
	r := &region{t: t}
	var err error
	if r.upstream, err = registryserver.New(registryserver.Config{Faults: r.faults}); err != nil {
		t.Fatal(err)
	}
	run(t, r.upstream.Run)
	track, err := tracker.New(tracker.Config{
		Lease:  lease.Config{Interval: 20 * time.Millisecond, IdleInterval: 50 * time.Millisecond},
		Logger: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	handler := track.Handler()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		down := r.down
		r.mu.Unlock()
		if down {
			http.Error(w, "out of order", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, req)
	}))
	t.Cleanup(web.Close)
	r.url = web.URL
	r.control = r.client()
	return r
}

// run runs a server until the test ends.
func run(t *testing.T, fn func(context.Context) error) {
	t.Helper()
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

func (r *region) client() *client.Client {
	r.t.Helper()
	c, err := client.New(client.Config{URL: r.url})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

func (r *region) faults(req *http.Request) registryserver.Fault {
	r.mu.Lock()
	fault := r.fault
	r.mu.Unlock()
	if fault == nil {
		return registryserver.Fault{}
	}
	return fault(req)
}

func (r *region) setFault(fault func(*http.Request) registryserver.Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// upstreamDown makes the registry refuse everything.
func upstreamDown(*http.Request) registryserver.Fault {
	return registryserver.Fault{Status: http.StatusServiceUnavailable}
}

func (r *region) setTrackerDown(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
}

// discard is a logger that nobody reads.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// host is the registry's name in references.
func (r *region) host() string { return r.upstream.Addr().String() }

// reference names tag in the registry.
func (r *region) reference(tag string) string { return r.host() + "/models/test:" + tag }

func (r *region) origins() Origins {
	return Origins{Upstreams: map[string]Upstream{r.host(): {Host: r.host(), PlainHTTP: true}}}
}

// desired is a model of the registry.
func (r *region) desired(tag string) client.DesiredModel {
	return client.DesiredModel{Name: tag, Reference: r.reference(tag)}
}

// desire makes the tracker's desired set those tags.
func (r *region) desire(tags ...string) {
	r.t.Helper()
	var d client.Desired
	for _, tag := range tags {
		d.Models = append(d.Models, r.desired(tag))
	}
	if err := r.control.SetDesired(r.t.Context(), d); err != nil {
		r.t.Fatal(err)
	}
}

// node is a node agent with what it works with, in a folder that outlives it.
type node struct {
	t      *testing.T
	region *region
	name   string
	dir    string
	change []func(*Config)

	*Peer
	store *store.Store
	end   func() // stops the agent and closes everything
}

// newNode starts a node on an address of its own.
func (r *region) newNode(change ...func(*Config)) *node {
	r.t.Helper()
	r.nodes++
	n := &node{t: r.t, region: r, name: fmt.Sprintf("n%d", r.nodes), dir: r.t.TempDir(), change: change}
	n.start()
	r.t.Cleanup(func() { n.stop() })
	return n
}

// prepare makes the agent without running it.
func (n *node) prepare() {
	n.t.Helper()
	n.store = newStore(n.t, n.dir)
	bt := newSwarm(n.t, n.region.nodes, n.region.wait)
	track, err := client.New(client.Config{URL: n.region.url})
	if err != nil {
		n.t.Fatal(err)
	}
	cfg := Config{
		Name: n.name, Store: n.store, Swarm: bt, Tracker: track, Origins: n.region.origins(),
		Wait: n.region.wait, Dir: filepath.Join(n.dir, "node"),
	}
	for _, c := range n.change {
		c(&cfg)
	}
	if n.Peer, err = New(cfg); err != nil {
		n.t.Fatal(err)
	}
	n.end = func() {
		track.Close()
		if err := bt.Close(); err != nil {
			n.t.Error(err)
		}
		if err := n.store.Close(); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *node) start() {
	n.t.Helper()
	n.prepare()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	closeAll := n.end
	n.end = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
		closeAll()
	}
}

// stop ends the node; one that has stopped stays so.
func (n *node) stop() {
	if n.end != nil {
		n.end()
		n.end = nil
	}
}

func newStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unlockTree(t, dir) })
	return s
}

// newSwarm listens on the i-th loopback address: peers are banned by IP.
func newSwarm(t *testing.T, i int, wait func(context.Context, int) error) *swarm.Client {
	t.Helper()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", 10+i))
	if err != nil {
		t.Fatal(err)
	}
	c, err := swarm.New(swarm.Config{Listener: listener, Logger: discard(), Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// model returns what the node says of the model called name.
func (n *node) model(name string) client.ModelProgress {
	for _, m := range n.Status().Models {
		if m.Name == name {
			return m
		}
	}
	return client.ModelProgress{}
}

// reach waits until the model is in that state.
func (n *node) reach(name, state string) client.ModelProgress {
	n.t.Helper()
	var m client.ModelProgress
	until(n.t, func() string {
		if m = n.model(name); m.State == state {
			return ""
		}
		return fmt.Sprintf("%s: %+v, want it %s", n.name, m, state)
	})
	return m
}

// until waits for what other goroutines are about to do; wait says what is not yet as it should be.
func until(t *testing.T, wait func() string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		why := wait()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", why)
		}
	}
}

// blobOf is the digest in a request for a blob, "" in others.
func blobOf(req *http.Request) string {
	_, d, _ := strings.Cut(req.URL.Path, "/blobs/")
	return d
}
