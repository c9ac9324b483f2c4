package mirror

import (
	"sync"
	"time"
)

// confirmations remember which repositories were seen to have which blobs. The mirror keeps a blob once,
// whoever has it; a repository that does not have it must not be a way to it.
type confirmations struct {
	mu sync.Mutex
	of map[failureKey]time.Time // when it was seen
}

const (
	// confirmedFor is for how long a repository is believed to still have a blob. While upstream is down it
	// is longer.
	confirmedFor = 10 * time.Minute
	// maxConfirmed bounds the memory that clients can make us use.
	maxConfirmed = 1 << 16
)

func (c *confirmations) add(key failureKey, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[failureKey]time.Time{}
	}
	if len(c.of) >= maxConfirmed {
		for old, at := range c.of {
			if now.Sub(at) > confirmedFor || len(c.of) >= maxConfirmed {
				delete(c.of, old)
			}
		}
	}
	c.of[key] = now
}

// seen returns when the repository was last seen to have it; ok is false for never.
func (c *confirmations) seen(key failureKey) (at time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok = c.of[key]
	return at, ok
}

func (c *confirmations) drop(key failureKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, key)
}
