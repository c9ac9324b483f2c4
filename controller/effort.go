package controller

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// effort is one long task for one object: it runs, has ended well, or waits before it is tried again.
type effort struct {
	// input says for what the last run was: another input is another task, which need not wait.
	input   string
	cancel  context.CancelFunc
	running bool
	ended   bool // well
	err     error
	tries   int       // failures in a row
	next    time.Time // when to try again, or to look again after a success
	done    chan struct{}

	progress progress
	result   any // of the last run that ended well
}

// progress is what a running effort says of itself. All are bytes.
type progress struct {
	Done, Reused, Total int64
	PerSecond           int64
	// Note is what the effort learns before it ends, such as a revision.
	Note string
}

// snapshot is an effort as plan and status see it. The zero value is one that never ran.
type snapshot struct {
	Running, Ended bool
	Err            error
	Tries          int
	Next           time.Time
	Progress       progress
	Result         any
}

// effortKey names an effort of an object.
type effortKey struct {
	uid  types.UID
	name string
}

// efforts runs them, a few at once.
type efforts struct {
	slots   chan struct{}
	changed func(uid types.UID) // something about the object is other than it was
	again   time.Duration       // after a success

	mu      sync.Mutex
	ctx     context.Context // of all runs
	of      map[effortKey]*effort
	running sync.WaitGroup
}

const (
	// firstPause is the wait after a failure; it doubles up to lastPause, each shortened by a random part of up
	// to a half.
	firstPause, lastPause = time.Second, time.Minute
	// rateSpan is the time over which a rate is measured.
	rateSpan = 5 * time.Second
)

func newEfforts(ctx context.Context, parallel int, again time.Duration, changed func(types.UID)) *efforts {
	return &efforts{
		slots: make(chan struct{}, parallel), changed: changed, again: again, ctx: ctx,
		of: map[effortKey]*effort{},
	}
}

// ensure starts the effort unless it runs, waits, or has ended well for the same input a short while ago. fn tells its
// progress by tell, which may be called by several goroutines.
func (e *efforts) ensure(key effortKey, input string, fn func(ctx context.Context, tell func(progress)) (any, error)) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.of[key]
	if f == nil {
		f = &effort{}
		e.of[key] = f
	}
	if f.running && f.input != input {
		f.cancel() // the run that ends asks for a look, and that begins the new one
	}
	if f.running || f.input == input && now.Before(f.next) || e.ctx.Err() != nil {
		return
	}
	if f.input != input {
		f.ended, f.err, f.tries, f.result = false, nil, 0, nil
	}
	ctx, cancel := context.WithCancel(e.ctx)
	f.input, f.cancel, f.running, f.done = input, cancel, true, make(chan struct{})
	f.progress = progress{}
	e.running.Go(func() { e.run(ctx, key, f, fn) })
}

func (e *efforts) run(ctx context.Context, key effortKey, f *effort, fn func(context.Context, func(progress)) (any, error)) {
	defer close(f.done)
	defer f.cancel()
	var result any
	var err error
	select {
	case e.slots <- struct{}{}:
		result, err = fn(ctx, e.teller(f))
		<-e.slots
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.mu.Lock()
	f.running = false
	switch {
	case ctx.Err() != nil: // it was not wanted any more
		f.next = time.Time{}
	case err != nil:
		f.ended, f.err = false, err
		pause := min(firstPause<<min(f.tries, 10), lastPause)
		f.tries++
		f.next = time.Now().Add(pause - rand.N(pause/2))
	default:
		f.ended, f.err, f.tries = true, nil, 0
		f.next = time.Now().Add(e.again)
		f.result = result
	}
	e.mu.Unlock()
	e.changed(key.uid)
}

// teller measures the rate of what an effort tells.
func (e *efforts) teller(f *effort) func(progress) {
	var since time.Time
	var from, rate int64
	return func(p progress) {
		now := time.Now()
		e.mu.Lock()
		defer e.mu.Unlock()
		switch {
		case since.IsZero():
			since, from = now, p.Done
		case now.Sub(since) >= rateSpan:
			rate = int64(float64(p.Done-from) / now.Sub(since).Seconds())
			since, from = now, p.Done
		case rate == 0 && now.After(since):
			rate = int64(float64(p.Done-from) / now.Sub(since).Seconds())
		}
		if p.Note == "" {
			p.Note = f.progress.Note
		}
		p.PerSecond = rate
		f.progress = p
	}
}

// look returns how far an effort is.
func (e *efforts) look(key effortKey) snapshot {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.of[key]
	if f == nil {
		return snapshot{}
	}
	s := snapshot{Running: f.running, Ended: f.ended, Err: f.err, Tries: f.tries, Next: f.next, Progress: f.progress, Result: f.result}
	if !s.Running {
		s.Progress.PerSecond = 0
	}
	return s
}

// keep ends the object's efforts that are not wanted any more, and forgets them.
func (e *efforts) keep(uid types.UID, wanted func(name string) bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, f := range e.of {
		if key.uid != uid || wanted(key.name) {
			continue
		}
		if f.running {
			f.cancel()
			continue // forgotten by a later keep
		}
		delete(e.of, key)
	}
}

// busy reports whether an effort of the object runs.
func (e *efforts) busy(uid types.UID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, f := range e.of {
		if key.uid == uid && f.running {
			return true
		}
	}
	return false
}

// wait waits for all runs, after the context of newEfforts has ended.
func (e *efforts) wait() { e.running.Wait() }
