package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shoal-project/shoal/internal/probe"
)

// process is a program that runs on a host.
type process struct {
	host *host
	cmd  *exec.Cmd
	http *http.Client // reaches its admin address from outside
	up   chan struct{}
	gone chan struct{}

	mu    sync.Mutex
	what  string
	bare  bool // it has no admin
	addr  string
	admin string
	ready map[string]float64 // seconds that each model took, by name
	tail  []string
}

// logLine is what the bench understands of a log.
type logLine struct {
	Msg   string        `json:"msg"`
	What  string        `json:"what"`
	Addr  string        `json:"addr"`
	Model string        `json:"model"`
	Dur   time.Duration `json:"dur"`
}

// start runs a program and waits until it listens for what and for its admin.
func (h *host) start(ctx context.Context, what string, args ...string) (*process, error) {
	return h.launch(ctx, what, false, args...)
}

// startTool is start for a program that has no admin.
func (h *host) startTool(ctx context.Context, what string, args ...string) (*process, error) {
	return h.launch(ctx, what, true, args...)
}

func (h *host) launch(ctx context.Context, what string, bare bool, args ...string) (*process, error) {
	p := &process{
		host: h, cmd: h.command(args...), what: what, bare: bare, up: make(chan struct{}), gone: make(chan struct{}), ready: map[string]float64{},
		http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) { return h.dial(ctx, network, addr) },
		}},
	}
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	logs := io.Reader(pipe)
	var file *os.File
	if h.logs != "" {
		file, err = os.OpenFile(filepath.Join(h.logs, h.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		logs = io.TeeReader(pipe, file)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.gone)
		p.read(logs)
		if file != nil {
			file.Close()
		}
		_ = p.cmd.Wait()
	}()
	select {
	case <-p.up:
		return p, nil
	case <-p.gone:
		return nil, fmt.Errorf("%s on %s ended:\n%s", what, h.name, p.last())
	case <-ctx.Done():
		p.kill()
		return nil, ctx.Err()
	}
}

func (p *process) read(logs io.Reader) {
	lines := bufio.NewScanner(logs)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l logLine
		_ = json.Unmarshal(lines.Bytes(), &l) // a line of another kind says nothing to us
		p.mu.Lock()
		p.tail = append(p.tail, lines.Text())
		p.tail = p.tail[max(0, len(p.tail)-15):]
		was := p.listens()
		switch {
		case l.Msg == "the model is ready":
			p.ready[l.Model] = l.Dur.Seconds()
		case l.Msg == "listening" && l.What == p.what:
			p.addr = l.Addr
		case l.Msg == "listening" && l.What == "admin":
			p.admin = l.Addr
		}
		if !was && p.listens() {
			close(p.up)
		}
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, logs)
}

func (p *process) listens() bool { return p.addr != "" && (p.bare || p.admin != "") }

func (p *process) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, "\n")
}

// took returns the seconds after which every one of models was ready.
func (p *process) took(models []string) (seconds float64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range models {
		s, ok := p.ready[m]
		if !ok {
			return 0, false
		}
		seconds = max(seconds, s)
	}
	return seconds, true
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails only where it has ended
	<-p.gone
	p.http.CloseIdleConnections()
}

// get returns the answer of an admin path.
func (p *process) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// metric returns the value of a metric, summed over its labels.
func (p *process) metric(ctx context.Context, name string) (int64, error) {
	page, err := p.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	v, err := probe.Metric(string(page), name)
	if err != nil {
		return 0, fmt.Errorf("%s on %s: %w", p.what, p.host.name, err)
	}
	return int64(v), nil
}

// cpu is the processor time that the process has used, in seconds (proc(5), stat, fields 14 and 15).
func (p *process) cpu() (float64, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	const ticks = 100 // USER_HZ, the same on every architecture of ours
	return (user + system) / ticks, errors.Join(err1, err2)
}

// output runs a program to its end and reads the JSON object that it prints.
func (h *host) output(ctx context.Context, v any, args ...string) error {
	cmd := h.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s on %s: %w\n%s", strings.Join(args, " "), h.name, err, stderr.String())
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), v)
}
