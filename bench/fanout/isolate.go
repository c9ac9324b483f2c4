package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is set for the process that runs in the private namespaces.
const inside = "SHOAL_BENCH_DIR"

// dirPrefix begins the names of the folders that runs leave when they are killed; the next run, which
// holds the lock, removes them.
const dirPrefix = "shoal-bench-"

// isolate runs this program again, as the first process of namespaces of its own for processes, network
// and mounts: however that process ends, the kernel ends what it started, and nothing of the network
// was ever visible outside. It returns the exit code of the run.
func isolate(ctx context.Context, parent string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("the bench makes network namespaces and shapes links, for which it has to be root: sudo make bench-fanout")
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	lock, err := os.Open(self)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return 0, errors.New("another bench is running, and two would measure each other")
	}
	left, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		return 0, err
	}
	for _, dir := range left {
		if err := removeAll(dir); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return 0, err
	}
	defer func() { _ = removeAll(dir) }()
	cmd := exec.Command(self, os.Args[1:]...) //nolint:noctx // ended by a signal below
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("private namespaces: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-signals:
		_ = cmd.Process.Kill()
		err = <-done
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		err = <-done
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 130, nil // killed
}

// settle makes the mounts private: /proc shows this namespace, and ip finds its folder.
func settle() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"none", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"sysfs", "/sys", "sysfs", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount of %s: %w", m.target, err)
		}
	}
	return nil
}

// removeAll removes dir with its read-only folders.
func removeAll(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700) //nolint:gosec // a folder
		}
		return nil
	})
	return os.RemoveAll(dir)
}
