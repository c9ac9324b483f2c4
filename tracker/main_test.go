package tracker

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// region is a tracker on loopback that can be restarted under one address.
type region struct {
	t       *testing.T
	cfg     Config
	url     string
	clock   *clock
	handler atomic.Pointer[http.Handler]
	server  *Server
}

// newRegion starts a tracker. cfg.Now is a clock of the test's unless it is set.
func newRegion(t *testing.T, cfg Config) *region {
	t.Helper()
	r := &region{t: t, cfg: cfg, clock: newClock()}
	if cfg.Now == nil {
		r.cfg.Now = r.clock.Now
	}
	r.cfg.Logger = slog.New(slog.DiscardHandler)
	r.restart()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		(*r.handler.Load()).ServeHTTP(w, req)
	}))
	t.Cleanup(web.Close)
	r.url = web.URL
	return r
}

func (r *region) restart() {
	r.t.Helper()
	s, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	h := s.Handler()
	r.server = s
	r.handler.Store(&h)
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

// blob is made-up content with its swarm key and hash layer.
type blob struct {
	key   client.Key
	size  int64
	layer model.HashLayer
}

func newBlob(t *testing.T, seed byte, size int64) blob {
	t.Helper()
	var h model.PieceHasher
	chunk := make([]byte, 1<<16)
	for i := range chunk {
		chunk[i] = seed + byte(i)
	}
	for left := size; left > 0; left -= int64(len(chunk)) {
		if _, err := h.Write(chunk[:min(left, int64(len(chunk)))]); err != nil {
			t.Fatal(err)
		}
	}
	layer, root := h.Sum()
	return blob{key: keyOf(seed, root), size: size, layer: layer}
}

func keyOf(seed byte, root model.Hash) client.Key {
	key, err := client.ParseKey(model.Hash{seed}.String() + "-" + root.String())
	if err != nil {
		panic(err)
	}
	return key
}

// testSize is the size of a blob of 16 pieces.
const testSize = 16 * model.HashLayerPiece

// node is one announcing node; it repeats its state as a real one does.
type node struct {
	t   *testing.T
	c   *client.Client
	key client.Key
	a   client.Announce
}

func newNode(r *region, name, addr string, key client.Key) *node {
	return &node{
		t: r.t, c: r.client(), key: key,
		a: client.Announce{Node: name, Addr: addr, Size: testSize, Have: lease.NewBitmap(model.NumPieces(testSize))},
	}
}

// ask announces and takes the leases it gets as open.
func (n *node) ask(want int) client.AnnounceReply {
	n.t.Helper()
	a := n.a
	a.Want = want
	reply, err := n.c.Announce(n.t.Context(), n.key, a)
	if err != nil {
		n.t.Fatal(err)
	}
	n.a.Open = append(n.a.Open, pieces(reply.Leases)...)
	return reply
}

// fetched makes the node hold its open leases.
func (n *node) fetched() {
	for _, p := range n.a.Open {
		lease.Bitmap(n.a.Have).Set(p)
	}
	n.a.Open = nil
}

// authority issues certificates into temporary directories.
type authority struct {
	t   *testing.T
	dir string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: filepath.Join(t.TempDir(), "ca")}
	if err := certs.CreateCA(a.dir); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) issue(identity string) *certs.Bundle {
	a.t.Helper()
	id, err := certs.ParseIdentity(identity)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := filepath.Join(a.t.TempDir(), "leaf")
	if err := certs.Issue(a.dir, dir, id); err != nil {
		a.t.Fatal(err)
	}
	b, err := certs.Load(dir)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// pieces are those of leases.
func pieces(leases []client.Lease) (out []int) {
	for _, l := range leases {
		out = append(out, l.Piece)
	}
	return out
}
