package mirror

import (
	"sync"
	"time"
)

const (
	// window is for how long the rate is measured. The window after a change says nothing: connections begin
	// slowly.
	window = 500 * time.Millisecond
	// paysMore is how many times the rate twice the streams have to bring, paysLess what half of them may cost.
	paysMore, paysLess = 1.2, 0.95
	// firstTrial is how long after the begin of a fill the first trial is, firstPause how long one that did not pay is
	// the last one; that doubles up to maxPause.
	firstTrial, firstPause, maxPause = 2 * time.Second, 10 * time.Second, 5 * time.Minute
)

// streams decides how many ranges of a blob are read from an upstream at once, for all blobs alike. One after
// the other they come in the order in which nodes lease, with the fewest requests. Several at once are faster where the
// link carries more than one connection does: object stores bound each, and so does its window over a long
// way. Which it is shows only in trying: from time to time, whether twice as many bring more, or half of them as
// much.
type streams struct {
	most int

	mu      sync.Mutex
	count   int
	readers int
	since   time.Time // begin of the window
	bytes   int64     // in it
	settle  bool      // the window does not count
	ending  int       // ranges that have to end before one counts: then the streams are as many as they should be
	idle    time.Time // since when there are no readers
	before  int       // the count before the trial, 0: none is on
	rate    float64   // before the trial, bytes a second
	less    bool      // the next trial is one with less
	next    time.Time // trial
	pause   time.Duration
}

func newStreams(most int) *streams { return &streams{most: most, count: 1, pause: firstPause} }

// each returns how many streams a blob should have.
func (s *streams) each() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// begin notes one more range that is being read, end one less.
func (s *streams) begin(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers == 0 && now.Sub(s.idle) >= window {
		if s.before > 0 {
			s.count, s.before = s.before, 0
		}
		s.since, s.bytes, s.settle, s.ending = now, 0, true, 0
		if first := now.Add(firstTrial); s.next.Before(first) {
			s.next = first
		}
	}
	s.readers++
}

func (s *streams) end(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
	s.ending = max(0, s.ending-1)
	if s.readers == 0 {
		s.idle = now
	}
}

// read notes n bytes.
func (s *streams) read(n int64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes += n
	if now.Sub(s.since) >= window {
		s.turn(now)
	}
}

// turn ends a window.
func (s *streams) turn(now time.Time) {
	took := now.Sub(s.since)
	rate := float64(s.bytes) / took.Seconds()
	s.since, s.bytes = now, 0
	switch {
	case s.settle:
		s.settle = s.ending > 0
	case s.before > 0:
		s.judge(rate, now)
	case s.most > 1 && !now.Before(s.next):
		s.try(rate)
	}
}

// try begins a trial; rate is that of now.
func (s *streams) try(rate float64) {
	s.before, s.rate, s.settle, s.ending = s.count, rate, true, s.readers
	if s.count == s.most || s.less && s.count > 1 {
		s.count = (s.count + 1) / 2
	} else {
		s.count = min(2*s.count, s.most)
	}
}

// judge ends a trial that had the given rate.
func (s *streams) judge(rate float64, now time.Time) {
	s.less = s.count < s.before
	enough := paysMore
	if s.less {
		enough = paysLess
	}
	if rate >= enough*s.rate {
		s.pause, s.next = firstPause, now // and further that way
		if s.count == 1 || s.count == s.most {
			s.next = now.Add(firstPause)
		}
	} else {
		s.count, s.settle = s.before, true
		s.less = !s.less
		s.next = now.Add(s.pause)
		s.pause = min(2*s.pause, maxPause)
	}
	s.before = 0
}
