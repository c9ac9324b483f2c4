package yield

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// canaryNap is the time between two wake-ups: 200 in a second see a stall of a millisecond
	// that a fiftieth of them meets, and cost a thousandth of a CPU.
	canaryNap = 5 * time.Millisecond
	// canaryIdle is how often a canary that nobody asks looks whether somebody does.
	canaryIdle = time.Second
)

// canary measures how long a thread at normal priority waits for a CPU. Not the time by which a
// nap is too long: that has the Go scheduler's queue in it, which is ours and no pod's.
type canary struct {
	tid    atomic.Int64 // of its thread, 0 before it runs
	wanted atomic.Bool
	naps   atomic.Int64
	delay  atomic.Int64 // nanoseconds
	failed atomic.Bool

	lastNaps  int64
	lastDelay int64
}

func newCanary() *canary { return new(canary) }

// Run naps until ctx ends.
func (c *canary) Run(ctx context.Context) error {
	err := c.run(ctx)
	c.failed.Store(true)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *canary) run(ctx context.Context) error {
	// Never unlocked: the thread's priority is its own, so the runtime ends the thread with it.
	runtime.LockOSThread()
	tid := unix.Gettid()
	c.tid.Store(int64(tid))
	if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
		return fmt.Errorf("canary: back to normal priority (this needs CAP_SYS_NICE): %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/schedstat", tid))
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	defer f.Close()
	var buf [96]byte
	nap := syscall.NsecToTimespec(int64(canaryNap))
	idle := time.NewTicker(canaryIdle)
	defer idle.Stop()
	for ctx.Err() == nil {
		if !c.wanted.Load() {
			select {
			case <-ctx.Done():
			case <-idle.C:
			}
			continue
		}
		// An interrupted nap is a shorter nap.
		if err := syscall.Nanosleep(&nap, nil); err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("canary: nanosleep: %w", err)
		}
		n, err := f.ReadAt(buf[:], 0)
		if n == 0 {
			return fmt.Errorf("canary: schedstat: %w", err)
		}
		delay, err := parseRunDelay(buf[:n])
		if err != nil {
			return err
		}
		c.delay.Store(int64(delay))
		c.naps.Add(1)
	}
	return nil
}

// Stalls implements Source.
func (c *canary) Stalls(time.Duration) (s Stalls, err error) {
	if c.failed.Load() {
		return s, ErrNoPressure
	}
	if !c.wanted.Swap(true) {
		c.lastNaps, c.lastDelay = c.naps.Load(), c.delay.Load()
		return s, nil
	}
	naps, delay := c.naps.Load(), c.delay.Load()
	waited, napped := delay-c.lastDelay, (naps-c.lastNaps)*int64(canaryNap)
	if c.lastDelay > 0 && napped > 0 {
		s[CPU] = float64(waited) / float64(waited+napped)
	}
	c.lastNaps, c.lastDelay = naps, delay
	return s, nil
}

// thread is the canary's own, which stays where it is.
func (c *canary) thread() int { return int(c.tid.Load()) }

// rest ends the measuring until the next call of Stalls.
func (c *canary) rest() { c.wanted.Store(false) }
