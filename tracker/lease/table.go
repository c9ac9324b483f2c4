// Package lease decides which node fetches which piece of a blob from where.
//
// A Table is the state of one swarm. The tracker feeds it what nodes report (Report), asks it for
// pieces on their behalf (Grant) and lets it notice who is gone (Expire). Nodes trade pieces with
// all others of their zone by themselves; what a zone lacks comes in by leases: from the origin
// where no zone has it, from one node of another zone otherwise. It promises that
//
//   - a piece that no live node holds is leased to one node at a time, in order, so the origin
//     sends it once, and a piece that only other zones hold to one node of each zone that lacks it, so
//     that it crosses a border once; exceptions are counted and bounded (see Grant);
//   - shares stay even within a zone and follow how fast a node's pieces spread there, because a node that
//     leases more than it can pass on delays everyone, and there is no global cap, because the origin would
//     idle; a slow zone holds no other one up;
//   - no piece is left behind while a live node asks: what a node dropped, died with, hangs on or
//     lies about is leased again.
//
// It is a plain data structure: time is passed in, there are no goroutines and no locks. The
// caller serializes calls and passes times that do not go backwards.
package lease

import (
	"math/bits"
	"slices"
	"time"
)

// Lease is a piece that a node alone of its zone should fetch.
type Lease struct {
	Piece int
	From  string // the node of another zone that has it; "" is the origin
}

// Table is the lease state of one swarm. New makes it.
type Table struct {
	cfg        Config
	pieces     int
	grantAfter time.Time

	nodes    map[string]*node
	zones    []*zone    // that have members, in the order of their first ones
	complete int        // nodes that hold every piece
	holders  []int32    // live nodes that hold a piece
	held     set        // pieces with holders
	leases   []int32    // open leases of a piece from the origin that have not lapsed
	times    fetchTimes // of leases from the origin
	seq      uint64
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
	Imports  int           `json:"imports"`  // leases of pieces that only other zones held
	Seconds  int           `json:"seconds"`  // leases given a second time at the end
	Rescues  int           `json:"rescues"`  // leases of pieces whose holders do not deliver
	Adopted  int           `json:"adopted"`  // leases taken over from a tracker before us
	Lapsed   int           `json:"lapsed"`   // leases that the origin went past
	Dropped  int           `json:"dropped"`  // leases that a node gave up
	Lost     int           `json:"lost"`     // leases of nodes that left or died
	Fetch    time.Duration `json:"fetch_ns"` // median time from a lease to its piece, of the slowest zone
}

// New returns the Table of a swarm of pieces pieces that grants nothing before grantAfter. The
// zero grantAfter is right unless a tracker before us may have given leases that are still open.
func New(pieces int, cfg Config, grantAfter time.Time) *Table {
	return &Table{
		cfg:        cfg.withDefaults(),
		pieces:     pieces,
		grantAfter: grantAfter,
		nodes:      map[string]*node{},
		holders:    make([]int32, pieces),
		held:       newSet(pieces),
		leases:     make([]int32, pieces),
		scratch:    newSet(pieces),
	}
}

// GrantAfter puts off every grant until at: the caller learned that a tracker before us may have
// given leases. What was granted stays granted.
func (t *Table) GrantAfter(at time.Time) { t.grantAfter = at }

// Stats returns the counts.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Pieces, s.Nodes, s.Complete = t.pieces, len(t.nodes), t.complete
	for _, z := range t.zones {
		s.Leased += z.open.Len()
		s.Fetch = max(s.Fetch, z.times.get())
	}
	return s
}

// Live reports whether the node is a live member.
func (t *Table) Live(name string) bool { return t.nodes[name] != nil }

// Complete reports whether the node is a live member that holds every piece.
func (t *Table) Complete(name string) bool {
	n := t.nodes[name]
	return n != nil && n.held == t.pieces
}

// Report takes over what a node says about itself: its zone, the pieces it holds, the leases it works
// on, and the pieces that others announce and it cannot get. Pieces out of range are ignored, as are
// more open leases than Config.MaxOpen. A piece in have ends the node's lease of it. A node that moves to
// another zone is a new one there.
func (t *Table) Report(name, zone string, have Bitmap, open, stuck []int, now time.Time) {
	n := t.nodes[name]
	if n != nil && n.zone.name != zone {
		t.Forget(name)
		n = nil
	}
	fresh := n == nil
	if fresh {
		n = &node{name: name, zone: t.zone(zone), have: newSet(t.pieces), open: map[int]*lease{}, whole: now}
		n.zone.members++
		t.nodes[name] = n
	}
	n.seen = now
	t.hold(n, have, now)
	if fresh {
		n.late = n.zone.held - n.held
	}
	n.zone.renew(n, open, now)
	n.stuck = n.stuck[:0]
	for _, p := range stuck {
		if t.valid(p) && !n.have.has(p) {
			n.stuck = append(n.stuck, p)
		}
	}
}

// zone returns the zone of that name, a new one where there is none.
func (t *Table) zone(name string) *zone {
	for _, z := range t.zones {
		if z.name == name {
			return z
		}
	}
	z := newZone(t, name)
	t.zones = append(t.zones, z)
	return z
}

// Doubt notes which nodes give the named one nothing: what only they hold is leased to it as if nobody
// held it, and it is told of none of them as a source. It replaces the names of an earlier call; the caller
// bounds their number, which a grant's cost grows with. They are one node's word and mean nothing for the
// others, so that a liar can shut out nobody. A node that is alone doubts all other zones.
func (t *Table) Doubt(name string, others []string, alone bool) {
	if n := t.nodes[name]; n != nil {
		n.alone = alone
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
			n.zone.complete++
			n.zone.deactivate(n)
		} else {
			t.complete--
			n.zone.complete--
		}
	}
}

// turn counts that n now holds p, or no longer does.
func (t *Table) turn(n *node, p int, holds bool, now time.Time) {
	if !holds {
		n.held--
		t.unhold(n.zone, p)
		return
	}
	n.held++
	t.holders[p]++
	n.zone.holders[p]++
	if n.zone.holders[p] == 1 {
		n.zone.held++
	}
	if t.holders[p] == 1 {
		t.held.add(p)
		t.stats.Held++
	}
	if l := n.open[p]; l != nil {
		n.zone.finish(l, now)
	}
	n.zone.settle(p)
}

func (t *Table) unhold(z *zone, p int) {
	t.holders[p]--
	z.holders[p]--
	if z.holders[p] == 0 {
		z.held--
	}
	if t.holders[p] == 0 {
		t.held.remove(p)
		t.stats.Held--
	}
	z.settle(p)
}

// Forget removes a node that leaves; its leases, and the pieces that nobody else holds, are free.
func (t *Table) Forget(name string) {
	n := t.nodes[name]
	if n == nil {
		return
	}
	z := n.zone
	delete(t.nodes, name)
	z.members--
	z.deactivate(n)
	if n.held == t.pieces {
		t.complete--
		z.complete--
	}
	for p := n.have.next(0); p >= 0; p = n.have.next(p + 1) {
		t.unhold(z, p)
	}
	for _, l := range n.open {
		t.stats.Lost++
		z.drop(l)
	}
	if z.members == 0 {
		t.zones = slices.DeleteFunc(t.zones, func(o *zone) bool { return o == z })
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
	for _, z := range t.zones {
		z.front = 0
	}
	for name, n := range t.nodes {
		if n.active {
			n.zone.front = max(n.zone.front, n.held)
		}
		if now.Sub(n.seen) > t.cfg.lostAfter(n.held == t.pieces) {
			lost = append(lost, name)
		} else if n.active && now.Sub(n.asked) > max(2*time.Second, 4*n.zone.times.get()) {
			n.zone.deactivate(n) // it is slow, and the others are not held back for it
		}
	}
	slices.Sort(lost)
	for _, name := range lost {
		t.Forget(name)
	}
	for _, z := range t.zones {
		z.lapse(now)
	}
	return lost
}
