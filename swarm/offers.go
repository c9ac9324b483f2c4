package swarm

import (
	"sync"
	"time"
)

// offers notes which pieces the connected peers hold, and which of them were asked from them. Only
// what some peer offers is wanted from the library: it would scan all other pieces under its lock
// at every step.
type offers struct {
	mu      sync.Mutex
	holders []int // connected peers by piece
	byPeer  map[any]*holding
	fresh   []int // got their first holder since the last take
	news    chan struct{}
	wanted  map[int]*wish // and not there yet
	// orphans are pieces that were wanted when their last holder went, and when it first did: a
	// banned peer that comes back again and again must not set the clock back.
	orphans map[int]time.Time
	// latest is when the most lately asked of the pieces that came was asked from a peer. A piece asked
	// well before it and still missing is stuck: others overtook it.
	latest time.Time
	whole  chan struct{} // some peer has got its last piece
}

// wish is a piece that is to come from peers.
type wish struct {
	since time.Time
	asked time.Time // when a block of it was asked from a peer last; the zero time before that
}

// holding is what one connected peer holds.
type holding struct {
	has   []bool
	count int
}

func newOffers(pieces int) *offers {
	return &offers{
		holders: make([]int, pieces), byPeer: map[any]*holding{}, news: make(chan struct{}, 1),
		whole:  make(chan struct{}, 1),
		wanted: map[int]*wish{}, orphans: map[int]time.Time{},
	}
}

// add notes that peer holds piece i.
func (o *offers) add(peer any, i int) {
	o.mu.Lock()
	o.note(peer, i)
	o.mu.Unlock()
	signal(o.news)
}

func (o *offers) addAll(peer any, bits []bool) {
	o.mu.Lock()
	for i, has := range bits {
		if has {
			o.note(peer, i)
		}
	}
	o.mu.Unlock()
	signal(o.news)
}

func (o *offers) addEvery(peer any) {
	o.mu.Lock()
	for i := range o.holders {
		o.note(peer, i)
	}
	o.mu.Unlock()
	signal(o.news)
}

func (o *offers) note(peer any, i int) {
	if i < 0 || i >= len(o.holders) {
		return
	}
	h := o.byPeer[peer]
	if h == nil {
		h = &holding{has: make([]bool, len(o.holders))}
		o.byPeer[peer] = h
	}
	if h.has[i] {
		return
	}
	h.has[i] = true
	if h.count++; h.count == len(h.has) {
		signal(o.whole)
	}
	o.holders[i]++
	if o.holders[i] == 1 {
		o.fresh = append(o.fresh, i)
	}
}

// gone forgets peer: it hung up, died, or was banned.
func (o *offers) gone(peer any, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.byPeer[peer]
	if h == nil {
		return
	}
	for i, has := range h.has {
		if !has {
			continue
		}
		o.holders[i]--
		if _, asked := o.wanted[i]; asked && o.holders[i] == 0 {
			delete(o.wanted, i)
			if _, known := o.orphans[i]; !known {
				o.orphans[i] = now
			}
		}
	}
	delete(o.byPeer, peer)
}

// again offers piece i once more where some peer holds it: nobody else fetches it now.
func (o *offers) again(i int) {
	o.mu.Lock()
	if o.holders[i] > 0 {
		o.fresh = append(o.fresh, i)
	}
	o.mu.Unlock()
	signal(o.news)
}

// complete returns the connected peers that hold everything.
func (o *offers) complete() []any {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []any
	for peer, h := range o.byPeer {
		if h.count == len(h.has) {
			out = append(out, peer)
		}
	}
	return out
}

// signal wakes whoever waits on c, which has room for one signal, now or later.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take returns the newly offered pieces and clears them.
func (o *offers) take() []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	fresh := o.fresh
	o.fresh = nil
	return fresh
}

// isOffered reports whether some connected peer holds piece i.
func (o *offers) isOffered(i int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.holders[i] > 0
}

func (o *offers) want(i int, now time.Time) {
	o.mu.Lock()
	o.wanted[i] = &wish{since: now}
	o.mu.Unlock()
}

// ask notes that a block of piece i was asked from a peer.
func (o *offers) ask(i int, now time.Time) {
	o.mu.Lock()
	if w := o.wanted[i]; w != nil {
		w.asked = now
	}
	o.mu.Unlock()
}

// got ends the wish for piece i.
func (o *offers) got(i int) {
	o.mu.Lock()
	if w := o.wanted[i]; w != nil {
		delete(o.wanted, i)
		if w.asked.After(o.latest) {
			o.latest = w.asked
		}
	}
	delete(o.orphans, i)
	o.mu.Unlock()
}

const (
	// silentAfter is how long no block at all may come before what was wanted for as long is reported as
	// stuck: the library leaves a request with a peer that does not answer until something else moves.
	silentAfter = 2 * time.Second
	// overtakenAfter is how much later another piece may have been asked from a peer that came before. Where
	// sixty nodes share links of 20 Mbit/s, one often does by more than ten seconds. The end of a transfer does not wait
	// for it: nothing else comes then (silentAfter).
	overtakenAfter = time.Minute
	// orphanAfter is how long a piece may be without a connected holder: a broken connection is
	// dialled again sooner, and a dead node's other copies become known.
	orphanAfter = 2 * time.Second
	// maxStuck is how many pieces are reported at once.
	maxStuck = 64
)

// stuck returns pieces that were offered and do not come: their last holder went, or they were
// wanted for long while not one block came (since progress), or pieces that were asked from peers much
// later overtook them. What waits to be asked, because peers have much else to give first, is not stuck.
func (o *offers) stuck(progress, now time.Time) []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []int
	for i, since := range o.orphans {
		if o.holders[i] == 0 && now.Sub(since) > orphanAfter && len(out) < maxStuck {
			out = append(out, i)
		}
	}
	silent := now.Sub(progress) > silentAfter
	for i, w := range o.wanted {
		late := (silent && now.Sub(w.since) > silentAfter) || !w.asked.IsZero() && o.latest.Sub(w.asked) > overtakenAfter
		if late && len(out) < maxStuck {
			out = append(out, i)
		}
	}
	return out
}
