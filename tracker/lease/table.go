// Package lease decides which node fetches which piece of a blob from the origin.
//
// A Table is the state of one swarm. The tracker feeds it what nodes report (Report), asks it for
// pieces on their behalf (Grant) and lets it notice who is gone (Expire). It promises that
//
//   - a piece that no live node holds is leased to one node at a time, in order, so the origin
//     sends it once; exceptions are counted and bounded (see Grant);
//   - shares stay even and follow how fast a node's pieces spread, because a node that leases more
//     than it can pass on delays everyone, and there is no global cap, because the origin would idle;
//   - no piece is left behind while a live node asks: what a node dropped, died with, hangs on or
//     lies about is leased again.
//
// It is a plain data structure: time is passed in, there are no goroutines and no locks. The
// caller serializes calls and passes times that do not go backwards.
package lease

import (
	"container/list"
	"math/bits"
	"slices"
	"time"
)

// kind is why a lease was given.
type kind int

const (
	first   kind = iota // nobody held the piece or leased it
	second              // the lease of a slow node was given again at the end
	rescue              // a node cannot get the piece from those who announce it
	adopted             // a node listed it as open, and we did not know: we were restarted
)

// lease is one node's right to fetch one piece from the origin.
type lease struct {
	node    *node
	piece   int
	kind    kind
	seq     uint64    // order of granting
	granted time.Time // or adopted
	listed  time.Time // when the node last listed it as open; granted before that
	lapsed  bool      // it does not keep the piece from others, though the node still has it open
	elem    *list.Element
}

// fetched is a piece that a node fetched and that has not spread yet.
type fetched struct {
	piece  int
	others int       // nodes that lacked pieces when it was fetched: who came later says nothing about its way
	until  time.Time // when it stops to count: broken peers must not starve the origin
}

// node is one live member of the swarm.
type node struct {
	name    string
	have    set
	held    int       // pieces in have
	seen    time.Time // last report
	whole   time.Time // last report that had all of have
	open    map[int]*lease
	spread  []fetched
	stuck   []int
	doubts  []string      // nodes that give it nothing, whatever they announce
	fetch   time.Duration // moving average of its fetch times, 0 before the first
	asked   time.Time
	active  bool // counts in the fair share
	share   int  // pieces granted, corrected by entryShare
	waiting time.Time
}

// Table is the lease state of one swarm. New makes it.
type Table struct {
	cfg        Config
	pieces     int
	grantAfter time.Time

	nodes    map[string]*node
	complete int     // nodes that hold every piece
	holders  []int32 // live nodes that hold a piece
	leases   []int32 // open leases of a piece that have not lapsed
	free     set     // pieces without holders and leases
	cursor   int     // no piece below it is free
	open     *list.List
	seq      uint64

	times   fetchTimes
	ripe    passed       // evidence older than patience
	unripe  []completion // younger, oldest first
	rescued map[int]time.Time
	seconds map[int]time.Time // pieces given a second time at the end, and when last

	active   int
	shares   int // sum over active nodes
	nextLook time.Time
	scratch  set
	stats    Stats
}

// Stats are a Table's counts. Nodes, Complete, Held and Leased are of now, the others only grow.
type Stats struct {
	Pieces   int           `json:"pieces"`
	Held     int           `json:"held"`     // pieces that at least one live node holds
	Leased   int           `json:"leased"`   // open leases, lapsed ones too
	Nodes    int           `json:"nodes"`    // live nodes
	Complete int           `json:"complete"` // live nodes that hold every piece
	Granted  int           `json:"granted"`  // leases of pieces that nobody held
	Seconds  int           `json:"seconds"`  // leases given a second time at the end
	Rescues  int           `json:"rescues"`  // leases of pieces whose holders do not deliver
	Adopted  int           `json:"adopted"`  // leases taken over from a tracker before us
	Lapsed   int           `json:"lapsed"`   // leases that the origin went past
	Dropped  int           `json:"dropped"`  // leases that a node gave up
	Lost     int           `json:"lost"`     // leases of nodes that left or died
	Fetch    time.Duration `json:"fetch_ns"` // median time from a lease to its piece
}

// New returns the Table of a swarm of pieces pieces that grants nothing before grantAfter. The
// zero grantAfter is right unless a tracker before us may have given leases that are still open.
func New(pieces int, cfg Config, grantAfter time.Time) *Table {
	t := &Table{
		cfg:        cfg.withDefaults(),
		pieces:     pieces,
		grantAfter: grantAfter,
		nodes:      map[string]*node{},
		holders:    make([]int32, pieces),
		leases:     make([]int32, pieces),
		free:       newSet(pieces),
		open:       list.New(),
		rescued:    map[int]time.Time{},
		seconds:    map[int]time.Time{},
		scratch:    newSet(pieces),
	}
	for i := range pieces {
		t.free.add(i)
	}
	return t
}

// GrantAfter puts off every grant until at: the caller learned that a tracker before us may have
// given leases. What was granted stays granted.
func (t *Table) GrantAfter(at time.Time) { t.grantAfter = at }

// Stats returns the counts.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Pieces, s.Nodes, s.Complete = t.pieces, len(t.nodes), t.complete
	s.Leased, s.Fetch = t.open.Len(), t.times.get()
	return s
}

// Live reports whether the node is a live member.
func (t *Table) Live(name string) bool { return t.nodes[name] != nil }

// Complete reports whether the node is a live member that holds every piece.
func (t *Table) Complete(name string) bool {
	n := t.nodes[name]
	return n != nil && n.held == t.pieces
}

// Report takes over what a node says about itself: the pieces it holds, the leases it works on,
// and the pieces that others announce and it cannot get. Pieces out of range are ignored, as are
// more open leases than Config.MaxOpen. A piece in have ends the node's lease of it.
func (t *Table) Report(name string, have Bitmap, open, stuck []int, now time.Time) {
	n := t.nodes[name]
	if n == nil {
		n = &node{name: name, have: newSet(t.pieces), open: map[int]*lease{}, whole: now}
		t.nodes[name] = n
	}
	n.seen = now
	t.hold(n, have, now)
	t.renew(n, open, now)
	n.stuck = n.stuck[:0]
	for _, p := range stuck {
		if t.valid(p) && !n.have.has(p) {
			n.stuck = append(n.stuck, p)
		}
	}
}

// Doubt notes which nodes give the named one nothing: what only they hold is leased to it as if nobody
// held it. It replaces the names of an earlier call; the caller bounds their number, which a grant's
// cost grows with. They are one node's word and mean nothing for the others, so that a liar can shut
// out nobody.
func (t *Table) Doubt(name string, others []string) {
	if n := t.nodes[name]; n != nil {
		n.doubts = append(n.doubts[:0], others...)
	}
}

func (t *Table) valid(p int) bool { return p >= 0 && p < t.pieces }

// hold replaces the pieces of n. A report that lacks some of them is believed only when none has
// had them all for as long as messages may cross: an overtaken heartbeat must not free a piece
// that was just fetched.
func (t *Table) hold(n *node, have Bitmap, now time.Time) {
	next := t.scratch
	next.load(have)
	switch {
	case next.contains(n.have):
		n.whole = now
	case now.Sub(n.whole) <= t.cfg.crossing():
		for w := range next {
			next[w] |= n.have[w]
		}
	default:
		n.whole = now
	}
	was := n.held == t.pieces
	for w := range next {
		for changed := next[w] ^ n.have[w]; changed != 0; {
			bit := bits.LeadingZeros64(changed)
			changed &^= 1 << (63 - bit)
			t.turn(n, w*64+bit, next.has(w*64+bit), now)
		}
	}
	t.scratch, n.have = n.have, next
	if is := n.held == t.pieces; is != was {
		if is {
			t.complete++
			t.deactivate(n)
		} else {
			t.complete--
		}
	}
}

// turn counts that n now holds p, or no longer does.
func (t *Table) turn(n *node, p int, holds bool, now time.Time) {
	if !holds {
		n.held--
		t.unhold(p)
		return
	}
	n.held++
	t.holders[p]++
	if t.holders[p] == 1 {
		t.stats.Held++
	}
	if l := n.open[p]; l != nil {
		t.finish(l, now)
	}
	t.settle(p)
}

func (t *Table) unhold(p int) {
	t.holders[p]--
	if t.holders[p] == 0 {
		t.stats.Held--
	}
	t.settle(p)
}

// finish ends a lease whose piece its node now holds.
func (t *Table) finish(l *lease, now time.Time) {
	took := now.Sub(l.granted)
	if l.kind != adopted { // an adopted lease began before we knew of it
		t.times.add(took)
		if l.node.fetch == 0 {
			l.node.fetch = took
		}
		l.node.fetch += (took - l.node.fetch) / 4
	}
	t.remove(l)
	l.node.spread = append(l.node.spread, fetched{l.piece, t.others(l.node), now.Add(t.cfg.patience(took))})
	t.unripe = append(t.unripe, completion{l.piece, l.seq, now})
	if l.kind == rescue {
		// The others who are stuck at the piece now have somebody to get it from.
		t.rescued[l.piece] = now.Add(t.cfg.patience(took))
	}
}

// others returns how many nodes beside n lack pieces.
func (t *Table) others(n *node) int {
	others := len(t.nodes) - t.complete
	if n.held < t.pieces {
		others--
	}
	return others
}

// renew compares the leases of n with those that it says it works on.
func (t *Table) renew(n *node, open []int, now time.Time) {
	for _, p := range open {
		switch {
		case !t.valid(p) || n.have.has(p):
		case n.open[p] != nil:
			n.open[p].listed = now
		case len(n.open) < t.cfg.MaxOpen:
			t.lease(n, p, adopted, now)
			t.stats.Adopted++
		}
	}
	var dropped []*lease
	for _, l := range n.open {
		if now.Sub(l.listed) > t.cfg.crossing() {
			dropped = append(dropped, l)
		}
	}
	for _, l := range dropped {
		t.stats.Dropped++
		t.drop(l)
	}
}

// lease opens a lease.
func (t *Table) lease(n *node, p int, k kind, now time.Time) {
	t.seq++
	l := &lease{node: n, piece: p, kind: k, seq: t.seq, granted: now, listed: now}
	l.elem = t.open.PushBack(l)
	n.open[p] = l
	t.leases[p]++
	t.settle(p)
}

// remove ends a lease.
func (t *Table) remove(l *lease) {
	t.open.Remove(l.elem)
	delete(l.node.open, l.piece)
	if !l.lapsed {
		t.leases[l.piece]--
		t.settle(l.piece)
	}
}

// drop ends a lease without its piece.
func (t *Table) drop(l *lease) {
	t.remove(l)
	if l.kind == rescue {
		delete(t.rescued, l.piece)
	}
}

// settle notes whether p is free.
func (t *Table) settle(p int) {
	if t.holders[p] > 0 || t.leases[p] > 0 {
		t.free.remove(p)
		return
	}
	t.free.add(p)
	t.cursor = min(t.cursor, p)
}

// Forget removes a node that leaves; its leases, and the pieces that nobody else holds, are free.
func (t *Table) Forget(name string) {
	n := t.nodes[name]
	if n == nil {
		return
	}
	delete(t.nodes, name)
	t.deactivate(n)
	if n.held == t.pieces {
		t.complete--
	}
	for p := n.have.next(0); p >= 0; p = n.have.next(p + 1) {
		t.unhold(p)
	}
	for _, l := range n.open {
		t.stats.Lost++
		t.drop(l)
	}
}

// Expire forgets the nodes that have missed three reports, and returns their names, and lets the
// leases lapse that the origin went past. It is cheap when called more often than needed, and
// meant to be called before each Report and Grant.
func (t *Table) Expire(now time.Time) (lost []string) {
	if now.Before(t.nextLook) {
		return nil
	}
	t.nextLook = now.Add(t.cfg.Interval / 5)
	for name, n := range t.nodes {
		if now.Sub(n.seen) > t.cfg.lostAfter(n.held == t.pieces) {
			lost = append(lost, name)
		} else if n.active && now.Sub(n.asked) > max(2*time.Second, 4*t.times.get()) {
			t.deactivate(n) // it is slow, and the others are not held back for it
		}
	}
	slices.Sort(lost)
	for _, name := range lost {
		t.Forget(name)
	}
	t.lapse(now)
	return lost
}

// lapse frees the pieces of leases that the origin went past: one of a higher piece that was
// granted later has been complete for longer than we are patient. While the origin itself stalls
// nothing completes, so nothing lapses.
func (t *Table) lapse(now time.Time) {
	patience := t.cfg.patience(t.times.get())
	i := 0
	for ; i < len(t.unripe) && now.Sub(t.unripe[i].at) > patience; i++ {
		t.ripe.add(t.unripe[i])
	}
	t.unripe = slices.Delete(t.unripe, 0, i)
	for e := t.open.Front(); e != nil; e = e.Next() {
		l := e.Value.(*lease)
		if !l.lapsed && t.ripe.beyond(l.piece, l.seq) {
			l.lapsed = true
			t.leases[l.piece]--
			t.settle(l.piece)
			t.stats.Lapsed++
		}
	}
}
