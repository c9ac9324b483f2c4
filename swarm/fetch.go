package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// fetchers is how many leased pieces a node fetches at once from the origin, and as many from other zones:
	// the second hides the time that the lease of the first one's successor takes.
	fetchers = 2
	// fetchBuffer is what is read, hashed and written at once.
	fetchBuffer = 256 << 10
	// rounds is how often each origin is tried for a piece before the lease is given back.
	rounds = 3
	// lies is how often one piece may come wrong from every origin before the root is blamed.
	lies = 3
	// firstAgain is how long a later origin is used after the first one failed.
	firstAgain = 15 * time.Second
)

// RootError says that the bytes that all origins deliver are not those which the manifest's
// pieces root promises. Fetching again does not help: the manifest or the origins are wrong.
type RootError struct {
	Digest digest.Digest
	Piece  int
}

// Error implements error.
func (e *RootError) Error() string {
	return fmt.Sprintf("blob %s: piece %d of every origin contradicts the pieces root in the manifest: the manifest lies, or the origins are corrupt", e.Digest, e.Piece)
}

// originChoice remembers which origin works.
type originChoice struct {
	mu    sync.Mutex
	now   int
	since time.Time
	wrong map[int]int // wrong copies of a piece so far
}

func (o *originChoice) pick() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now != 0 && time.Since(o.since) > firstAgain {
		o.now = 0
	}
	return o.now
}

// failed moves on from origin k of n.
func (o *originChoice) failed(k, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.now == k {
		o.now, o.since = (k+1)%n, time.Now()
	}
}

// lied counts a wrong copy of piece i and returns how many there were.
func (o *originChoice) lied(i int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.wrong == nil {
		o.wrong = map[int]int{}
	}
	o.wrong[i]++
	return o.wrong[i]
}

// result is the end of a lease.
type result struct {
	lease Lease
	err   error // nil: the piece is there
}

// fetchLoop works on leases until ctx ends.
func (s *Session) fetchLoop(ctx context.Context, jobs <-chan Lease, results chan<- result) error {
	buf := make([]byte, fetchBuffer)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l := <-jobs:
			err := s.fetchPiece(ctx, l, buf)
			if _, fatal := errors.AsType[*RootError](err); fatal {
				return err
			}
			select {
			case results <- result{l, err}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// fetchPiece brings a leased piece into the storage and publishes it to the peers. A source in another zone
// is asked once: the origin has the piece as well.
func (s *Session) fetchPiece(ctx context.Context, l Lease, buf []byte) error {
	if l.From.Addr != "" {
		err := s.fetchFrom(ctx, farNode{s, l.From.Addr}, l.Piece, buf, &s.imported)
		if err == nil {
			s.sources.gave()
			s.bt.Piece(l.Piece).UpdateCompletion()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.sources.failed(l.From.Name, errors.Is(err, errPiece), time.Now())
		s.log.Info("another zone does not deliver a leased piece", "piece", l.Piece, "from", l.From.Name, "err", err)
	}
	return s.fetchOrigin(ctx, l.Piece, buf)
}

// fetchOrigin is fetchPiece from the origins.
func (s *Session) fetchOrigin(ctx context.Context, i int, buf []byte) error {
	n := len(s.cfg.Origins)
	if n == 0 {
		return errors.New("no origin to fetch from")
	}
	var last error
	for try := range rounds * n {
		if try > 0 && try%n == 0 && !pause(ctx, 200*time.Millisecond<<(try/n)) {
			return ctx.Err()
		}
		k := s.origins.pick()
		err := s.fetchFrom(ctx, s.cfg.Origins[k], i, buf, &s.originBytes)
		switch {
		case err == nil:
			s.bt.Piece(i).UpdateCompletion()
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errPiece):
			if s.origins.lied(i) >= lies*n {
				return &RootError{Digest: s.torrent.Digest, Piece: i}
			}
		}
		last = fmt.Errorf("piece %d of %s: %w", i, s.torrent.Digest, err)
		s.origins.failed(k, n)
	}
	return last
}

// fetchFrom writes piece i as origin has it, and counts the bytes.
func (s *Session) fetchFrom(ctx context.Context, origin Origin, i int, buf []byte, count *atomic.Int64) error {
	start, length := s.torrent.span(i)
	body, err := origin.Range(ctx, start, length)
	if err != nil {
		return err
	}
	defer body.Close()
	for at := int64(0); at < length; {
		part := buf[:min(int64(len(buf)), length-at)]
		if err := s.client.wait(ctx, len(part)); err != nil {
			return err
		}
		n, err := io.ReadFull(body, part)
		count.Add(int64(n))
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at+int64(n), length, err)
		}
		if _, err := s.pieces.writeAt(i, buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
	}
	return s.pieces.seal(i)
}

// pause waits about d, and reports whether ctx is still on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(jitter(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter spreads d over [d/2, 3d/2), so that nodes that failed together do not return together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
