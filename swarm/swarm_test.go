package swarm

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/lease"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// blob is random bytes and their Torrent.
type blob struct {
	bytes   []byte
	torrent Torrent
}

func newBlob(t *testing.T, size int, seed byte) blob {
	t.Helper()
	b := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{seed}).Read(b); err != nil {
		t.Fatal(err)
	}
	var hasher model.PieceHasher
	if _, err := hasher.Write(b); err != nil {
		t.Fatal(err)
	}
	layer, root := hasher.Sum()
	pieces := layer.Pieces(model.PieceLength(int64(size)), int64(size))
	return blob{b, Torrent{
		Digest: digest.FromBytes(b), Size: int64(size), Root: root, Pieces: pieces,
	}}
}

// memory is a Storage.
type memory struct {
	mu    sync.RWMutex
	bytes []byte
	have  []bool
	fail  error // of the next writes
}

func newMemory(t Torrent) *memory {
	return &memory{bytes: make([]byte, t.Size), have: make([]bool, len(t.Pieces))}
}

func (m *memory) ReadAt(b []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.NewReader(m.bytes).ReadAt(b, off)
}

func (m *memory) WriteAt(b []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.bytes[off:], b), nil
}

func (m *memory) Have(i int) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.have[i]
}

func (m *memory) MarkPiece(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have[i] = true
	return nil
}

func (m *memory) Bitmap() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	bits := make([]byte, (len(m.have)+7)/8)
	for i, has := range m.have {
		if has {
			bits[i/8] |= 0x80 >> (i % 8)
		}
	}
	return bits
}

// fill gives m the pieces for which keep is true.
func (m *memory) fill(b blob, keep func(i int) bool) {
	for i := range b.torrent.Pieces {
		if keep(i) {
			off, n := b.torrent.span(i)
			copy(m.bytes[off:off+n], b.bytes[off:])
			m.have[i] = true
		}
	}
}

// board is a tracker in the same process: the real lease table, without HTTP.
type board struct {
	mu    sync.Mutex
	table *lease.Table
	addrs map[string]string
	zones map[string]string
	told  map[string]int // of how many others each was told last
	down  atomic.Bool
	// noLeases makes it tell everyone about everyone and give no leases.
	noLeases bool
}

func newBoard(t Torrent) *board {
	return &board{
		table: lease.New(len(t.Pieces), lease.Config{}, time.Now()),
		addrs: map[string]string{},
		zones: map[string]string{},
		told:  map[string]int{},
	}
}

// leaser is one node's view of the board.
type leaser struct {
	*board
	name, addr string
	zone       string
	pieces     int
}

func (l *leaser) Announce(_ context.Context, r Report) (Reply, error) {
	if l.down.Load() {
		return Reply{}, errors.New("the tracker is down")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.table.Expire(now)
	if r.Left {
		l.table.Forget(l.name)
		delete(l.addrs, l.name)
		return Reply{}, nil
	}
	l.addrs[l.name], l.zones[l.name] = l.addr, l.zone
	have := lease.FullBitmap(l.pieces)
	if !r.Complete {
		var err error
		if have, err = lease.ParseBitmap(r.Have, l.pieces); err != nil {
			return Reply{}, err
		}
	}
	l.table.Report(l.name, l.zone, have, r.Open, r.Stuck, now)
	l.table.Doubt(l.name, r.Doubts, r.Alone)
	reply := Reply{Interval: 100 * time.Millisecond}
	if r.Want+r.WantImports > 0 && !l.noLeases {
		var leases []lease.Lease
		leases, reply.Retry = l.table.Grant(l.name, lease.Want{Origin: r.Want, Imports: r.WantImports}, now)
		for _, g := range leases {
			reply.Leases = append(reply.Leases, Lease{Piece: g.Piece, From: Peer{g.From, l.addrs[g.From]}})
		}
	}
	for name, addr := range l.addrs {
		if name != l.name && l.zones[name] == l.zone {
			reply.Peers = append(reply.Peers, Peer{Name: name, Addr: addr})
		}
	}
	l.told[l.name] = len(reply.Peers)
	return reply, nil
}

// origin serves a blob and counts.
type origin struct {
	bytes []byte
	sent  atomic.Int64
	err   atomic.Pointer[error]
	spoil atomic.Int64 // so many ranges come wrong
}

func (o *origin) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if err := o.err.Load(); err != nil {
		return nil, *err
	}
	o.sent.Add(n)
	part := o.bytes[off : off+n]
	if o.spoil.Add(-1) >= 0 {
		part = slices.Clone(part)
		part[n/2] ^= 1
	}
	return io.NopCloser(bytes.NewReader(part)), nil
}

// node is one member under test.
type node struct {
	name    string
	client  *Client
	storage *memory
	session *Session
	ended   chan error
	stop    context.CancelFunc
}

// swarmUnderTest makes nodes, each on an address of its own.
type swarmUnderTest struct {
	t      *testing.T
	blob   blob
	board  *board
	origin *origin
	zone   string        // of the nodes that are started next
	stall  time.Duration // of a border; 0 is the usual
	ca     string        // folder of a CA; "" is plain text
	nodes  []*node
}

func newSwarm(t *testing.T, size int) *swarmUnderTest {
	b := newBlob(t, size, 1)
	return &swarmUnderTest{t: t, blob: b, board: newBoard(b.torrent), origin: &origin{bytes: b.bytes}}
}

func (s *swarmUnderTest) client(name string) *Client {
	s.t.Helper()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", 10+len(s.nodes)))
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := Config{Listener: listener, Logger: slog.New(slog.DiscardHandler)}
	if s.ca != "" {
		cfg.ServerTLS, cfg.ClientTLS = s.certificates(name)
	}
	c, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.stall > 0 {
		c.border.stall = s.stall
	}
	return c
}

func (s *swarmUnderTest) certificates(name string) (server, client *tls.Config) {
	s.t.Helper()
	id, err := certs.ParseIdentity("node/" + name)
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	if err := certs.Issue(s.ca, dir, id); err != nil {
		s.t.Fatal(err)
	}
	bundle, err := certs.Load(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return bundle.Server("node"), bundle.Client("node")
}

// start adds a node that holds what keep says, with the given storage if not nil.
func (s *swarmUnderTest) start(keep func(i int) bool) *node {
	s.t.Helper()
	m := newMemory(s.blob.torrent)
	if keep != nil {
		m.fill(s.blob, keep)
	}
	return s.startWith(m)
}

func (s *swarmUnderTest) startWith(m *memory) *node {
	s.t.Helper()
	name := fmt.Sprintf("n%d", len(s.nodes))
	n := &node{name: name, client: s.client(name), storage: m, ended: make(chan error, 1)}
	session, err := n.client.Join(s.blob.torrent, m, JoinConfig{
		Name:    name,
		Leaser:  &leaser{board: s.board, name: name, zone: s.zone, addr: n.client.Addr(), pieces: len(s.blob.torrent.Pieces)},
		Origins: []Origin{s.origin},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	n.session = session
	ctx, stop := context.WithCancel(s.t.Context())
	n.stop = stop
	go func() { n.ended <- session.Run(ctx) }()
	s.nodes = append(s.nodes, n)
	return n
}

// close ends all nodes and returns their errors.
func (s *swarmUnderTest) close() {
	s.t.Helper()
	for _, n := range s.nodes {
		n.stop()
		if err := <-n.ended; err != nil {
			s.t.Errorf("%s: %v", n.name, err)
		}
		if err := n.client.Close(); err != nil {
			s.t.Errorf("%s: %v", n.name, err)
		}
	}
}

func (s *swarmUnderTest) wait(nodes ...*node) {
	s.t.Helper()
	for _, n := range nodes {
		select {
		case <-n.session.Done():
		case err := <-n.ended:
			s.t.Fatalf("%s ended: %v", n.name, err)
		case <-s.t.Context().Done():
			s.t.Fatal("time is up")
		}
		if !bytes.Equal(n.storage.bytes, s.blob.bytes) {
			s.t.Errorf("%s has other bytes", n.name)
		}
	}
}

const testSize = 12<<20 + 12345

func none(int) bool { return false }

func TestColdNodesReadTheOriginOnce(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%t", secure), func(t *testing.T) {
			s := newSwarm(t, testSize)
			if secure {
				s.ca = t.TempDir()
				if err := certs.CreateCA(s.ca); err != nil {
					t.Fatal(err)
				}
			}
			for range 4 {
				s.start(none)
			}
			s.wait(s.nodes...)
			if sent := s.origin.sent.Load(); sent != testSize {
				t.Errorf("the origin sent %d bytes of %d", sent, testSize)
			}
			for _, n := range s.nodes {
				if got := n.session.Stats(); got.Wasted > testSize/100 {
					t.Errorf("%s: %+v", n.name, got)
				}
			}
			s.close()
		})
	}
}

func TestOriginIsNotNeeded(t *testing.T) {
	cases := map[string]func(s *swarmUnderTest){
		"a node holds everything": func(s *swarmUnderTest) {
			s.start(func(int) bool { return true })
			s.start(none)
		},
		"no node holds everything": func(s *swarmUnderTest) {
			for k := range 3 {
				s.start(func(i int) bool { return i%3 == k })
			}
			s.start(none)
		},
	}
	for name, setup := range cases {
		t.Run(name, func(t *testing.T) {
			s := newSwarm(t, testSize)
			down := errors.New("connection refused")
			s.origin.err.Store(&down)
			setup(s)
			s.wait(s.nodes...)
			s.close()
		})
	}
}

func TestResumeFetchesOnlyTheRest(t *testing.T) {
	s := newSwarm(t, testSize)
	var rest int64
	held := func(i int) bool { return i%4 != 3 }
	for i := range s.blob.torrent.Pieces {
		if _, n := s.blob.torrent.span(i); !held(i) {
			rest += n
		}
	}
	s.wait(s.start(held))
	if sent := s.origin.sent.Load(); sent != rest {
		t.Errorf("the origin sent %d bytes, %d were missing", sent, rest)
	}
	s.close()
}

func TestTrackerLost(t *testing.T) {
	s := newSwarm(t, testSize)
	// They meet by the tracker, which gives no leases and then dies.
	s.board.noLeases = true
	for range 3 {
		s.start(none)
	}
	// Connections do not count: a node that was dialled does not know by whom, and shares need names.
	met := func() bool {
		s.board.mu.Lock()
		defer s.board.mu.Unlock()
		for _, others := range s.board.told {
			if others < 2 {
				return false
			}
		}
		return len(s.board.told) == 3
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !met() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the nodes did not meet")
		}
	}
	s.board.down.Store(true)
	s.wait(s.nodes...)
	if sent := s.origin.sent.Load(); sent > testSize*11/10 {
		t.Errorf("the origin sent %d bytes of %d", sent, testSize)
	}
	s.close()
}

func TestOriginThatLies(t *testing.T) {
	t.Run("now and then", func(t *testing.T) {
		s := newSwarm(t, testSize)
		s.origin.spoil.Store(2)
		s.wait(s.start(none))
		s.close()
	})
	t.Run("always", func(t *testing.T) {
		s := newSwarm(t, testSize)
		s.origin.spoil.Store(1 << 40)
		n := s.start(none)
		err := <-n.ended
		if _, ok := errors.AsType[*RootError](err); !ok {
			t.Errorf("got %v, want a RootError", err)
		}
		for i := range s.blob.torrent.Pieces {
			if n.storage.Have(i) {
				t.Errorf("piece %d counts as held", i)
			}
		}
		n.ended <- nil
		s.close()
	})
}

func TestPeerThatLies(t *testing.T) {
	s := newSwarm(t, testSize)
	// It says that it holds everything, and sends other bytes.
	liar := newMemory(s.blob.torrent)
	for i := range liar.have {
		liar.have[i] = true
	}
	s.startWith(liar)
	honest := []*node{s.start(none), s.start(none)}
	s.wait(honest...)
	s.close()
}

func TestDoubts(t *testing.T) {
	now := time.Now()
	later := func(d time.Duration) time.Time { return now.Add(d) }
	tr := newTrust()
	peers := []Peer{{"a", "10.0.0.1:1"}, {"b", "10.0.0.2:1"}, {"c", "[::1]:1"}}
	from := func(ip string) *net.TCPAddr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 9} }
	check := func(at time.Time, banned []string, want ...string) {
		t.Helper()
		if got := tr.doubts(peers, banned, at); !slices.Equal(got, want) {
			t.Errorf("at %v: doubts %v, want %v", at.Sub(now), got, want)
		}
	}
	check(now, nil)
	check(now, []string{"10.0.0.2", "10.0.0.9"}, "b")
	tr.delivered("conn", from("10.0.0.1"), later(time.Second))
	check(later(2500*time.Millisecond), nil, "b", "c")
	tr.gone("conn")
	tr.gone("other")
	check(later(2900*time.Millisecond), nil, "b", "c")
	check(later(3100*time.Millisecond), nil, "b", "c")
	tr.delivered("again", from("::1"), later(3200*time.Millisecond))
	// Who let us wait for a second is doubted four seconds later than who never gave anything.
	check(later(6900*time.Millisecond), nil, "b")
	check(later(7100*time.Millisecond), nil, "a", "b")
	// Nothing is kept of those who left; who comes back is new.
	tr.gone("again")
	peers = peers[:1]
	check(later(9*time.Second), []string{"10.0.0.2"}, "a")
	if len(tr.hosts) != 1 || len(tr.byConn) != 0 {
		t.Errorf("it keeps %v, %v", tr.hosts, tr.byConn)
	}
	peers = append(peers, Peer{"b", "10.0.0.2:1"})
	check(later(10*time.Second), nil, "a")
}

// TestPace: a peer that gives a block every few seconds is not doubted for it, one that stops is, and what it
// did long ago does not count.
func TestPace(t *testing.T) {
	now := time.Now()
	p := NewPace(now)
	for range 10 {
		now = now.Add(4 * time.Second)
		if p.Doubtful(now) && p.pause > 0 {
			t.Fatalf("doubted between its blocks: %+v", p)
		}
		p.Give(now)
	}
	if !p.Doubtful(now.Add(maxDoubtAfter + 1)) {
		t.Error("never doubted")
	}
	for range 50 {
		now = now.Add(10 * time.Millisecond)
		p.Give(now)
	}
	if p.Doubtful(now.Add(doubtAfter)) || !p.Doubtful(now.Add(doubtAfter+100*time.Millisecond)) {
		t.Errorf("after many quick blocks: %+v", p)
	}
}

func TestStorageThatFails(t *testing.T) {
	s := newSwarm(t, testSize)
	full := newMemory(s.blob.torrent)
	full.fail = errors.New("no space left on device")
	n := s.startWith(full)
	if err := <-n.ended; !errors.Is(err, full.fail) {
		t.Errorf("got %v", err)
	}
	n.ended <- nil
	s.close()
}

func TestRootsOfOneDigestAreTwoSwarms(t *testing.T) {
	a, b := newBlob(t, testSize, 1), newBlob(t, testSize, 2)
	b.torrent.Digest = a.torrent.Digest // a manifest that lies
	infoA, err := a.torrent.info()
	if err != nil {
		t.Fatal(err)
	}
	infoB, err := b.torrent.info()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(infoA, infoB) || a.torrent.Key() == b.torrent.Key() {
		t.Error("two roots, one swarm")
	}
}

func TestWrongWriteIsRefused(t *testing.T) {
	b := newBlob(t, 3<<20, 1)
	m := newMemory(b.torrent)
	p := newPieces(b.torrent, m, func(int) {}, func(err error) { t.Error(err) })
	_, length := b.torrent.span(0)
	if _, err := p.writeAt(0, b.bytes[:100], length-99); err == nil {
		t.Error("a write over the piece's end passed")
	}
	// Blocks that do not align with leaves, the last first.
	for at := length; at > 0; {
		n := min(at, 10_000)
		at -= n
		if _, err := p.writeAt(0, b.bytes[at:at+n], at); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.seal(0); err != nil {
		t.Fatal(err)
	}
	if _, err := p.writeAt(1, make([]byte, length), 0); err != nil {
		t.Fatal(err)
	}
	if err := p.seal(1); !errors.Is(err, errPiece) || m.Have(1) {
		t.Errorf("got %v", err)
	}
	// A late block of a sealed piece changes nothing.
	if _, err := p.writeAt(0, make([]byte, 100), 0); err != nil || !bytes.Equal(m.bytes[:100], b.bytes[:100]) {
		t.Errorf("the sealed piece changed, %v", err)
	}
	p.end()
	if _, err := p.writeAt(2, b.bytes[:10], 0); !errors.Is(err, errEnded) {
		t.Errorf("a write after the end: %v", err)
	}
}
