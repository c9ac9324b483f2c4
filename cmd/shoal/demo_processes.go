package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a daemon of this program, run as a process of its own.
type process struct {
	name string
	cmd  *exec.Cmd
	up   chan string // the address that it listens on
	gone chan struct{}

	mu   sync.Mutex
	tail []string // its last log lines
	err  error    // how it ended
}

const (
	tailLines = 12
	stopTime  = 15 * time.Second
)

// startProcess runs the program with args and waits until it listens for what.
func startProcess(ctx context.Context, name, what string, args ...string) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.Command(self, args...) //nolint:noctx // stop ends it: first by SIGTERM
	endWithParent(cmd)
	p := &process{name: name, cmd: cmd, up: make(chan string, 1), gone: make(chan struct{})}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.gone)
		p.read(logs, what)
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}()
	select {
	case addr := <-p.up:
		return p, addr, nil
	case <-p.gone:
		return nil, "", fmt.Errorf("%s ended: %w\n%s", name, p.err, p.lastLines())
	case <-ctx.Done():
		p.stop()
		return nil, "", ctx.Err()
	}
}

// read keeps the last lines and sees the address in the one that says "listening".
func (p *process) read(logs io.Reader, what string) {
	lines := bufio.NewScanner(logs)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.mu.Lock()
		p.tail = append(p.tail, lines.Text())
		if len(p.tail) > tailLines {
			p.tail = p.tail[1:]
		}
		p.mu.Unlock()
		if addr := listening(lines.Bytes(), what); addr != "" {
			select {
			case p.up <- addr:
			default:
			}
		}
	}
	_, _ = io.Copy(io.Discard, logs) // a line that is too long must not block the process
}

// listening returns the address where line says that what listens.
func listening(line []byte, what string) string {
	var l struct{ Msg, What, Addr string }
	if json.Unmarshal(line, &l) != nil || l.Msg != "listening" || l.What != what {
		return ""
	}
	return l.Addr
}

func (p *process) lastLines() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, "\n")
}

// stop ends the process, by force where it does not end by itself, and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only where it has ended
	timer := time.NewTimer(stopTime)
	defer timer.Stop()
	select {
	case <-p.gone:
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
}

// died returns an error if the process has ended by itself.
func (p *process) died() error {
	select {
	case <-p.gone:
		return errors.Join(fmt.Errorf("%s ended by itself:\n%s", p.name, p.lastLines()), p.err)
	default:
		return nil
	}
}
