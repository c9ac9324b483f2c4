// Command build makes the programs of a test cluster from Go modules, each once: a program whose versions
// and flags are those of the last time is left as it is.
//
//	cd test/tools && go run ./build --out ../../bin/tools
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	out := flag.String("out", "../../bin/tools", "folder for the programs")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: build [--out DIR] [PROGRAM...]\n\nMakes the programs of a test cluster; all of them, or those named:")
		for _, p := range programs {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-24s %s\n", p.name, p.what)
		}
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, names []string) error {
	wanted, err := choose(names)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(out, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	began := time.Now()
	for i, p := range wanted {
		fresh, err := p.build(ctx, out, fmt.Sprintf("%d of %d: %s", i+1, len(wanted), p.name))
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if fresh {
			fmt.Fprintf(os.Stderr, "%s is made, %s after the beginning\n", p.name, time.Since(began).Round(time.Second))
		}
	}
	fmt.Fprintf(os.Stderr, "%d programs are in %s (%s)\n", len(wanted), out, time.Since(began).Round(time.Second))
	return missingPackages()
}

func choose(names []string) ([]program, error) {
	if len(names) == 0 {
		return programs, nil
	}
	var wanted []program
	for _, name := range names {
		i := slices.IndexFunc(programs, func(p program) bool { return p.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no program %q: see --help", name)
		}
		wanted = append(wanted, programs[i])
	}
	return wanted, nil
}

// lock waits until no other build works in the folder.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	said := false
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if !said {
			fmt.Fprintln(os.Stderr, "another build works in this folder: waiting for its end")
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// needed are the commands that a cluster takes from the system, and Debian's packages that have them.
var needed = map[string]string{
	"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount", "runc": "runc",
}

// missingPackages names what a cluster needs of the system and does not find.
func missingPackages() error {
	var packages []string
	for command, pkg := range needed {
		if _, err := exec.LookPath(command); err != nil && !slices.Contains(packages, pkg) {
			packages = append(packages, pkg)
		}
	}
	if len(packages) == 0 {
		return nil
	}
	slices.Sort(packages)
	return fmt.Errorf("a cluster needs more of the system: apt-get install %s", strings.Join(packages, " "))
}
