// Package recent remembers answers for a while, and no more of them than it is told: what is asked comes from
// outside, and so does how much of it there is.
package recent

import (
	"sync"
	"time"
)

// Map remembers values by key. Make one with New; many goroutines may use it.
type Map[K comparable, V any] struct {
	keep time.Duration
	max  int

	mu sync.Mutex
	of map[K]entry[V]
}

type entry[V any] struct {
	value V
	at    time.Time
}

// New returns a Map whose values are fresh for keep, and of which there are at most limit.
func New[K comparable, V any](keep time.Duration, limit int) *Map[K, V] {
	return &Map[K, V]{keep: keep, max: limit, of: map[K]entry[V]{}}
}

// Put remembers value from now on. Where there is no room, those that are not fresh go, or any.
func (m *Map[K, V]) Put(key K, value V, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.of[key]; !known && len(m.of) >= m.max {
		for old, e := range m.of {
			if now.Sub(e.at) >= m.keep || len(m.of) >= m.max {
				delete(m.of, old)
			}
		}
	}
	m.of[key] = entry[V]{value, now}
}

// Get returns the value of key, if one is remembered, and whether it is still fresh.
func (m *Map[K, V]) Get(key K, now time.Time) (value V, known, fresh bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, known := m.of[key]
	return e.value, known, known && now.Sub(e.at) < m.keep
}

// Delete forgets key.
func (m *Map[K, V]) Delete(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.of, key)
}
