package mirror

import (
	"context"
	"sync"
)

// runner runs what outlives the request that started it, inside Mirror.Run. Until that runs, it
// queues.
type runner struct {
	kick chan struct{} // of one: something is queued

	mu      sync.Mutex
	queue   []func(context.Context)
	stopped bool
}

// start has fn run in a goroutine of its own, with Run's context. It reports false after its end.
func (r *runner) start(fn func(context.Context)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return false
	}
	r.queue = append(r.queue, fn)
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return true
}

func (r *runner) take(stop bool) []func(context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = r.stopped || stop
	queue := r.queue
	r.queue = nil
	return queue
}

// run starts what is queued until ctx ends, and waits for all of it.
func (r *runner) run(ctx context.Context) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case <-ctx.Done():
			for _, fn := range r.take(true) {
				group.Go(func() { fn(ctx) })
			}
			return
		case <-r.kick:
			for _, fn := range r.take(false) {
				group.Go(func() { fn(ctx) })
			}
		}
	}
}

// flights joins callers who want the same thing at the same time.
type flights struct {
	mu sync.Mutex
	of map[string]*flight
}

type flight struct {
	done  chan struct{}
	value any
	err   error
}

// do returns what fn returns for key. Callers who come while it runs share it; the end of one
// caller's ctx ends nobody else's wait.
func (m *Mirror) do(ctx context.Context, key string, fn func(context.Context) (any, error)) (any, error) {
	m.flights.mu.Lock()
	f := m.flights.of[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		started := m.runner.start(func(run context.Context) {
			f.value, f.err = fn(run)
			if run.Err() != nil && f.err != nil {
				f.err = ErrStopped
			}
			m.flights.mu.Lock()
			delete(m.flights.of, key)
			m.flights.mu.Unlock()
			close(f.done)
		})
		if !started {
			m.flights.mu.Unlock()
			return nil, ErrStopped
		}
		if m.flights.of == nil {
			m.flights.of = map[string]*flight{}
		}
		m.flights.of[key] = f
	}
	m.flights.mu.Unlock()
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
