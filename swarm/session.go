package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	"golang.org/x/sync/errgroup"
)

// Leaser is where a node says what it holds of one blob and learns which pieces it alone of its zone should
// fetch, from the origin or from another zone. The tracker's client is one; errors are waited out.
type Leaser interface {
	Announce(ctx context.Context, r Report) (Reply, error)
}

// Report is what a node says of itself; it repeats everything each time.
type Report struct {
	Have     []byte // held pieces in BEP 3's bit order; nil when Complete
	Complete bool
	Open     []int    // leases that it works on
	Stuck    []int    // pieces that peers offer and do not deliver
	Doubts   []string // names of peers that give it nothing: sources, and those of the last reply that named any
	Alone    bool     // it cannot reach other zones
	Left     bool     // it leaves the swarm

	// Want is how many leases from the origin it can begin now, WantImports how many from other zones.
	Want, WantImports int
}

// Lease is a piece that a node alone of its zone fetches.
type Lease struct {
	Piece int
	From  Peer // of another zone; the zero value is the origin
}

// Reply answers a Report.
type Reply struct {
	Leases   []Lease
	Retry    time.Duration // when to ask again for leases that were wanted and not given; 0 means Interval
	Interval time.Duration // when to report again at the latest
	Peers    []Peer        // others of the zone to connect to; those of earlier replies stay known
	// Share says that nobody gives leases: the node takes its own share of the pieces, by rendezvous
	// hash among itself and Peers, which are then all that take part.
	Share bool
}

// Peer is another node of the swarm.
type Peer struct {
	Name string
	Addr string // IP:port
}

// Origin reads a range of the blob from where it came from. It repeats by itself what is worth
// repeating; an error means that this origin cannot deliver now.
type Origin interface {
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// JoinConfig is what a Session needs beside the blob and its place.
type JoinConfig struct {
	// Name is this node's name among Peers, by which shares are drawn when nobody gives leases.
	Name   string
	Leaser Leaser
	// Origins are tried in this order, the first again after each success elsewhere has aged.
	Origins []Origin
}

// Stats counts a Session's body bytes.
type Stats struct {
	Origin   int64 // read from origins
	Peers    int64 // received from peers, of any zone
	Imported int64 // of Peers: on leases, from other zones
	Sent     int64 // sent to peers, of any zone
	Wasted   int64 // of Origin and Peers: received twice, or wrong
}

// Session is one node's part in one swarm.
type Session struct {
	client  *Client
	log     *slog.Logger
	torrent Torrent
	cfg     JoinConfig
	hash    metainfo.Hash
	pieces  *pieces
	offers  *offers
	trust   *trust
	bt      *torrent.Torrent
	origins originChoice
	sources sources
	failed  chan error // the first fatal error

	atStart     int64 // bytes held at the start
	originBytes atomic.Int64
	imported    atomic.Int64 // bytes from other zones
	exported    atomic.Int64 // bytes to other zones
	lastPiece   atomic.Int64 // UnixNano of the last new piece, or of the start
	lastBlock   atomic.Int64 // UnixNano of the last block from a peer
	final       atomic.Pointer[Stats]

	mu     sync.Mutex
	leased map[int]bool // being fetched from an origin
	links  map[*torrent.Peer]*link
	why    error // of the last failure that is waited out
}

// Join makes the node a member of the blob's swarm. Whatever storage holds is offered to the peers
// at once; the rest comes when Run is called, which has to be.
func (c *Client) Join(t Torrent, storage Storage, cfg JoinConfig) (*Session, error) {
	if err := t.validate(); err != nil {
		return nil, err
	}
	info, err := t.info()
	if err != nil {
		return nil, err
	}
	s := &Session{
		client: c, log: c.log.With("digest", t.Digest), torrent: t, cfg: cfg,
		hash: metainfo.HashBytes(info), offers: newOffers(len(t.Pieces)), trust: newTrust(),
		failed: make(chan error, 1), leased: map[int]bool{}, links: map[*torrent.Peer]*link{},
	}
	s.pieces = newPieces(t, storage, s.onPiece, s.fail)
	s.lastPiece.Store(time.Now().UnixNano())
	for i := range t.Pieces {
		if storage.Have(i) {
			_, n := t.span(i)
			s.atStart += n
		}
	}
	// Registered first: the library may connect, and peers may offer, before AddTorrentOpt returns.
	c.mu.Lock()
	if c.sessions[s.hash] != nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("blob %s: the node is in its swarm already", t.Digest)
	}
	c.sessions[s.hash] = s
	c.mu.Unlock()
	s.bt, _ = c.bt.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash:                 s.hash,
		Storage:                  s.pieces,
		InfoBytes:                info,
		ChunkSize:                BlockSize,
		DisableInitialPieceCheck: true,
	})
	if s.bt.Info() == nil {
		s.leave()
		return nil, fmt.Errorf("blob %s: the torrent library refused its info", t.Digest)
	}
	s.wantOne()
	return s, nil
}

// wantOne wants the last missing piece, the one that is leased last, whoever has it: while a node
// neither holds nor wants anything the library dials nobody and accepts nobody.
func (s *Session) wantOne() {
	for i := range slices.Backward(s.torrent.Pieces) {
		if !s.pieces.store.Have(i) {
			s.bt.DownloadPieces(i, i+1)
			return
		}
	}
}

// askAgain takes back the library's requests for pieces and wants them anew: it would leave a request
// with a peer that does not answer, also where others hold the piece.
func (s *Session) askAgain(pieces []int) {
	for _, i := range pieces {
		s.bt.CancelPieces(i, i+1)
		s.bt.DownloadPieces(i, i+1)
	}
}

func (s *Session) leave() {
	s.bt.Drop()
	s.pieces.end()
	s.client.mu.Lock()
	delete(s.client.sessions, s.hash)
	s.client.mu.Unlock()
}

// Run fetches the missing pieces, serves the held ones, and reports, until ctx ends, which is no
// error. It returns early only for what nobody else can mend: an error of the Storage, or a
// *RootError. Done tells when every piece is there.
func (s *Session) Run(ctx context.Context) error {
	group, work := errgroup.WithContext(ctx)
	co := newCoordinator(s)
	for range fetchers {
		group.Go(func() error { return s.fetchLoop(work, co.origin.jobs, co.results) })
		group.Go(func() error { return s.fetchLoop(work, co.imports.jobs, co.results) })
	}
	group.Go(func() error { return s.wantLoop(work) })
	group.Go(func() error { return s.partLoop(work) })
	group.Go(func() error { return co.run(work) })
	group.Go(func() error {
		select {
		case err := <-s.failed:
			return err
		case <-work.Done():
			return nil
		}
	})
	err := group.Wait()
	final := s.Stats()
	s.final.Store(&final)
	s.leave()
	co.sayGoodbye(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// Done is closed when the storage holds every piece.
func (s *Session) Done() <-chan struct{} { return s.pieces.done }

// Missing returns how many pieces are not there yet.
func (s *Session) Missing() int { return int(s.pieces.missing.Load()) }

// Trouble returns why nothing comes at the moment, nil while all is well.
func (s *Session) Trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

func (s *Session) trouble(err error) {
	s.mu.Lock()
	s.why = err
	s.mu.Unlock()
}

// Stats returns the counts so far.
func (s *Session) Stats() Stats {
	if f := s.final.Load(); f != nil {
		return *f
	}
	counts := s.bt.Stats()
	out := Stats{
		Origin:   s.originBytes.Load(),
		Peers:    counts.BytesReadData.Int64() + s.imported.Load(),
		Imported: s.imported.Load(),
		Sent:     counts.BytesWrittenData.Int64() + s.exported.Load(),
	}
	if s.pieces.complete() {
		out.Wasted = max(0, out.Origin+out.Peers-(s.torrent.Size-s.atStart))
	}
	return out
}

func (s *Session) onPiece(i int) {
	s.lastPiece.Store(time.Now().UnixNano())
	s.offers.got(i)
	s.trouble(nil)
}

func (s *Session) fail(err error) {
	select {
	case s.failed <- err:
	default: // an earlier error is on its way
	}
}

// wantLoop asks peers for what they offer, piece by piece as the offers come.
func (s *Session) wantLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.offers.news:
		}
		now := time.Now()
		begin, end := -1, -1
		flush := func() {
			if begin >= 0 {
				s.bt.DownloadPieces(begin, end)
			}
		}
		for _, i := range s.offers.take() {
			if s.pieces.store.Have(i) || s.isLeased(i) {
				continue
			}
			s.offers.want(i, now)
			if i != end {
				flush()
				begin = i
			}
			end = i + 1
		}
		flush()
	}
}

// partLoop ends the connections to peers that miss nothing, once this node misses nothing either: that
// makes room for those that need something.
func (s *Session) partLoop(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.Done():
	}
	for {
		for _, peer := range s.offers.complete() {
			if conn, ok := peer.(io.Closer); ok {
				_ = conn.Close() // the library has no error to give
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.offers.whole:
		}
	}
}

// link is what is known of a connected peer.
type link struct {
	addr   string  // that it can be dialled at, "" where it does not say
	window *Window // guarded by the library's lock
}

func (s *Session) link(peer *torrent.Peer, l *link) {
	s.mu.Lock()
	s.links[peer] = l
	s.mu.Unlock()
}

func (s *Session) unlink(peer *torrent.Peer) {
	s.mu.Lock()
	delete(s.links, peer)
	s.mu.Unlock()
}

// windowOf returns the window of a connected peer, nil before it has introduced itself.
func (s *Session) windowOf(peer *torrent.Peer) *Window {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.links[peer]; l != nil {
		return l.window
	}
	return nil
}

// linked returns the addresses of the connected peers.
func (s *Session) linked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, l := range s.links {
		if l.addr != "" {
			out = append(out, l.addr)
		}
	}
	return out
}

func (s *Session) isLeased(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leased[i]
}

func (s *Session) setLeased(i int, on bool) {
	s.mu.Lock()
	if on {
		s.leased[i] = true
	} else {
		delete(s.leased, i)
	}
	s.mu.Unlock()
	if !on && !s.pieces.store.Have(i) {
		s.offers.again(i)
	}
}
