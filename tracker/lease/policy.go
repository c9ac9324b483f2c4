package lease

import (
	"slices"
	"time"
)

// Config holds the numbers of the lease policy. The zero value means DefaultConfig.
type Config struct {
	// MaxUnreplicated is how many pieces a node may have leased without half of the others holding
	// them yet, before it gets no more. More let a node lease what its uplink cannot pass on, and
	// everyone then waits for that node; fewer leave the origin idle until the news of a replica, half
	// a second old, is in (ADR 2 has the figures).
	MaxUnreplicated int
	// MaxOpen bounds the leases that one node has open, also when it is alone: a node that joins
	// later must still find pieces to lease.
	MaxOpen int
	// Busy is how many open leases of a zone keep its origin busy. With fewer, what then waits for its
	// node's uplink is better than an origin that idles; with more, a node gets no second one: on average
	// half of a piece that is being fetched is with that node already and of no use to the others yet.
	Busy int
	// Ahead is how many pieces a node may be ahead of the mean of the nodes that are asking. With
	// 16 nodes and 128 pieces the largest share decides the last finisher; 2 to 3 were measured best.
	Ahead int
	// Behind is by how many pieces fewer than the one of those who ask that holds the most a node may hold, to
	// count in that mean.
	Behind int
	// Interval is how often a node that is downloading reports. A node is lost after three missed
	// reports.
	Interval time.Duration
	// IdleInterval is how often a node that holds everything reports.
	IdleInterval time.Duration
	// Patience is the fixed part of how long a slow thing is waited for; four times the fetch time
	// of a piece come on top of it.
	Patience time.Duration
}

// DefaultConfig returns the policy that the tracker uses.
func DefaultConfig() Config {
	return Config{
		MaxUnreplicated: 6,
		MaxOpen:         16,
		Busy:            8,
		Ahead:           3,
		Behind:          8,
		Interval:        500 * time.Millisecond,
		IdleInterval:    5 * time.Second,
		Patience:        5 * time.Second,
	}
}

func (c Config) withDefaults() Config {
	d := DefaultConfig()
	fill(&c.MaxUnreplicated, d.MaxUnreplicated)
	fill(&c.MaxOpen, d.MaxOpen)
	fill(&c.Busy, d.Busy)
	fill(&c.Ahead, d.Ahead)
	fill(&c.Behind, d.Behind)
	fill(&c.Interval, d.Interval)
	fill(&c.IdleInterval, d.IdleInterval)
	fill(&c.Patience, d.Patience)
	return c
}

func fill[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Constants that follow from the semantics rather than from a machine.
const (
	// giveUp is how many patiences a lease of a live node may block a piece that nobody else can
	// get, when the duplicate budget is used up or nothing was ever completed.
	giveUp = 6
	// slowFactor is how many times the median a node's fetches take that is slow, and slowSpread how many
	// of its fetches it takes until a piece is with the others: one comes in, and goes out twice.
	slowFactor, slowSpread = 2, 3
	// minSecond is the age under which no lease is given a second time: shorter ones are noise.
	minSecond = time.Second
	// minRetry is the shortest time after which a node is told to ask again, and perNode what each
	// live node adds to it, so that a thousand waiting nodes ask 4,000 times a second, not 50,000.
	minRetry = 20 * time.Millisecond
	perNode  = 250 * time.Microsecond
)

// patience is how long a thing is waited for whose natural time is fetch.
func (c Config) patience(fetch time.Duration) time.Duration { return c.Patience + 4*fetch }

// lostAfter is the silence after which a node is lost. The third missed report is certain only
// when the fourth would be due.
func (c Config) lostAfter(complete bool) time.Duration {
	if complete {
		return 4 * c.IdleInterval
	}
	return 4 * c.Interval
}

// crossing is how long a report may contradict what an earlier one said: a heartbeat and a lease
// call of one node overtake each other, and a reply is on its way while the next report leaves.
// One interval for each direction.
func (c Config) crossing() time.Duration { return 2 * c.Interval }

// allowance is how many unreplicated pieces a node may have whose fetches take fetch each. News
// of a replica is up to one interval old, so what a node fetches in one interval is always
// allowed: else small pieces on a fast link would wait for reports instead of for the uplink.
func (c Config) allowance(fetch time.Duration) int {
	if fetch <= 0 {
		return c.MaxUnreplicated
	}
	return max(c.MaxUnreplicated, int(c.Interval/fetch))
}

// slack is how far ahead of the mean a node may be: Ahead pieces, or 3 % of an even share where
// that is more, because with many small pieces three of them mean nothing.
func (c Config) slack(pieces, nodes int) int {
	return max(c.Ahead, pieces*3/(100*max(nodes, 1)))
}

// behind is Behind, or 3 % of the blob where that is more: of many small pieces nodes that are equally fast
// differ by some dozens.
func (c Config) behind(pieces int) int { return max(c.Behind, pieces*3/100) }

// aheadOfFair reports whether a node that was granted share pieces is slack or more ahead of the
// mean of nodes nodes, itself among them, that were granted total together.
func aheadOfFair(share, total, nodes, slack int) bool {
	return nodes > 1 && share*nodes >= total+slack*nodes
}

// entryShare is the share from which a node counts that (again) begins to ask: its own, but at
// most two slacks behind the mean. Without the floor everyone would be held back until a late
// node had caught up on what was leased before it came.
func entryShare(own, total, nodes, slack int) int {
	if nodes == 0 {
		return own
	}
	return max(own, total/nodes-2*slack)
}

// replicated reports whether a piece that a node fetched has spread far enough: to half of the
// others that are incomplete. Complete nodes hold every piece and say nothing about spreading.
func replicated(otherHolders, otherNodes int) bool { return 2*otherHolders >= otherNodes }

// duplicateBudget is how many leases of a swarm may be given a second time at its end: 1 % of the
// pieces, the promise in the design's table, and at least one.
func duplicateBudget(pieces int) int { return max(1, pieces/100) }

// fetchTimes remembers the last fetch times of a swarm and gives their median.
type fetchTimes struct {
	ring   [63]time.Duration
	n      int
	median time.Duration
	stale  bool
}

func (f *fetchTimes) add(d time.Duration) {
	f.ring[f.n%len(f.ring)] = d
	f.n++
	f.stale = true
}

// get returns the median, 0 before the first fetch.
func (f *fetchTimes) get() time.Duration {
	if f.stale {
		seen := slices.Clone(f.ring[:min(f.n, len(f.ring))])
		slices.Sort(seen)
		f.median = seen[len(seen)/2]
		f.stale = false
	}
	return f.median
}

// completion is a lease that ended with its piece.
type completion struct {
	piece    int
	seq      uint64
	at       time.Time
	imported bool
}

// passed is the evidence of how far the origin has got: the completions that no other one beats
// in both piece and seq, by rising piece and thus falling seq. Grants go in order, so it has one
// or two entries in practice.
type passed []completion

func (p *passed) add(c completion) {
	kept := (*p)[:0]
	for _, o := range *p {
		if o.piece >= c.piece && o.seq >= c.seq {
			return // beaten; nothing was removed yet, since o beats all that c would
		}
		if o.piece > c.piece || o.seq > c.seq {
			kept = append(kept, o)
		}
	}
	*p = append(kept, c)
	slices.SortFunc(*p, func(a, b completion) int { return a.piece - b.piece })
}

// beyond reports whether a lease of a higher piece that was granted later has completed.
func (p passed) beyond(piece int, seq uint64) bool {
	for _, o := range p {
		if o.piece > piece && o.seq > seq {
			return true
		}
	}
	return false
}
