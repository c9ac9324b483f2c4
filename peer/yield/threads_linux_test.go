package yield

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const lowerEnv = "SHOAL_TEST_LOWER"

// beLowered makes this process the child of TestSetThreads where it is: what it lowers stays low.
func beLowered() bool {
	if os.Getenv(lowerEnv) == "" {
		return false
	}
	if err := lowerAndLook(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// lowerAndLook starts threads before and after they are placed, and looks at all of them.
func lowerAndLook() error {
	block := make(chan struct{})
	defer close(block)
	more := func() {
		started := make(chan struct{})
		for range 8 {
			go func() {
				started <- struct{}{}
				var fds [2]int
				if unix.Pipe(fds[:]) == nil {
					_, _ = unix.Read(fds[0], make([]byte, 1)) // a blocking call holds a thread
				}
			}()
			<-started
		}
	}
	more()
	places := []place{placeNice}
	if err := mayReturn(); err == nil {
		places = []place{placeLast, placeNice, placeLast}
	}
	for _, p := range places {
		if err := setThreads(p, 0); err != nil {
			return err
		}
		more()
		if err := allAt(p); err != nil {
			return err
		}
	}
	return nil
}

func allAt(p place) error {
	tids, err := threads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		got, err := unix.SchedGetAttr(tid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		if last := got.Policy == unix.SCHED_IDLE; last != (p == placeLast) || !last && got.Nice != lowerNice {
			return fmt.Errorf("thread %d of %d, place %d: %+v", tid, len(tids), p, *got)
		}
		class, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, uintptr(tid), 0)
		if errno != 0 || class != ioprioBestEffort<<ioprioClassShift|ioprioLast {
			return fmt.Errorf("thread %d: disk priority %#x, %w", tid, class, errno)
		}
	}
	return nil
}

func TestSetThreads(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), lowerEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestCanary wants it to measure where it may, and to end with its context.
func TestCanary(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := newCanary()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	if _, err := c.Stalls(time.Second); err != nil && !errors.Is(err, ErrNoPressure) {
		t.Error(err)
	}
	for c.naps.Load() == 0 && !c.failed.Load() {
		select {
		case <-t.Context().Done():
			t.Fatal("no nap")
		case <-time.After(time.Millisecond):
		}
	}
	s, err := c.Stalls(time.Second)
	if s[CPU] < 0 || s[CPU] > 1 || err != nil && !errors.Is(err, ErrNoPressure) {
		t.Errorf("%v, %v", s, err)
	}
	c.rest()
	cancel()
	err = <-done
	if c.naps.Load() > 0 && err != nil {
		t.Error(err)
	}
	if _, err := c.Stalls(time.Second); !errors.Is(err, ErrNoPressure) {
		t.Errorf("after its end: %v", err)
	}
}
