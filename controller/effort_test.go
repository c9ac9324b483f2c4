package controller

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

var key = effortKey{"uid", "one"}

// rig runs efforts until the test ends.
func rig(t *testing.T, parallel int) (e *efforts, told *atomic.Int32) {
	ctx, cancel := context.WithCancel(context.Background())
	told = new(atomic.Int32)
	e = newEfforts(ctx, parallel, time.Minute, func(types.UID) { told.Add(1) })
	t.Cleanup(func() {
		cancel()
		e.wait()
	})
	return e, told
}

func TestEffortIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, told := rig(t, 1)
		runs := 0
		fails := func(context.Context, func(progress)) (any, error) {
			runs++
			return nil, errors.New("no")
		}
		for range 5 {
			e.ensure(key, "a", fails)
			synctest.Wait()
		}
		if s := e.look(key); runs != 1 || s.Err == nil || s.Tries != 1 || !s.Next.After(time.Now()) || told.Load() != 1 {
			t.Errorf("%d runs, %+v, told %d times", runs, s, told.Load())
		}
		time.Sleep(firstPause)
		e.ensure(key, "a", fails)
		synctest.Wait()
		if s := e.look(key); runs != 2 || s.Tries != 2 {
			t.Errorf("after the pause: %d runs, %+v", runs, s)
		}
		// Another input need not wait.
		e.ensure(key, "b", func(context.Context, func(progress)) (any, error) {
			runs++
			return "done", nil
		})
		synctest.Wait()
		if s := e.look(key); runs != 3 || !s.Ended || s.Err != nil || s.Tries != 0 || s.Result != "done" {
			t.Errorf("with another input: %d runs, %+v", runs, s)
		}
		for tries := range 40 {
			if pause := min(firstPause<<min(tries, 10), lastPause); pause <= 0 || pause > lastPause {
				t.Errorf("pause %s after %d tries", pause, tries)
			}
		}
	})
}

func TestEffortOfAnotherInputEndsTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := rig(t, 1)
		var ended bool
		e.ensure(key, "a", func(ctx context.Context, _ func(progress)) (any, error) {
			<-ctx.Done()
			ended = true
			return "old", nil // as if it had just been done
		})
		synctest.Wait()
		next := func(context.Context, func(progress)) (any, error) { return "new", nil }
		e.ensure(key, "b", next)
		synctest.Wait()
		if s := e.look(key); !ended || s.Running || s.Result != nil {
			t.Errorf("the old one: ended %v, %+v", ended, s)
		}
		e.ensure(key, "b", next)
		synctest.Wait()
		if s := e.look(key); s.Result != "new" {
			t.Errorf("the new one: %+v", s)
		}
	})
}

func TestEffortsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := rig(t, 2)
		at, most := 0, 0
		step := make(chan struct{})
		for _, name := range []string{"a", "b", "c", "d", "e"} {
			e.ensure(effortKey{"uid", name}, "", func(context.Context, func(progress)) (any, error) {
				e.mu.Lock()
				at++
				most = max(most, at)
				e.mu.Unlock()
				<-step
				e.mu.Lock()
				at--
				e.mu.Unlock()
				return nil, nil
			})
		}
		synctest.Wait()
		e.mu.Lock()
		if most != 2 {
			t.Errorf("%d at once", most)
		}
		e.mu.Unlock()
		if !e.busy("uid") {
			t.Error("not busy")
		}
		close(step)
		synctest.Wait()
		if e.busy("uid") || e.busy("other") {
			t.Error("still busy")
		}
		e.keep("uid", func(name string) bool { return name == "a" })
		if len(e.of) != 1 {
			t.Errorf("%d are remembered", len(e.of))
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := rig(t, 1)
		step := make(chan int64)
		e.ensure(key, "", func(_ context.Context, tell func(progress)) (any, error) {
			for done := range step {
				tell(progress{Done: done, Total: 1000, Note: "r"})
			}
			return nil, nil
		})
		for i := range int64(30) {
			step <- i * 10
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if p := e.look(key).Progress; p.PerSecond != 10 || p.Done != 290 || p.Note != "r" {
			t.Errorf("%+v", p)
		}
		close(step)
		synctest.Wait()
		if p := e.look(key).Progress; p.PerSecond != 0 {
			t.Errorf("at rest: %+v", p)
		}
	})
}
