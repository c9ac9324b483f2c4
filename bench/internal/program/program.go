// Package program runs the real programs that a bench measures and reads what they tell: their logs,
// their admin pages, their entry in /proc. The benches call it.
//
// It promises that a started program ends at Kill; that it ends with the bench is the caller's part.
package program

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

// Place is where programs run. Its zero value is this machine.
type Place struct {
	Name string // in errors, and of the log file
	Logs string // folder for what its programs log; "" for none
	// Command prepares a program; nil means exec.Command.
	Command func(args ...string) *exec.Cmd
	// Dial reaches the place's addresses from here; nil means net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Program is one that runs.
type Program struct {
	place *Place
	cmd   *exec.Cmd
	http  *http.Client // reaches its admin address from outside
	up    chan struct{}
	gone  chan struct{}

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

// Start runs a program and waits until it listens for what and for its admin.
func (h *Place) Start(ctx context.Context, what string, args ...string) (*Program, error) {
	return h.launch(ctx, what, false, args...)
}

// StartTool is Start for a program that has no admin.
func (h *Place) StartTool(ctx context.Context, what string, args ...string) (*Program, error) {
	return h.launch(ctx, what, true, args...)
}

func (h *Place) command(args ...string) *exec.Cmd {
	if h.Command != nil {
		return h.Command(args...)
	}
	return exec.Command(args[0], args[1:]...) //nolint:noctx // ended by its owner
}

func (h *Place) launch(ctx context.Context, what string, bare bool, args ...string) (*Program, error) {
	p := &Program{
		place: h, cmd: h.command(args...), what: what, bare: bare, up: make(chan struct{}), gone: make(chan struct{}), ready: map[string]float64{},
		http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: h.Dial}},
	}
	pipe, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	logs := io.Reader(pipe)
	var file *os.File
	if h.Logs != "" {
		file, err = os.OpenFile(filepath.Join(h.Logs, h.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
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
		return nil, fmt.Errorf("%s on %s ended:\n%s", what, h.Name, p.Last())
	case <-ctx.Done():
		p.Kill()
		return nil, ctx.Err()
	}
}

func (p *Program) read(logs io.Reader) {
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

func (p *Program) listens() bool { return p.addr != "" && (p.bare || p.admin != "") }

// Last returns the last lines of its log.
func (p *Program) Last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.tail, "\n")
}

// Took returns the seconds after which every one of models was ready.
func (p *Program) Took(models []string) (seconds float64, ok bool) {
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

// Addr is where it listens.
func (p *Program) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// Pid is its process.
func (p *Program) Pid() int { return p.cmd.Process.Pid }

// Gone is closed when it has ended.
func (p *Program) Gone() <-chan struct{} { return p.gone }

// Kill ends it at once.
func (p *Program) Kill() {
	_ = p.cmd.Process.Kill() // fails only where it has ended
	<-p.gone
	p.http.CloseIdleConnections()
}

// Get returns the answer of an admin path.
func (p *Program) Get(ctx context.Context, path string) ([]byte, error) {
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

// Metric returns the value of a metric, summed over its labels.
func (p *Program) Metric(ctx context.Context, name string) (int64, error) {
	page, err := p.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	v, err := probe.Metric(string(page), name)
	if err != nil {
		return 0, fmt.Errorf("%s on %s: %w", p.what, p.place.Name, err)
	}
	return int64(v), nil
}

// AwaitChecked waits until a node has checked the sha256 of every layer whose pieces it has.
func (p *Program) AwaitChecked(ctx context.Context) error {
	for {
		n, err := p.Metric(ctx, "shoal_peer_unchecked_layers")
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.gone:
			return fmt.Errorf("%s on %s ended:\n%s", p.what, p.place.Name, p.Last())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// CPU is the processor time that the process has used, in seconds (proc(5), stat, fields 14 and 15).
func (p *Program) CPU() (float64, error) {
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

// Output runs a program to its end and reads the JSON object that it prints into v, which may be nil.
func (h *Place) Output(ctx context.Context, v any, args ...string) error {
	cmd := h.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s on %s: %w\n%s", strings.Join(args, " "), h.Name, err, stderr.String())
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), v)
}
