package peer

import (
	"context"
	"errors"
	"time"
)

// errScrubbed is what a model's report says while pieces that changed on disk are fetched again.
var errScrubbed = errors.New("pieces on disk are wrong")

// unready takes back that every piece is right.
func (sd *seed) unready() {
	sd.mu.Lock()
	select {
	case <-sd.ready:
		sd.ready = make(chan struct{})
	default:
	}
	sd.mu.Unlock()
	sd.all.spoil()
}

// spoil wakes those who look after models that were ready.
func (s *seeds) spoil() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.spoiled)
	s.spoiled = make(chan struct{})
}

// spoils returns what is closed at the next spoil.
func (s *seeds) spoils() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spoiled
}

// scrubLoop hashes every ready layer again, each once in every.
func (s *seeds) scrubLoop(ctx context.Context, every time.Duration) error {
	for pause(ctx, every) {
		s.mu.Lock()
		var now []*seed
		for _, sd := range s.byKey {
			if sd.isReady() {
				now = append(now, sd)
			}
		}
		s.mu.Unlock()
		for _, sd := range now {
			answer := make(chan []int, 1)
			select {
			case sd.scrub <- answer:
				<-answer
			case <-sd.ended:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return ctx.Err()
}
