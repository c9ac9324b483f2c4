package swarm

import (
	"testing"
	"time"
)

// give lets a peer answer what its window allows, or wanted where that is less, at blocks a second.
func give(w *Window, now *time.Time, wanted, perSecond int) {
	n := min(wanted, w.Limit())
	for range n {
		w.Ask(*now)
	}
	*now = now.Add(time.Duration(n) * time.Second / time.Duration(perSecond))
	for range n {
		w.End(*now)
	}
}

func TestWindow(t *testing.T) {
	const plenty = 1 << 20
	now := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		name                    string
		most, wanted, perSecond int
		want                    int
	}{
		{"a quarter of a second of a fast peer", 1024, plenty, 800, 200},
		{"two of a slow one", 1024, plenty, 1, minWindow},
		{"no more than it takes", 50, plenty, 800, 50},
		{"one where it takes one", 1, plenty, 800, 1},
		{"none, said by a peer that lies", -7, plenty, 800, 1},
		{"what is not wanted says nothing", 1024, 1, 800, firstWindow},
	} {
		w := NewWindow(c.most)
		for range 20 {
			give(w, &now, c.wanted, c.perSecond)
		}
		if w.Limit() != c.want {
			t.Errorf("%s: %d blocks, want %d", c.name, w.Limit(), c.want)
		}
	}

	w := NewWindow(1024)
	w.End(now) // of what was asked before
	for range 20 {
		give(w, &now, plenty, 800)
	}
	give(w, &now, plenty, 100) // its uplink has others to serve now
	if w.Limit() > 100/4 {
		t.Errorf("%d blocks of a peer that gives 100 a second", w.Limit())
	}
	give(w, &now, plenty, 1<<20)
	if w.Limit() > 2*100/4 {
		t.Errorf("%d blocks after one good moment, want at most twice as many as before", w.Limit())
	}
}

// TestStuckWasAsked: what waits until peers have given other pieces is not stuck; what was asked from one and
// does not come is.
func TestStuckWasAsked(t *testing.T) {
	o := newOffers(4)
	now := time.Unix(1_700_000_000, 0)
	for p := range 4 {
		o.add("peer", p)
		o.want(p, now)
	}
	o.ask(0, now) // the peer keeps it back
	for range 3 {
		now = now.Add(overtakenAfter)
		o.ask(1, now)
	}
	o.got(1)
	o.ask(2, now)
	if got := o.stuck(now, now); len(got) != 1 || got[0] != 0 {
		t.Errorf("stuck are %v, want piece 0", got)
	}
}
