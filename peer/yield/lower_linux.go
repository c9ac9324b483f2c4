package yield

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// lowerNice gives our threads about a ninth of the CPU time of a serving thread that wants
	// the same CPU, and lets a serving thread that wakes up go first. Not SCHED_IDLE: it
	// shortened a server's slowest requests no further, and on a busy machine a thread that holds
	// the Go runtime's locks, or answers the gossip, would not run at all.
	lowerNice = 10
	// best effort, the last of its eight levels (ioprio_set(2)).
	ioprioClassShift = 13
	ioprioBestEffort = 2
	ioprioLast       = 7
	ioprioWhoProcess = 1
	// maxPasses bounds the passes over the threads: one that was not yet lowered may have started
	// another meanwhile.
	maxPasses = 10
)

// Lower puts all threads of this process at nice 10 and at the last level of best-effort disk
// priority; threads that start later inherit both. A process that is nicer already stays so. It
// is for the start of the daemon, before the work: on Linux both are properties of a thread
// (setpriority(2), "C library/kernel differences").
//
// Nice decides among the threads of one cgroup. In Kubernetes every pod has its own, and between
// them the agent's cpu.weight decides, which follows from the CPU request in its manifest: a
// small request is what makes it yield there. Disk priority is obeyed by the bfq scheduler (and
// its class, not its level, by mq-deadline); other schedulers, and data that is written back
// from the page cache, know nothing of it.
func Lower() error {
	done := map[int]bool{}
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
			if err := lowerThread(tid); err != nil {
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

func lowerThread(tid int) error {
	// The system call returns 20 - nice, so that no value looks like an error.
	got, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err == nil && 20-got < lowerNice {
		err = unix.Setpriority(unix.PRIO_PROCESS, tid, lowerNice)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) { // threads end
		return fmt.Errorf("lower the CPU priority of thread %d: %w", tid, err)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(tid),
		ioprioBestEffort<<ioprioClassShift|ioprioLast)
	if errno != 0 && errno != unix.ESRCH {
		return fmt.Errorf("lower the disk priority of thread %d: %w", tid, errno)
	}
	return nil
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
