package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the shoal program that TestMain built.
var binary string

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := runHelper(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "shoal-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "shoal")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-o", binary, "../cmd/shoal").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("go build ./cmd/shoal: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// watchTree lists every directory of the module. `go test` reuses a result until something that the
// tests themselves opened has changed, and what the program was built from is not that.
var watchTree = sync.OnceValue(func() error {
	const root = ".."
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			return err
		}
		if name := d.Name(); strings.HasPrefix(name, ".") || name == "bin" {
			return filepath.SkipDir
		}
		return nil
	})
})

// shoal prepares a run of the program with args. It sees neither the user's registry credentials
// nor the user's state, and is killed at the end of the test.
func shoal(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if err := watchTree(); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"), "DOCKER_CONFIG="+home)
	// A program that outlives a killed test would hold its pipes open for ever.
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// result is how a run of the program ended.
type result struct {
	code           int // -1: by a signal
	stdout, stderr string
}

// finish runs cmd to its end.
func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	return begin(t, cmd).wait()
}

// process is a run of the program that goes on.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer // to be read after wait
}

// begin starts cmd.
func begin(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd}
	cmd.Stdout, cmd.Stderr = &p.stdout, &p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// signal sends sig to the program.
func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// wait returns how the program ended.
func (p *process) wait() result {
	p.t.Helper()
	err := p.cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("%v: %v", p.cmd.Args, err)
	}
	return result{p.cmd.ProcessState.ExitCode(), p.stdout.String(), p.stderr.String()}
}

// succeed runs the program with args and returns its stdout; anything but exit code 0 ends the test.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	res := finish(t, shoal(t, args...))
	if res.code != 0 {
		t.Fatalf("shoal %s: exit code %d\n%s%s", strings.Join(args, " "), res.code, res.stdout, res.stderr)
	}
	return res.stdout
}
