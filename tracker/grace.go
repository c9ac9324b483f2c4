package tracker

import (
	"sync"
	"time"
)

// grace decides how long a swarm grants nothing after the tracker's start. Without it a restart
// would lease again what nodes hold or fetch and have not told yet.
//
// The clock starts with the first announce, not with the process: until the service's address
// leads here again nobody can report, however long that takes. A holder reports within one idle
// interval from then. A swarm in which nothing speaks for a tracker before us waits for one
// interval only, since its nodes begin together; one that is born later than the grace does not
// wait at all.
type grace struct {
	interval time.Duration // short
	long     time.Duration

	mu        sync.Mutex
	first     time.Time // the first announce
	restarted bool      // somebody knew a tracker before us
}

// heard notes an announce or, with announce false, another sign of life with the caller's epoch.
func (g *grace) heard(now time.Time, announce, foreign bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if announce && g.first.IsZero() {
		g.first = now
	}
	g.restarted = g.restarted || foreign
}

// open reports whether it still matters who joins a swarm with pieces.
func (g *grace) open(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return now.Before(g.first.Add(g.long))
}

// end returns before when a swarm that was born at born grants nothing; zero means that it may at
// once. old says that a member joined it with pieces or leases.
func (g *grace) end(born time.Time, old bool) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.first.Add(g.long)
	if !born.Before(all) {
		return time.Time{}
	}
	end := born.Add(g.interval)
	if (old || g.restarted) && end.Before(all) {
		end = all
	}
	return end
}
