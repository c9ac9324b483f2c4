package swarm

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/anacrolix/torrent"

	"github.com/shoal-project/shoal/internal/rendezvous"
)

const (
	// beforeReply is the interval until the tracker has named one.
	beforeReply = 500 * time.Millisecond
	// minRetry keeps a tracker's Retry from becoming a flood.
	minRetry = 10 * time.Millisecond
	// announceTimeout is how long one announce may take.
	announceTimeout = 3 * time.Second
	// trackerLost is after how long without an answer the node goes on by rendezvous shares.
	trackerLost = 3 * time.Second
	// anyPiece is after how long without any progress and without a tracker a node takes pieces
	// out of the others' shares too.
	anyPiece = 10 * time.Second
	// backOffMax bounds the wait after failed announces.
	backOffMax = 5 * time.Second
	// originRest is the first wait after a lease that no origin could fill; it doubles up to
	// backOffMax.
	originRest = 500 * time.Millisecond
	// reconnect is how often known peers are offered to the library again: it forgets those that
	// it could not reach.
	reconnect = 5 * time.Second
	// maxDialled is how many peers a node dials. The library has room for 50 connections of a blob, and each takes
	// a place at both its ends: if those who are there first filled them with each other, nobody would
	// let in who comes later, and what that one fetches would never come out.
	maxDialled = 24
)

// coordinator is the one goroutine that asks for leases, hands them to the fetchers and reports.
type coordinator struct {
	s       *Session
	origin  lane
	imports lane
	results chan result

	peers     map[string]string // address by name
	near      []Peer            // of the last reply that named any
	connectAt time.Time
	dialled   []string // addresses that the library was told of, without those that were not connected at connectAt
	interval  time.Duration
	answered  time.Time // the tracker's last answer, or the start
	failures  int       // announces in a row without an answer
	restUntil time.Time // no lease from the origin is asked for before, because the origins fail
	rest      time.Duration
	askAt     time.Time // requests for stuck pieces are not taken back before
	askWait   time.Duration
}

// lane is the leases of one kind: an origin that lets the node wait must not keep it from what other zones have.
type lane struct {
	jobs chan Lease // to the fetchers; never full, as at most fetchers leases are open
	open []int
}

func (l *lane) free() int { return fetchers - len(l.open) }

func newCoordinator(s *Session) *coordinator {
	return &coordinator{
		s: s, origin: lane{jobs: make(chan Lease, fetchers)}, imports: lane{jobs: make(chan Lease, fetchers)},
		results: make(chan result, 2*fetchers), peers: map[string]string{}, interval: beforeReply, answered: time.Now(),
	}
}

// lane returns where l belongs.
func (c *coordinator) lane(l Lease) *lane {
	if l.From.Addr != "" {
		return &c.imports
	}
	return &c.origin
}

func (c *coordinator) run(ctx context.Context) error {
	done := c.s.Done()
	timer := time.NewTimer(0) // the first announce at once
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-c.results:
			c.finish(r)
			for len(c.results) > 0 { // one announce for all that ended
				c.finish(<-c.results)
			}
		case <-done:
			done = nil
			c.s.log.Debug("every piece is there")
		case <-timer.C:
		}
		timer.Reset(c.step(ctx))
	}
}

// finish takes the end of a lease.
func (c *coordinator) finish(r result) {
	lane := c.lane(r.lease)
	lane.open = slices.DeleteFunc(lane.open, func(i int) bool { return i == r.lease.Piece })
	c.s.setLeased(r.lease.Piece, false)
	if r.err == nil {
		c.rest = 0
		return
	}
	c.rest = min(max(originRest, 2*c.rest), backOffMax)
	c.restUntil = time.Now().Add(jitter(c.rest))
	c.s.trouble(r.err)
	c.s.log.Warn("no origin delivers a leased piece", "piece", r.lease.Piece, "err", r.err)
}

// step announces once and returns when to do it again.
func (c *coordinator) step(ctx context.Context) time.Duration {
	now := time.Now()
	report := c.report(now)
	call, cancel := context.WithTimeout(ctx, announceTimeout)
	reply, err := c.s.cfg.Leaser.Announce(call, report)
	cancel()
	if ctx.Err() != nil {
		return c.interval
	}
	now = time.Now()
	if err != nil {
		return c.withoutTracker(now, err)
	}
	if c.failures > 0 {
		c.s.log.Info("the tracker answers again", "dur", now.Sub(c.answered))
	}
	c.answered, c.failures = now, 0
	if reply.Interval > 0 {
		c.interval = reply.Interval
	}
	for _, p := range reply.Peers {
		c.peers[p.Name] = p.Addr
	}
	if len(reply.Peers) > 0 {
		c.near = reply.Peers
	}
	c.connect(now, len(reply.Peers) > 0)
	if reply.Share {
		c.takeShare(now, reply.Peers)
		return c.interval
	}
	for _, l := range reply.Leases {
		c.begin(l)
	}
	wait := c.interval
	// Asked for and not given: a piece may become free well before the next heartbeat.
	if origin, imports := c.want(now); origin+imports > 0 && reply.Retry > 0 {
		wait = min(wait, max(minRetry, reply.Retry))
	}
	if rest := c.restUntil.Sub(now); rest > 0 {
		wait = min(wait, rest)
	}
	return wait
}

// want is how many leases of each kind the node can begin now.
func (c *coordinator) want(now time.Time) (origin, imports int) {
	if c.s.pieces.complete() {
		return 0, 0
	}
	if !now.Before(c.restUntil) && len(c.s.cfg.Origins) > 0 {
		origin = c.origin.free()
	}
	return origin, c.imports.free()
}

func (c *coordinator) report(now time.Time) Report {
	r := Report{Open: slices.Concat(c.origin.open, c.imports.open)}
	r.Want, r.WantImports = c.want(now)
	if r.Complete = c.s.pieces.complete(); r.Complete {
		return r
	}
	r.Have = c.s.pieces.store.Bitmap()
	r.Stuck = c.s.offers.stuck(time.Unix(0, max(c.s.lastPiece.Load(), c.s.lastBlock.Load())), now)
	c.askAgain(r.Stuck, now)
	r.Doubts = append(c.s.sources.doubts(now), c.s.trust.doubts(c.near, c.s.client.bt.BadPeerIPs(), now)...)
	r.Alone = c.s.sources.unreachable(now)
	return r
}

// askAgain has the requests for stuck pieces taken back and made anew, less and less often: on a slow
// link, where a block takes long, they must not be taken back for ever.
func (c *coordinator) askAgain(stuck []int, now time.Time) {
	if len(stuck) == 0 {
		c.askWait = 0
		return
	}
	if c.askWait > 0 && now.Before(c.askAt) {
		return
	}
	c.askWait = min(max(silentAfter, 2*c.askWait), time.Minute)
	c.askAt = now.Add(c.askWait)
	c.s.askAgain(stuck)
}

// begin hands l to the fetchers, unless it makes no sense.
func (c *coordinator) begin(l Lease) {
	i, lane := l.Piece, c.lane(l)
	if i < 0 || i >= len(c.s.torrent.Pieces) || c.s.pieces.store.Have(i) ||
		slices.Contains(c.origin.open, i) || slices.Contains(c.imports.open, i) || lane.free() == 0 {
		return
	}
	lane.open = append(lane.open, i)
	c.s.setLeased(i, true)
	lane.jobs <- l
}

// connect tells the library of known peers that are not connected, of any, until it was told of enough. New ones
// are told of at once. Two that dial each other at the same moment have two connections: to have the library drop
// one by its peer id would let a node that copies another's id cut that one off.
func (c *coordinator) connect(now time.Time, news bool) {
	again := !now.Before(c.connectAt)
	if !again && !news {
		return
	}
	linked := c.s.linked()
	if again {
		c.connectAt = now.Add(reconnect)
		c.dialled = slices.DeleteFunc(c.dialled, func(addr string) bool { return !slices.Contains(linked, addr) })
	}
	addrs := slices.Collect(maps.Values(c.peers))
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	var infos []torrent.PeerInfo
	for _, addr := range addrs {
		if len(c.dialled) < maxDialled && !slices.Contains(linked, addr) && !slices.Contains(c.dialled, addr) {
			c.dialled = append(c.dialled, addr)
			infos = append(infos, torrent.PeerInfo{Addr: torrent.StringAddr(addr)})
		}
	}
	if len(infos) > 0 {
		c.s.bt.AddPeers(infos)
	}
}

// withoutTracker goes on after an announce without an answer, and returns when to try again.
func (c *coordinator) withoutTracker(now time.Time, err error) time.Duration {
	if c.failures == 0 {
		c.s.log.Warn("the tracker does not answer", "err", err)
	}
	c.failures++
	c.connect(now, false)
	if now.Sub(c.answered) > trackerLost {
		known := make([]Peer, 0, len(c.peers))
		for name, addr := range c.peers {
			known = append(known, Peer{name, addr})
		}
		c.takeShare(now, known)
	}
	if len(c.origin.open) > 0 && c.origin.free() > 0 {
		return beforeReply
	}
	return jitter(min(beforeReply<<min(c.failures, 10), backOffMax))
}

// takeShare begins pieces that nobody offers and that are this node's by rendezvous hash over itself
// and others: all nodes that know the same members take disjoint pieces without a word.
func (c *coordinator) takeShare(now time.Time, others []Peer) {
	names := []string{c.s.cfg.Name}
	for _, p := range others {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	quiet := now.Sub(time.Unix(0, c.s.lastPiece.Load())) > anyPiece
	for i := range c.s.torrent.Pieces {
		if origin, _ := c.want(now); origin == 0 {
			return
		}
		if c.s.pieces.store.Have(i) || c.s.offers.isOffered(i) && !quiet {
			continue
		}
		if quiet || rendezvous.Owner(strconv.Itoa(i)+"/"+c.s.torrent.Digest.Encoded(), names) == c.s.cfg.Name {
			c.begin(Lease{Piece: i})
		}
	}
}

// sayGoodbye frees the node's leases at once. ctx has ended.
func (c *coordinator) sayGoodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := c.s.cfg.Leaser.Announce(ctx, Report{Left: true}); err != nil {
		c.s.log.Debug("the tracker did not hear that the node left", "err", err)
	}
}
