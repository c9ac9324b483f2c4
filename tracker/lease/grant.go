package lease

import (
	"math/bits"
	"slices"
	"time"
)

// Grant leases up to count pieces to a node that has reported, and says after which time to ask
// again when it got fewer. In this order a node gets
//
//   - pieces that it is stuck at, one node a piece at a time, whatever else holds: there is no
//     other way to them;
//   - the lowest pieces that no live node holds and nobody leases, unless the node has to wait
//     for its fetched pieces to spread or is ahead of its fair share;
//   - pieces that only nodes hold which give it nothing (Doubt), one node a piece at a time;
//   - when none is left, the oldest open lease of a slow node, a second time, within a duplicate
//     budget of 1 % of the pieces (at least one); beyond the budget only after thirty seconds and more,
//     so that a node which hangs holds nobody up for ever.
//
// An unknown node gets nothing and is told to ask again at once.
func (t *Table) Grant(name string, count int, now time.Time) (pieces []int, retry time.Duration) {
	n := t.nodes[name]
	if n == nil || count <= 0 {
		return nil, 0
	}
	if n.held == t.pieces {
		return nil, t.cfg.IdleInterval
	}
	if now.Before(t.grantAfter) {
		return nil, t.grantAfter.Sub(now)
	}
	t.activate(n, now)
	for len(pieces) < count {
		p, k, wait := t.pick(n, now)
		if wait > 0 {
			return pieces, wait
		}
		t.lease(n, p, k, now)
		t.count(n, p, k, now)
		pieces = append(pieces, p)
	}
	return pieces, 0
}

// pick chooses the next piece for n, or how long n has to wait (then > 0).
func (t *Table) pick(n *node, now time.Time) (p int, k kind, wait time.Duration) {
	if len(n.open) >= t.cfg.MaxOpen {
		return 0, 0, t.retry()
	}
	if p := t.rescue(n, now); p >= 0 {
		return p, rescue, 0
	}
	if p := t.lowest(n); p >= 0 {
		if wait := t.unspread(n, now); wait > 0 {
			t.deactivate(n) // its uplink is the limit: the others need not wait for it
			return 0, 0, wait
		}
		return p, first, t.ahead(n, now)
	}
	if p := t.doubtful(n); p >= 0 {
		return p, rescue, 0
	}
	p, wait = t.slowest(n, now)
	return p, second, wait
}

// doubtful returns the lowest piece that n lacks, nobody leases, and only nodes hold that n doubts, or
// -1. A piece that one of them has just fetched is left to it: n may not have met it yet.
func (t *Table) doubtful(n *node) int {
	var doubted []*node
	for _, name := range n.doubts {
		if d := t.nodes[name]; d != nil && d != n {
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
			if t.leases[p] == 0 && t.onlyAmong(p, doubted) && !t.justFetched(p) {
				return p
			}
		}
	}
	return -1
}

// onlyAmong reports whether all live holders of p are among nodes.
func (t *Table) onlyAmong(p int, nodes []*node) bool {
	if int(t.holders[p]) > len(nodes) {
		return false
	}
	var among int32
	for _, d := range nodes {
		if d.have.has(p) {
			among++
		}
	}
	return among == t.holders[p]
}

// justFetched reports whether a lease of p ended with the piece within our patience.
func (t *Table) justFetched(p int) bool {
	return slices.ContainsFunc(t.unripe, func(c completion) bool { return c.piece == p })
}

func (t *Table) count(n *node, p int, k kind, now time.Time) {
	switch k {
	case rescue:
		t.stats.Rescues++
		t.rescued[p] = now.Add(giveUp * t.cfg.patience(t.times.get()))
		return
	case second:
		t.stats.Seconds++
		t.seconds[p] = now
	default:
		t.stats.Granted++
	}
	n.waiting = time.Time{}
	n.share++
	if n.active {
		t.shares++
	}
}

// retry is how soon a node that waits for news should ask again: twice in the time of a fetch,
// less often in large swarms, at most an interval apart.
func (t *Table) retry() time.Duration {
	wait := max(minRetry, t.times.get()/2) + time.Duration(len(t.nodes))*perNode
	return min(wait, t.cfg.Interval)
}

// lowest returns the lowest free piece that n does not itself have open (lapsed), or -1.
func (t *Table) lowest(n *node) int {
	p := t.free.next(t.cursor)
	if p < 0 {
		t.cursor = t.pieces
		return -1
	}
	t.cursor = p
	for p >= 0 && n.open[p] != nil {
		p = t.free.next(p + 1)
	}
	return p
}

// rescue returns a piece that n is stuck at and that nobody is fetching again yet, or -1.
func (t *Table) rescue(n *node, now time.Time) int {
	for _, p := range n.stuck {
		if n.have.has(p) || n.open[p] != nil || t.holders[p] == 0 {
			continue
		}
		until, tried := t.rescued[p]
		switch {
		case now.Before(until):
		case t.leases[p] > 0 && !tried:
			// Somebody is fetching it on a lease from before it was announced: wait for that first.
			t.rescued[p] = now.Add(giveUp * t.cfg.patience(t.times.get()))
		default:
			return p
		}
	}
	return -1
}

// unspread returns how long n has to wait because too many of its pieces are open or have not
// spread to the others, 0 if it has not. A node that downloads alone has nobody to spread to.
func (t *Table) unspread(n *node, now time.Time) time.Duration {
	others := t.others(n)
	if others <= 0 {
		n.spread = n.spread[:0]
		return 0
	}
	kept := n.spread[:0]
	for _, f := range n.spread {
		// A piece that n no longer holds is not one that it can pass on.
		if n.have.has(f.piece) && now.Before(f.until) && !replicated(int(t.holders[f.piece])-t.complete-1, min(f.others, others)) {
			kept = append(kept, f)
		}
	}
	n.spread = kept
	if len(n.open)+len(kept) < t.cfg.allowance(n.fetch) {
		return 0
	}
	wait := t.retry()
	for _, f := range kept {
		wait = min(wait, f.until.Sub(now))
	}
	return wait
}

// ahead returns how long n has to wait because it is ahead of its fair share. It never waits
// longer than one fetch takes: the others may be slow for good, and the origin must not idle.
func (t *Table) ahead(n *node, now time.Time) time.Duration {
	if !aheadOfFair(n.share, t.shares, t.active, t.cfg.slack(t.pieces, t.active)) {
		n.waiting = time.Time{}
		return 0
	}
	if n.waiting.IsZero() {
		n.waiting = now
	}
	limit := t.times.get()
	if limit == 0 {
		limit = t.cfg.Interval
	}
	left := limit - now.Sub(n.waiting)
	if left <= 0 {
		return 0
	}
	return min(left, t.retry())
}

// activate counts n among those who ask.
func (t *Table) activate(n *node, now time.Time) {
	n.asked = now
	if n.active {
		return
	}
	n.share = entryShare(n.share, t.shares, t.active, t.cfg.slack(t.pieces, t.active+1))
	n.active = true
	t.active++
	t.shares += n.share
}

func (t *Table) deactivate(n *node) {
	if n.active {
		n.active = false
		t.active--
		t.shares -= n.share
	}
}

// slowest returns the piece of the oldest open lease that may be given to n a second time, or how
// long until there may be one.
func (t *Table) slowest(n *node, now time.Time) (p int, wait time.Duration) {
	median := t.times.get()
	stalled := giveUp * t.cfg.patience(median)
	limit := stalled
	if median > 0 {
		limit = max(minSecond, 2*median)
	}
	wait = t.cfg.Interval
	for e := t.open.Front(); e != nil; e = e.Next() {
		l := e.Value.(*lease)
		age := now.Sub(l.granted)
		if age <= limit {
			return 0, min(wait, limit-age+time.Millisecond) // those behind it are younger
		}
		if t.holders[l.piece] > 0 || n.open[l.piece] != nil {
			continue
		}
		last, again := t.seconds[l.piece]
		switch {
		case !again && (age > stalled || len(t.seconds) < duplicateBudget(t.pieces)):
			return l.piece, 0
		case again && now.Sub(last) > stalled:
			return l.piece, 0
		}
	}
	return 0, wait
}
