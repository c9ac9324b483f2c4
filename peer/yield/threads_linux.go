package yield

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	lowerNice = 10
	// best effort, the last of its eight levels (ioprio_set(2)).
	ioprioClassShift = 13
	ioprioBestEffort = 2
	ioprioLast       = 7
	ioprioWhoProcess = 1
	// maxPasses bounds the passes over the threads: one that was not yet placed may have started
	// another meanwhile.
	maxPasses = 10
)

// setThreads puts all threads of this process but one at a place in the line for the CPU, and at the
// last level of best-effort disk priority; threads that start later inherit both. On Linux both are
// properties of a thread (setpriority(2), "C library/kernel differences").
//
// The place decides among the threads of one cgroup. In Kubernetes every pod has its own, and between
// them the agent's cpu.weight decides, which follows from the CPU request in its manifest: a small
// request is what makes it yield there. Disk priority is obeyed by the bfq scheduler (and its class,
// not its level, by mq-deadline); other schedulers, and data that is written back from the page cache,
// know nothing of it.
func setThreads(p place, but int) error {
	done := map[int]bool{but: true}
	for range maxPasses {
		tids, err := threads()
		if err != nil {
			return err
		}
		fresh := false
		for _, tid := range tids {
			if done[tid] {
				continue
			}
			if err := setThread(tid, p); err != nil {
				return err
			}
			done[tid], fresh = true, true
		}
		if !fresh {
			return nil
		}
	}
	return nil
}

func setThread(tid int, p place) error {
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: lowerNice}
	if p == placeLast {
		attr.Policy = unix.SCHED_IDLE
	}
	if err := unix.SchedSetAttr(tid, attr, 0); err != nil && !errors.Is(err, unix.ESRCH) { // threads end
		return fmt.Errorf("lower the CPU priority of thread %d: %w", tid, err)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid),
		ioprioBestEffort<<ioprioClassShift|ioprioLast)
	if errno != 0 && errno != unix.ESRCH {
		return fmt.Errorf("lower the disk priority of thread %d: %w", tid, errno)
	}
	return nil
}

// mayReturn reports whether a thread may leave placeLast again, which needs CAP_SYS_NICE.
func mayReturn() error {
	answer := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime ends the thread with the goroutine
		tid := unix.Gettid()
		err := setThread(tid, placeLast)
		if err == nil {
			err = setThread(tid, placeNice)
		}
		answer <- err
	}()
	return <-answer
}

func threads() ([]int, error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, fmt.Errorf("the threads of this process: %w", err)
	}
	var tids []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}
