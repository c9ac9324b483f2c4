package swarm

import (
	"sync"
	"time"
)

// offers notes what peers hold, and which of it was asked from them. Only what some peer offers is
// wanted from the library: it would scan all other pieces under its lock at every step.
type offers struct {
	mu      sync.Mutex
	offered []bool
	fresh   []int // offered since the last take
	news    chan struct{}
	wanted  map[int]time.Time // asked from peers and not there yet, and since when
	// latest is when the most lately wanted of the pieces that came was wanted. A piece wanted
	// well before it and still missing is stuck: others overtook it.
	latest time.Time
}

func newOffers(pieces int) *offers {
	return &offers{offered: make([]bool, pieces), news: make(chan struct{}, 1), wanted: map[int]time.Time{}}
}

func (o *offers) add(i int) {
	o.mu.Lock()
	o.note(i)
	o.mu.Unlock()
	o.wake()
}

func (o *offers) addAll(bits []bool) {
	o.mu.Lock()
	for i, has := range bits {
		if has {
			o.note(i)
		}
	}
	o.mu.Unlock()
	o.wake()
}

func (o *offers) addEvery() {
	o.mu.Lock()
	for i := range o.offered {
		o.note(i)
	}
	o.mu.Unlock()
	o.wake()
}

func (o *offers) note(i int) {
	if i >= 0 && i < len(o.offered) && !o.offered[i] {
		o.offered[i] = true
		o.fresh = append(o.fresh, i)
	}
}

// again offers piece i once more where some peer holds it: nobody else fetches it now.
func (o *offers) again(i int) {
	o.mu.Lock()
	if o.offered[i] {
		o.fresh = append(o.fresh, i)
	}
	o.mu.Unlock()
	o.wake()
}

func (o *offers) wake() {
	select {
	case o.news <- struct{}{}:
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

// isOffered reports whether some peer said that it holds piece i.
func (o *offers) isOffered(i int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.offered[i]
}

func (o *offers) want(i int, now time.Time) {
	o.mu.Lock()
	o.wanted[i] = now
	o.mu.Unlock()
}

// got ends the wish for piece i.
func (o *offers) got(i int) {
	o.mu.Lock()
	if at, ok := o.wanted[i]; ok {
		delete(o.wanted, i)
		if at.After(o.latest) {
			o.latest = at
		}
	}
	o.mu.Unlock()
}

// stuckAfter is how long a piece that peers offer may take before it is reported as stuck, and
// maxStuck how many are reported at once.
const (
	stuckAfter = 5 * time.Second
	maxStuck   = 16
)

// stuck returns pieces that peers offer and do not deliver: wanted for long while nothing at all
// came (since progress), or overtaken by pieces that were wanted much later.
func (o *offers) stuck(progress, now time.Time) []int {
	o.mu.Lock()
	defer o.mu.Unlock()
	silent := now.Sub(progress) > stuckAfter
	var out []int
	for i, at := range o.wanted {
		if (silent && now.Sub(at) > stuckAfter) || o.latest.Sub(at) > 2*stuckAfter {
			out = append(out, i)
			if len(out) == maxStuck {
				break
			}
		}
	}
	return out
}
