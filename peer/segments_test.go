package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/swarm"
)

// away joins a swarm that nothing comes from, and runs its session.
func away(t *testing.T, bt *swarm.Client, seed uint64) (m *membership, bring func()) {
	t.Helper()
	content := make([]byte, 1<<20)
	storetest.Fill(content, seed)
	var hasher model.PieceHasher
	if _, err := hasher.Write(content); err != nil {
		t.Fatal(err)
	}
	hashes, root := hasher.Sum()
	length := model.PieceLength(1 << 20)
	gate := make(chan struct{})
	session, err := bt.Join(swarm.Torrent{
		Digest: digest.FromBytes(content), Size: 1 << 20, Root: root, Pieces: hashes.Pieces(length, 1<<20),
	}, storetest.NewMemory(1<<20, length), swarm.JoinConfig{Name: "n", Leaser: leaseAll{}, Origins: []swarm.Origin{gated{content, gate}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m = &membership{session: session, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(m.ended)
		m.err = session.Run(ctx)
	}()
	return m, func() { close(gate) }
}

// leaseAll leases both pieces of a blob.
type leaseAll struct{}

func (leaseAll) Announce(context.Context, swarm.Report) (swarm.Reply, error) {
	return swarm.Reply{Leases: []swarm.Lease{{Piece: 0}, {Piece: 1}}, Interval: time.Hour}, nil
}

// gated is an origin that delivers once its gate is open.
type gated struct {
	content []byte
	gate    <-chan struct{}
}

func (g gated) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	select {
	case <-g.gate:
		return io.NopCloser(bytes.NewReader(g.content[off : off+n])), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestAwaitSegments(t *testing.T) {
	bt := newSwarm(t, 1, nil)
	defer func() {
		if err := bt.Close(); err != nil {
			t.Error(err)
		}
	}()
	var joined []*membership
	var bring []func()
	for i := range 4 {
		m, b := away(t, bt, uint64(i))
		joined, bring = append(joined, m), append(bring, b)
	}
	done := func(open int) <-chan error {
		ch := make(chan error, 1)
		go func() { ch <- awaitSegments(t.Context(), joined, open) }()
		return ch
	}
	if err := awaitSegments(t.Context(), joined, 4); err != nil {
		t.Errorf("all may be on their way: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitSegments(ctx, joined, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("too many, and the end: %v", err)
	}
	// The first one is the slowest.
	waiting := done(3)
	bring[2]()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	// One that ended will not come.
	waiting = done(2)
	joined[1].cancel()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	waiting = done(0)
	bring[0]()
	bring[3]()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	for i, m := range joined {
		if m.session.Missing() > 0 != (i == 1) {
			t.Errorf("segment %d misses %d pieces", i, m.session.Missing())
		}
		m.cancel()
		<-m.ended
	}
}

// wrongMirror describes a blob with a wrong byte, and sends it so until it has sent all of it.
type wrongMirror struct {
	t       *testing.T
	content []byte
	lies    bool // it describes the wrong bytes ever after

	mu    sync.Mutex
	wrong bool
	sent  int64
	asked int // for segments
}

func (w *wrongMirror) ServeHTTP(out http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	segments := strings.Contains(req.URL.Path, "/_shoal/segments/")
	content := w.content
	if w.wrong || segments && w.lies {
		content = bytes.Clone(content)
		content[len(content)/2] ^= 1
	}
	if segments {
		w.asked++
		var hasher model.PieceHasher
		if _, err := hasher.Write(content); err != nil {
			w.t.Error(err)
		}
		hashes, root := hasher.Sum()
		raw, err := model.SegmentList{Size: int64(len(content)), Segments: []model.Segment{{Root: root, Hashes: hashes}}}.MarshalJSON()
		if err != nil {
			w.t.Error(err)
		}
		_, _ = out.Write(raw)
		return
	}
	counted := &countingWriter{ResponseWriter: out}
	http.ServeContent(counted, req, "", time.Time{}, bytes.NewReader(content))
	if w.sent += counted.n; w.sent >= int64(len(content)) {
		w.wrong = false
	}
}

type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// join makes a node fetch the blob from the mirror.
func (w *wrongMirror) join() (*node, *seed) {
	w.t.Helper()
	w.content = make([]byte, aloneBelow+12345)
	storetest.Fill(w.content, 1)
	web := httptest.NewServer(w)
	w.t.Cleanup(web.Close)
	n := newRegion(w.t).idle(func(c *Config) { c.Origins = Origins{Mirrors: []string{strings.TrimPrefix(web.URL, "http://")}} })
	spec := store.Spec{Digest: digest.FromBytes(w.content), Size: int64(len(w.content))}
	p, err := n.seeds.acquire(w.t.Context(), spec, func() ([]*registry.Repository, error) {
		repos, _, err := n.cfg.Origins.open("registry.example.com/a:b")
		return repos, err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { n.seeds.release(p.seed) })
	if err := p.seed.await(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return n, p.seed
}

// TestMirrorMends shows that a mirror which had wrong bytes is asked anew what the right ones are.
func TestMirrorMends(t *testing.T) {
	w := &wrongMirror{t: t, wrong: true}
	w.join()
	w.mu.Lock()
	defer w.mu.Unlock()
	if size := int64(len(w.content)); w.asked != 2 || w.sent != 2*size {
		t.Errorf("the mirror was asked for segments %d times and sent %d bytes of %d", w.asked, w.sent, size)
	}
}

// TestMirrorThatLies shows that a wrong description costs the swarm and not the blob, also when the
// blob is mended.
func TestMirrorThatLies(t *testing.T) {
	w := &wrongMirror{t: t, lies: true}
	n, sd := w.join()
	flip(t, filepath.Join(n.dir, "store", "blobs", sd.key.String(), "data"), 1_000_000)
	answer := make(chan []int, 1)
	sd.scrub <- answer
	if bad := <-answer; len(bad) == 0 {
		t.Error("the damage was not found")
	}
	until(t, func() string {
		if err := sd.failure(); err != nil {
			t.Fatalf("the blob is given up: %v", err)
		}
		if !sd.isReady() || !sd.blob.Verified() {
			return "the blob is not mended"
		}
		return ""
	})
}
