package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one program of a cluster, which can be stopped, killed and started again.
type Process struct {
	Name string
	Log  string // file of everything that it wrote, over all starts

	command func() []string // argv; its host may be another one at each start
	env     []string
	group   string // cgroup, empty: none
	ready   func(context.Context) error

	mu   sync.Mutex
	cmd  *exec.Cmd
	gone chan struct{} // closed at its end
	err  error         // how it ended
}

// Start starts the program and waits until it answers.
func (p *Process) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return fmt.Errorf("%s runs already", p.Name)
	}
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := p.command()
	if p.group != "" {
		// It joins the cgroup before it can start a process of its own.
		argv = append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, enter(p.group)}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // it outlives whoever starts it
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	gone := make(chan struct{})
	p.cmd, p.gone = cmd, gone
	go func() {
		p.err = cmd.Wait()
		close(gone)
	}()
	return p.wait(ctx)
}

// wait waits until the program answers, or has ended.
func (p *Process) wait(ctx context.Context) error {
	if p.ready == nil {
		return nil
	}
	return poll(ctx, p.Name+" to answer", func(ctx context.Context) error {
		select {
		case <-p.gone:
			return fatal{fmt.Errorf("%s ended: %w; its log %s ends with\n%s", p.Name, p.err, p.Log, tail(p.Log))}
		default:
			return p.ready(ctx)
		}
	})
}

// Pid returns the process's number, 0 when it does not run.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill ends the program as a crash would, and returns when it has ended.
func (p *Process) Kill() error { return p.end(unix.SIGKILL, time.Minute) }

// Stop asks the program to end, and kills it when it has not within ten seconds.
func (p *Process) Stop() error { return p.end(unix.SIGTERM, 10*time.Second) }

func (p *Process) end(sig syscall.Signal, patience time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	select {
	case <-p.gone:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill() // it may have just ended
		<-p.gone
	}
	p.cmd = nil
	return nil
}

// fatal is an error for which trying again is no use.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// poll tries until there is no error, and says what it waited for when ctx ends first.
func poll(ctx context.Context, what string, try func(context.Context) error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if f := (fatal{}); errors.As(err, &f) {
			return f.error
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for %s: %w: %w", what, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// tail returns the end of a log.
func tail(log string) string {
	raw, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// run runs a command for its effect.
func run(ctx context.Context, argv ...string) error {
	_, err := output(ctx, argv...)
	return err
}

// output runs a command and returns what it wrote.
func output(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, text)
	}
	return text, nil
}
