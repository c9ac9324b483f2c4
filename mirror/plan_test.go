package mirror

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestPlan takes, writes, breaks off and jumps at random: no byte is taken twice, and none is left.
func TestPlan(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		size, piece := 1+rng.Int64N(500), 1+rng.Int64N(20)
		written := make([]int, size)
		kept := map[int]bool{}
		p := newPlan(size, piece, piece*(1+rng.Int64N(4)), func(i int) bool {
			if rng.IntN(4) == 0 {
				kept[i] = true
			}
			return kept[i]
		})
		for i := range written {
			if kept[i/int(piece)] {
				written[i] = 1
			}
		}
		var running []*span
		for p.missing > 0 {
			if len(running) < 4 && rng.IntN(2) == 0 {
				off := rng.Int64N(size)
				var wants []*waiter
				if rng.IntN(2) == 0 {
					wants = []*waiter{{want: want{off, off + 1 + rng.Int64N(size-off)}}}
				}
				if s := p.take(wants, rng.Int64N(100)); s != nil {
					running = append(running, s)
				}
			}
			if len(running) == 0 {
				continue
			}
			i := rng.IntN(len(running))
			s := running[i]
			n := 1 + rng.Int64N(s.end-s.at)
			for at := s.at; at < s.at+n; at++ {
				written[at]++
			}
			first, last := p.advance(s, n)
			for piece := first; piece < last; piece++ {
				p.done(piece)
			}
			if got := p.available(s.start, s.at); got != s.at {
				t.Fatalf("seed %d: %d to %d written, available %d", seed, s.start, s.at, got)
			}
			if s.at == s.end {
				p.finish(s)
				running = append(running[:i], running[i+1:]...)
			}
		}
		for at, n := range written {
			if n != 1 {
				t.Fatalf("seed %d: byte %d was written %d times", seed, at, n)
			}
		}
		if s := p.take(nil, 0); s != nil || p.available(0, size) != size {
			t.Fatalf("seed %d: not at its end", seed)
		}
	}
}

// TestPlanGivesUp shows that the rest of a range that failed is free again.
func TestPlanGivesUp(t *testing.T) {
	p := newPlan(100, 10, 40, func(int) bool { return false })
	s := p.take(nil, 0)
	first, last := p.advance(s, 25)
	for i := first; i < last; i++ {
		p.done(i)
	}
	p.finish(s)
	if again := p.take(nil, 0); again.start != 20 || again.end != 60 {
		t.Errorf("%+v", again)
	}
}

func TestPauseAfter(t *testing.T) {
	for name, tc := range map[string]struct {
		err      error
		count    int
		min, max time.Duration
	}{
		"ours":             {ErrStopped, 0, 0, 0},
		"nothing":          {nil, 0, 0, 0},
		"not found":        {&UpstreamError{Status: 404}, 9, 2 * time.Second, 3 * time.Second},
		"refused":          {&UpstreamError{Status: 403}, 9, 5 * time.Second, 8 * time.Second},
		"down":             {&UpstreamError{}, 0, time.Second, 2 * time.Second},
		"down again":       {&UpstreamError{Status: 503}, 3, 8 * time.Second, 12 * time.Second},
		"down for long":    {&UpstreamError{Status: 503}, 99, time.Minute, 90 * time.Second},
		"limited":          {&UpstreamError{Status: 429, RetryAfter: 20 * time.Second}, 0, 20 * time.Second, 30 * time.Second},
		"limited for long": {&UpstreamError{Status: 429, RetryAfter: 24 * time.Hour}, 0, 5 * time.Minute, 8 * time.Minute},
	} {
		got, ok := pauseAfter(tc.err, tc.count)
		if got < tc.min || got > tc.max || ok != (tc.max > 0) {
			t.Errorf("%s: %v %v", name, got, ok)
		}
	}
}

func TestFailuresPass(t *testing.T) {
	var f failures
	key := failureKey{Source{"a", "b"}, "c"}
	now := time.Now()
	f.note(key, &UpstreamError{Status: 503}, now)
	if f.check(key, now) == nil {
		t.Error("is not remembered")
	}
	if err := f.check(key, now.Add(2*time.Second)); err != nil {
		t.Errorf("is remembered too long: %v", err)
	}
	if n := f.count(key, now.Add(2*time.Second)); n != 1 {
		t.Errorf("count %d", n)
	}
	if n := f.count(key, now.Add(time.Hour)); n != 0 {
		t.Errorf("count %d after an hour", n)
	}
	for i := range 2 * maxFailures {
		f.note(failureKey{Source{"a", "b"}, itoa(int64(i))}, &UpstreamError{Status: 503}, now)
	}
	if len(f.of) > maxFailures {
		t.Errorf("%d failures are kept", len(f.of))
	}
}
