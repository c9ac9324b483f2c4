package swarm

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// sourceRest is how long a node of another zone is not asked again after it gave nothing, and liarRest
	// after it gave wrong bytes.
	sourceRest = 30 * time.Second
	liarRest   = 10 * time.Minute
	// farLost is how many sources in a row may give nothing before the node takes it that it cannot reach
	// other zones at all: each costs a dial that may take long.
	farLost = 3
)

// sources notes which nodes of other zones gave nothing.
type sources struct {
	mu       sync.Mutex
	until    map[string]time.Time // they are not asked before
	failures int                  // in a row
	rest     time.Time            // none is asked before
}

// gave notes that some source delivered.
func (s *sources) gave() {
	s.mu.Lock()
	s.failures = 0
	s.mu.Unlock()
}

// failed notes that the named source gave nothing, or a lie.
func (s *sources) failed(name string, lied bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[string]time.Time{}
	}
	rest := sourceRest
	if lied {
		rest = liarRest
	}
	s.until[name] = now.Add(rest)
	if lied {
		return // it was reached
	}
	if s.failures++; s.failures >= farLost {
		s.failures = 0
		s.rest = now.Add(sourceRest)
	}
}

// doubts returns the names of those that gave nothing of late.
func (s *sources) doubts(now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.until, func(_ string, until time.Time) bool { return now.After(until) })
	return slices.Sorted(maps.Keys(s.until))
}

// unreachable reports whether no other zone can be reached, as far as the node knows.
func (s *sources) unreachable(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.rest)
}
