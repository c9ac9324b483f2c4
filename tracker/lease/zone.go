package lease

import (
	"container/list"
	"slices"
	"time"
)

// kind is why a lease was given.
type kind int

const (
	first   kind = iota // nobody in the zone held the piece or leased it
	second              // the lease of a slow node was given again at the end
	rescue              // a node cannot get the piece from those who announce it
	adopted             // a node listed it as open, and we did not know: we were restarted
)

// lease is one node's right to fetch one piece from the origin, or from another zone.
type lease struct {
	node    *node
	piece   int
	kind    kind
	from    *node     // of another zone; nil is the origin
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
	zone    *zone
	have    set
	held    int       // pieces in have
	seen    time.Time // last report
	whole   time.Time // last report that had all of have
	open    map[int]*lease
	spread  []fetched
	stuck   []int
	alone   bool          // no node of another zone is in its reach
	doubts  []string      // nodes that give it nothing, whatever they announce
	late    int           // pieces that its zone held and it did not when it came
	pace    float64       // moving average of its fetch times over the medians of their kinds, 0 before the first
	fetch   time.Duration // moving average of its fetch times, 0 before the first
	asked   time.Time
	active  bool      // counts in the fair share
	share   int       // pieces granted, corrected by entryShare
	waiting time.Time // since when, for the others' shares
	passed  time.Time // since when it is passed over because it is slow
	serves  int       // open leases from it, of nodes in other zones
	served  uint64    // seq of the last one
}

// zone is the part of a Table whose nodes trade pieces among themselves.
type zone struct {
	table    *Table
	name     string
	members  int
	complete int     // members that hold every piece
	held     int     // pieces that at least one member holds
	holders  []int32 // members that hold a piece
	leases   []int32 // open leases of a piece, by members, that have not lapsed
	free     set     // pieces without holders and leases here
	cursor   int     // no piece below it is free
	open     *list.List

	// Open leases from the origin that have not lapsed, and from other zones.
	fetching, importing int

	times   fetchTimes   // of all leases
	imports fetchTimes   // of those from other zones
	ripe    passed       // evidence older than patience
	unripe  []completion // younger, oldest first
	rescued map[int]time.Time
	seconds map[int]time.Time // pieces given a second time at the end, and when last

	active int
	shares int // sum over active nodes
	front  int // the most pieces that one of them held when Expire looked
}

func newZone(t *Table, name string) *zone {
	z := &zone{
		table:   t,
		name:    name,
		holders: make([]int32, t.pieces),
		leases:  make([]int32, t.pieces),
		free:    newSet(t.pieces),
		open:    list.New(),
		rescued: map[int]time.Time{},
		seconds: map[int]time.Time{},
	}
	for p := range t.pieces {
		z.free.add(p)
	}
	return z
}

// finish ends a lease whose piece its node now holds.
func (z *zone) finish(l *lease, now time.Time) {
	took := now.Sub(l.granted)
	if l.kind != adopted { // an adopted lease began before we knew of it
		z.times.add(took)
		if l.from == nil {
			z.table.times.add(took)
		} else {
			z.imports.add(took)
		}
		pace := took.Seconds() / max(time.Millisecond, z.natural(l)).Seconds()
		if l.node.fetch == 0 {
			l.node.fetch, l.node.pace = took, pace
		}
		l.node.pace += (pace - l.node.pace) / 4
		l.node.fetch += (took - l.node.fetch) / 4
	}
	z.remove(l)
	l.node.spread = append(l.node.spread, fetched{l.piece, z.others(l.node), now.Add(z.table.cfg.patience(took))})
	z.unripe = append(z.unripe, completion{l.piece, l.seq, now, l.from != nil})
	if l.kind == rescue {
		// The others who are stuck at the piece now have somebody to get it from.
		z.rescued[l.piece] = now.Add(z.table.cfg.patience(took))
	}
}

// others returns how many members beside n lack pieces.
func (z *zone) others(n *node) int {
	others := z.members - z.complete
	if n.held < z.table.pieces {
		others--
	}
	return others
}

// renew compares the leases of n with those that it says it works on.
func (z *zone) renew(n *node, open []int, now time.Time) {
	for _, p := range open {
		switch {
		case !z.table.valid(p) || n.have.has(p):
		case n.open[p] != nil:
			n.open[p].listed = now
		case len(n.open) < z.table.cfg.MaxOpen:
			z.lease(n, p, adopted, nil, now)
			z.table.stats.Adopted++
		}
	}
	var dropped []*lease
	for _, l := range n.open {
		if now.Sub(l.listed) > z.table.cfg.crossing() {
			dropped = append(dropped, l)
		}
	}
	for _, l := range dropped {
		z.table.stats.Dropped++
		z.drop(l)
	}
}

// lease opens a lease from the origin, or from a node of another zone.
func (z *zone) lease(n *node, p int, k kind, from *node, now time.Time) {
	t := z.table
	t.seq++
	l := &lease{node: n, piece: p, kind: k, from: from, seq: t.seq, granted: now, listed: now}
	l.elem = z.open.PushBack(l)
	n.open[p] = l
	if from != nil {
		from.serves++
		from.served = t.seq
	}
	z.block(l, 1)
}

// block counts that l keeps its piece from others (by 1), or no longer does (by -1): one from the origin
// from all zones, an import from its own.
func (z *zone) block(l *lease, by int32) {
	z.leases[l.piece] += by
	if l.from == nil {
		z.fetching += int(by)
		z.table.leases[l.piece] += by
	} else {
		z.importing += int(by)
	}
	z.settle(l.piece)
}

// remove ends a lease.
func (z *zone) remove(l *lease) {
	z.open.Remove(l.elem)
	delete(l.node.open, l.piece)
	if l.from != nil {
		l.from.serves--
	}
	if !l.lapsed {
		z.block(l, -1)
	}
}

// drop ends a lease without its piece.
func (z *zone) drop(l *lease) {
	z.remove(l)
	if l.kind == rescue {
		delete(z.rescued, l.piece)
	}
}

// settle notes whether p is free.
func (z *zone) settle(p int) {
	if z.holders[p] > 0 || z.leases[p] > 0 {
		z.free.remove(p)
		return
	}
	z.free.add(p)
	z.cursor = min(z.cursor, p)
}

// natural is how long leases like l take.
func (z *zone) natural(l *lease) time.Duration {
	if l.from == nil {
		return z.table.times.get()
	}
	return z.imports.get()
}

// lapse frees the pieces of leases that the origin went past: one of a higher piece that was
// granted later has been complete for longer than we are patient. While the origin itself stalls
// nothing completes, so nothing lapses. Imports come from many nodes and say nothing of each other.
func (z *zone) lapse(now time.Time) {
	patience := z.table.cfg.patience(z.table.times.get())
	i := 0
	for ; i < len(z.unripe) && now.Sub(z.unripe[i].at) > patience; i++ {
		if !z.unripe[i].imported {
			z.ripe.add(z.unripe[i])
		}
	}
	z.unripe = slices.Delete(z.unripe, 0, i)
	for e := z.open.Front(); e != nil; e = e.Next() {
		l := e.Value.(*lease)
		if !l.lapsed && l.from == nil && z.ripe.beyond(l.piece, l.seq) {
			l.lapsed = true
			z.block(l, -1)
			z.table.stats.Lapsed++
		}
	}
}
