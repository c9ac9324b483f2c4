package lease

import (
	"cmp"
	"math/bits"
	"slices"
	"time"
)

// Want is how many leases a node can begin: the two kinds apart, because an origin that lets a node wait
// must not keep it from what other zones hold.
type Want struct {
	Origin, Imports int
}

// take takes one from the kind's count and reports whether there was one.
func (w *Want) take(imported bool) bool {
	of := &w.Origin
	if imported {
		of = &w.Imports
	}
	*of--
	return *of >= 0
}

// Grant leases up to want pieces to a node that has reported, and says after which time to ask
// again when it got fewer. In this order a node gets
//
//   - pieces that it is stuck at, one node a piece at a time, whatever else holds: there is no
//     other way to them;
//   - the lowest pieces that its zone neither holds nor leases, unless another zone is fetching them from
//     the origin, and unless the node is ahead of its fair share, or the origin (the other zones, for what they
//     hold) is busy and the node fetches one from there already or has to wait for its fetched pieces to spread;
//   - pieces that only members of its zone hold which give it nothing (Doubt), one node a piece at a time;
//   - when none is left, the oldest open lease of a slow node, a second time, within a duplicate
//     budget of 1 % of the pieces (at least one); beyond the budget only after thirty seconds and more,
//     so that a node which hangs holds nobody up for ever.
//
// Each comes from a node of another zone where one holds it that the asker does not doubt, of several the
// one that the fewest are leased from, and else from the origin. An unknown node gets nothing and is told to
// ask again at once.
func (t *Table) Grant(name string, want Want, now time.Time) (leases []Lease, retry time.Duration) {
	n := t.nodes[name]
	if n == nil || want.Origin <= 0 && want.Imports <= 0 {
		return nil, 0
	}
	if n.held == t.pieces {
		return nil, t.cfg.IdleInterval
	}
	if now.Before(t.grantAfter) {
		return nil, t.grantAfter.Sub(now)
	}
	z := n.zone
	if want.Origin > 0 {
		z.activate(n, now) // who waits for the origin is not waited for
	}
	for want.Origin > 0 || want.Imports > 0 {
		p, k, wait := z.pick(n, want, now)
		if wait > 0 {
			return leases, wait
		}
		from := t.source(n, p)
		if !want.take(from != nil) {
			return leases, t.cfg.Interval // such as a far piece whose holders it doubts, while the origin lets it wait
		}
		z.lease(n, p, k, from, now)
		z.count(n, p, k, from, now)
		l := Lease{Piece: p}
		if from != nil {
			l.From = from.name
		}
		leases = append(leases, l)
	}
	return leases, 0
}

// far reports whether n should fetch p from another zone, if it does not doubt all who hold it there.
func (t *Table) far(n *node, p int) bool { return !n.alone && t.holders[p] > n.zone.holders[p] }

// source returns the node of another zone from which n should fetch p, or nil for the origin.
func (t *Table) source(n *node, p int) *node {
	if !t.far(n, p) {
		return nil
	}
	var best *node
	for _, o := range t.nodes {
		if o.zone == n.zone || !o.have.has(p) || best != nil && !o.before(best) || slices.Contains(n.doubts, o.name) {
			continue
		}
		best = o
	}
	return best
}

// before reports whether n is the better source: less is leased from it, or else it was longer ago.
func (n *node) before(o *node) bool {
	return cmp.Or(cmp.Compare(n.serves, o.serves), cmp.Compare(n.served, o.served), cmp.Compare(n.name, o.name)) < 0
}

// pick chooses the next piece for n, or how long n has to wait (then > 0).
func (z *zone) pick(n *node, want Want, now time.Time) (p int, k kind, wait time.Duration) {
	if len(n.open) >= z.table.cfg.MaxOpen {
		return 0, 0, z.retry()
	}
	if p := z.rescue(n, now); p >= 0 {
		if left := want; left.take(z.table.far(n, p)) {
			return p, rescue, 0
		}
	}
	p, elsewhere := z.lowest(n, want)
	if p >= 0 {
		wait := z.hold(n, p, now)
		if wait > 0 && !z.table.far(n, p) {
			// What keeps it from the origin need not keep it from other zones.
			if q, _ := z.lowest(n, Want{Imports: want.Imports}); q >= 0 && z.hold(n, q, now) == 0 {
				p, wait = q, 0
			}
		}
		return p, first, wait
	}
	if want.Origin <= 0 {
		return 0, 0, z.table.cfg.Interval // it asks when it has what it fetches
	}
	if p := z.doubtful(n); p >= 0 {
		return p, rescue, 0
	}
	if p, wait = z.slowest(n, elsewhere, now); wait == 0 {
		return p, second, 0
	}
	// At the end of a large swarm all wait for the same lease: they must not all ask again when it is due.
	return 0, 0, max(wait, z.retry())
}

// hold returns how long n has to wait for a first lease of p, which is free.
func (z *zone) hold(n *node, p int, now time.Time) time.Duration {
	far := z.table.far(n, p)
	all := z.fetching
	if far {
		all = z.importing
	}
	if all >= z.table.cfg.Busy || z.slow(n) {
		if n.fetching(far) > 0 {
			return z.table.cfg.Interval // it asks when it has what it fetches
		}
		if wait := z.unspread(n, now); wait > 0 {
			z.deactivate(n) // its uplink is the limit: the others need not wait for it
			return wait
		}
	}
	return z.ahead(n, now)
}

// fetching returns how many leases n has open, from other zones or from the origin.
func (n *node) fetching(far bool) (count int) {
	for _, l := range n.open {
		if (l.from != nil) == far {
			count++
		}
	}
	return count
}

// doubtful returns the lowest piece that n lacks, nobody here leases, and of the zone only nodes hold that n
// doubts, or -1. A piece that one of them has just fetched is left to it: n may not have met it yet.
func (z *zone) doubtful(n *node) int {
	var doubted []*node
	for _, name := range n.doubts {
		if d := z.table.nodes[name]; d != nil && d != n && d.zone == z {
			doubted = append(doubted, d)
		}
	}
	if len(doubted) == 0 {
		return -1
	}
	for w := range n.have {
		var held uint64
		for _, d := range doubted {
			held |= d.have[w]
		}
		for held &^= n.have[w]; held != 0; {
			bit := bits.LeadingZeros64(held)
			held &^= 1 << (63 - bit)
			p := w*64 + bit
			if z.leases[p] == 0 && z.onlyAmong(p, doubted) && !z.justFetched(p) {
				return p
			}
		}
	}
	return -1
}

// onlyAmong reports whether all members that hold p are among nodes.
func (z *zone) onlyAmong(p int, nodes []*node) bool {
	if int(z.holders[p]) > len(nodes) {
		return false
	}
	var among int32
	for _, d := range nodes {
		if d.have.has(p) {
			among++
		}
	}
	return among == z.holders[p]
}

// justFetched reports whether a lease of p ended with the piece within our patience.
func (z *zone) justFetched(p int) bool {
	return slices.ContainsFunc(z.unripe, func(c completion) bool { return c.piece == p })
}

func (z *zone) count(n *node, p int, k kind, from *node, now time.Time) {
	switch {
	case k == rescue:
		z.table.stats.Rescues++
		z.rescued[p] = now.Add(giveUp * z.table.cfg.patience(z.times.get()))
		return
	case k == second:
		z.table.stats.Seconds++
		z.seconds[p] = now
	case from != nil:
		z.table.stats.Imports++
	default:
		z.table.stats.Granted++
	}
	n.waiting, n.passed = time.Time{}, time.Time{}
	n.share++
	if n.active {
		z.shares++
	}
}

// retry is how soon a node that waits for news should ask again: twice in the time of a fetch,
// less often in large swarms, at most an interval apart.
func (z *zone) retry() time.Duration {
	wait := max(minRetry, z.times.get()/2) + time.Duration(len(z.table.nodes))*perNode
	return min(wait, z.table.cfg.Interval)
}

// lowest returns the lowest free piece of a kind that n wants, does not itself have open (lapsed), and no other
// zone is fetching from the origin, or -1, and whether one was passed over because another zone is.
func (z *zone) lowest(n *node, want Want) (p int, elsewhere bool) {
	t := z.table
	p = z.free.next(z.cursor)
	if p < 0 {
		z.cursor = t.pieces
		return -1, false
	}
	z.cursor = p
	for w := p / 64; w < len(z.free); w++ {
		var word uint64
		far := t.held[w]
		if n.alone {
			far = 0
		}
		if want.Origin > 0 {
			word |= z.free[w] &^ far
		}
		if want.Imports > 0 {
			word |= z.free[w] & far
		}
		for word != 0 {
			bit := bits.LeadingZeros64(word)
			word &^= 1 << (63 - bit)
			p := w*64 + bit
			switch {
			case n.open[p] != nil:
			case t.holders[p] == 0 && t.leases[p] > 0:
				elsewhere = true
			default:
				return p, elsewhere
			}
		}
	}
	return -1, elsewhere
}

// rescue returns a piece that n is stuck at and that nobody is fetching again yet, or -1.
func (z *zone) rescue(n *node, now time.Time) int {
	for _, p := range n.stuck {
		if n.have.has(p) || n.open[p] != nil || z.holders[p] == 0 {
			continue
		}
		until, tried := z.rescued[p]
		switch {
		case now.Before(until):
		case z.leases[p] > 0 && !tried:
			// Somebody is fetching it on a lease from before it was announced: wait for that first.
			z.rescued[p] = now.Add(giveUp * z.table.cfg.patience(z.times.get()))
		default:
			return p
		}
	}
	return -1
}

// unspread returns how long n has to wait because too many of its pieces are open or have not
// spread to the others, 0 if it has not. A node that downloads alone has nobody to spread to.
func (z *zone) unspread(n *node, now time.Time) time.Duration {
	others := z.others(n)
	if others <= 0 {
		n.spread = n.spread[:0]
		return 0
	}
	kept := n.spread[:0]
	for _, f := range n.spread {
		// A piece that n no longer holds is not one that it can pass on.
		if n.have.has(f.piece) && now.Before(f.until) && !replicated(int(z.holders[f.piece])-z.complete-1, min(f.others, others)) {
			kept = append(kept, f)
		}
	}
	n.spread = kept
	allowed := z.table.cfg.allowance(n.fetch)
	if z.slow(n) {
		allowed = max(1, int(float64(allowed)/n.pace))
		if z.tooLate(n, now) {
			allowed = 0
		}
	}
	if len(kept) < allowed { // it has nothing open of the kind that it asks for
		return 0
	}
	wait := z.retry()
	for _, f := range kept {
		wait = min(wait, f.until.Sub(now))
	}
	return wait
}

// slow reports whether what n fetches reaches the others late: its fetches take long, and not because it
// has much to make up that it gets from peers at the same time.
func (z *zone) slow(n *node) bool {
	return n.pace > slowFactor && n.late <= z.table.cfg.slack(z.table.pieces, z.members)
}

// tooLate reports whether all others would wait at the end for a piece that is leased to n, which is slow, now:
// it would not be with them before the rest is. It says so for as long as our patience lasts: those who fetch
// the rest may hang.
func (z *zone) tooLate(n *node, now time.Time) bool {
	fetching := z.fetching + z.importing - len(n.open)
	left := z.table.pieces - z.held - fetching
	if float64(left) >= slowSpread*n.pace*float64(fetching) {
		return false
	}
	if n.passed.IsZero() {
		n.passed = now
	}
	return now.Sub(n.passed) <= z.table.cfg.patience(n.fetch)
}

// ahead returns how long n has to wait because it is ahead of its fair share. It never waits
// longer than one fetch takes: the others may be slow for good, and the origin must not idle.
func (z *zone) ahead(n *node, now time.Time) time.Duration {
	if !aheadOfFair(n.share, z.shares, z.active, z.table.cfg.slack(z.table.pieces, z.active)) {
		n.waiting = time.Time{}
		return 0
	}
	if n.waiting.IsZero() {
		n.waiting = now
	}
	limit := z.times.get()
	if limit == 0 {
		limit = z.table.cfg.Interval
	}
	left := limit - now.Sub(n.waiting)
	if left <= 0 {
		return 0
	}
	return min(left, z.retry())
}

// activate counts n among those who ask. One that is behind them has enough to get from them and leases beside
// it; to wait for its share would only keep those from the origin who need all that comes from there.
func (z *zone) activate(n *node, now time.Time) {
	n.asked = now
	if n.held+z.table.cfg.behind(z.table.pieces) < z.front {
		z.deactivate(n)
		return
	}
	if n.active {
		return
	}
	n.share = entryShare(n.share, z.shares, z.active, z.table.cfg.slack(z.table.pieces, z.active+1))
	n.active = true
	z.active++
	z.shares += n.share
}

func (z *zone) deactivate(n *node) {
	if n.active {
		n.active = false
		z.active--
		z.shares -= n.share
	}
}

// slowest returns the piece of the oldest open lease that may be given to n a second time, or how
// long until there may be one. A lease from the origin keeps other zones from its piece as well; they leave it
// to its own zone for as long as anybody there may ask. While pieces are under way elsewhere that n's zone
// will import, its own leases are not at their end.
func (z *zone) slowest(n *node, elsewhere bool, now time.Time) (p int, wait time.Duration) {
	wait = z.table.cfg.Interval
	if elsewhere {
		wait = z.retry()
	}
	for _, o := range z.table.zones {
		if elsewhere && o == z {
			continue
		}
		p, w := z.slowestOf(o, n, now)
		if w == 0 {
			return p, 0
		}
		wait = min(wait, w)
	}
	return 0, wait
}

// slowestOf is slowest among the leases of zone o.
func (z *zone) slowestOf(o *zone, n *node, now time.Time) (p int, wait time.Duration) {
	wait = z.table.cfg.Interval
	for e := o.open.Front(); e != nil; e = e.Next() {
		l := e.Value.(*lease)
		age := now.Sub(l.granted)
		if age <= minSecond {
			return 0, min(wait, minSecond-age+time.Millisecond) // those behind it are younger
		}
		if z.holders[l.piece] > 0 || n.open[l.piece] != nil || o != z && (l.from != nil || z.leases[l.piece] > 0) {
			continue
		}
		median := o.natural(l)
		stalled := giveUp * z.table.cfg.patience(median)
		limit := stalled
		if median > 0 && o == z {
			limit = max(minSecond, 2*median)
		}
		if age <= limit {
			wait = min(wait, limit-age+time.Millisecond)
			continue
		}
		last, again := z.seconds[l.piece]
		switch {
		case !again && (age > stalled || len(z.seconds) < duplicateBudget(z.table.pieces)):
			return l.piece, 0
		case again && now.Sub(last) > stalled:
			return l.piece, 0
		}
	}
	return 0, wait
}
