package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/bench/internal/sample"
)

// inside is set for the process that runs in the private namespaces.
const inside = "SHOAL_BENCH_DIR"

// dirPrefix begins the names of the folders that runs leave when they are killed; the next run removes
// them: there is one at a time.
const dirPrefix = "shoal-bench-"

// isolate runs this program again, as the first process of namespaces of its own for processes, network
// and mounts: however that process ends, the kernel ends what it started, and nothing of the network
// was ever visible outside. It returns the exit code of the run.
func isolate(ctx context.Context, parent string) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("the bench makes network namespaces and shapes links, for which it has to be root: sudo make bench-fanout")
	}
	// A name in the abstract namespace of unix(7): one bench on the machine, and nothing left when it ends.
	lock, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@shoal-bench")
	if err != nil {
		return 0, fmt.Errorf("another bench is running, and two would measure each other: %w", err)
	}
	defer lock.Close()
	left, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		return 0, err
	}
	for _, dir := range left {
		if err := sample.Remove(dir); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp(parent, dirPrefix)
	if err != nil {
		return 0, err
	}
	defer func() { _ = sample.Remove(dir) }()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // Pdeathsig is about the thread that starts the child
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // an interrupt from the terminal reaches us only, and we end it by ctx
	}
	err = cmd.Run()
	switch exit := (*exec.ExitError)(nil); {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return 130, nil // as a shell calls the end by an interrupt
	case !errors.As(err, &exit):
		return 0, fmt.Errorf("private namespaces: %w", err)
	default:
		return max(1, exit.ExitCode()), nil
	}
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
