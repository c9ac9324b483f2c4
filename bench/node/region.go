package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-project/shoal/bench/internal/program"
	"github.com/shoal-project/shoal/bench/internal/sample"
	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/probe"
	"github.com/shoal-project/shoal/internal/registryserver"
)

// region is a registry, a tracker, a mirror and a node that has the model, the sender.
type region struct {
	run       *benchRun
	transport string
	place     program.Place
	dir       string
	registry  string // address
	close     func() error
	started   []*program.Program
	tracker   *program.Program
	mirror    *program.Program
	sender    *program.Program
	file      string // the model's file on the sender
}

const modelName = "one"

// newRegion starts everything and brings the model to the sender.
func (b *benchRun) newRegion(ctx context.Context, transport string) (*region, error) {
	r := &region{run: b, transport: transport, dir: filepath.Join(b.dir, transport), close: func() error { return nil }}
	r.place = program.Place{Name: transport, Logs: b.flags.logs, Command: func(args ...string) *exec.Cmd {
		cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // ended by stop
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		return cmd
	}}
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return nil, err
	}
	if err := certs.CreateCA(r.path("ca")); err != nil {
		return r, err
	}
	if err := r.push(ctx); err != nil {
		return r, err
	}
	var err error
	if r.tracker, err = r.daemon(ctx, "tracker", "127.0.0.1", "tracker"); err != nil {
		return r, err
	}
	r.mirror, err = r.daemon(ctx, "mirror", "127.0.0.1", "mirror", "--dir", r.path("mirror"), "--upstream", r.registry+"=http://"+r.registry)
	if err != nil {
		return r, err
	}
	if r.sender, err = r.node(ctx, "sender", "127.0.0.2"); err != nil {
		return r, err
	}
	if _, err := r.await(ctx, r.sender, time.Now()); err != nil {
		return r, err
	}
	r.file, err = r.fileOf("sender")
	return r, err
}

func (r *region) path(name string) string { return filepath.Join(r.dir, name) }

// push makes the model and packs it into a registry, which runs inside this process: it is not measured.
func (r *region) push(ctx context.Context) error {
	sums, err := sample.Make(ctx, r.path("model"), r.run.size, 1, 1)
	if err != nil {
		return err
	}
	for _, sum := range sums {
		r.run.sum = sum
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server, err := registryserver.New(registryserver.Config{Dir: r.path("registry"), Listener: l}) //nolint:contextcheck // Run gets it
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(running) }()
	r.close = func() error {
		stop()
		return <-ended
	}
	r.registry = l.Addr().String()
	err = r.place.Output(ctx, nil, r.run.shoal, "push", r.path("model"), r.reference(), "--plain-http", "--state", r.path("state"))
	return errors.Join(err, os.RemoveAll(r.path("model")))
}

func (r *region) reference() string { return r.registry + "/models/bench:" + modelName }

// daemon starts a part of Shoal on a free port of ip.
func (r *region) daemon(ctx context.Context, role, ip, command string, args ...string) (*program.Program, error) {
	what := command
	if command == "peer" {
		what = "swarm"
	}
	args = append([]string{r.run.shoal, command, "--listen", ip + ":0"}, args...)
	if r.transport == plain {
		args = append(args, "--plaintext")
	} else {
		dir, err := r.certs(role)
		if err != nil {
			return nil, err
		}
		args = append(args, "--certs", dir)
	}
	if r.run.flags.profiles != "" {
		args = append(args, "--pprof")
	}
	p, err := r.place.Start(ctx, what, args...)
	if err == nil {
		r.started = append(r.started, p)
	}
	return p, err
}

// certs returns the folder with the certificate of a role, which is issued if need be.
func (r *region) certs(role string) (string, error) {
	dir := r.path(filepath.Join("certs", role))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	id, err := certs.ParseIdentity(role)
	if err != nil {
		return "", err
	}
	return dir, certs.Issue(r.path("ca"), dir, id)
}

// node starts a node that wants the model from its start on.
func (r *region) node(ctx context.Context, name, ip string) (*program.Program, error) {
	scheme := "https://"
	if r.transport == plain {
		scheme = "http://"
	}
	return r.daemon(ctx, "node/"+name, ip, "peer", "--name", name, "--dir", r.path(name), "--model", modelName+"="+r.reference(),
		"--tracker", scheme+r.tracker.Addr(), "--mirror", scheme+r.mirror.Addr(),
		// Both nodes share one processor here, and each would take the other for its pods.
		"--no-yield")
}

// waitTime bounds one transfer.
const waitTime = 10 * time.Minute

// await waits until the node has the model, and returns the most anonymous memory that it had, in MiB.
func (r *region) await(ctx context.Context, p *program.Program, since time.Time) (memory float64, err error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := probe.Anonymous(p.Pid())
		if err != nil {
			return 0, fmt.Errorf("a node ended by itself: %w\n%s", err, p.Last())
		}
		memory = max(memory, float64(now)/(1<<20))
		if _, ok := p.Took([]string{modelName}); ok {
			return memory, nil
		}
		if time.Since(since) > waitTime {
			return 0, fmt.Errorf("a node has not got the model in %s:\n%s", waitTime, p.Last())
		}
		select {
		case <-p.Gone():
			return 0, fmt.Errorf("a node ended by itself:\n%s", p.Last())
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// fileOf returns the model's only file on a node.
func (r *region) fileOf(node string) (string, error) {
	tree, err := filepath.EvalSymlinks(filepath.Join(r.path(node), "models", "by-name", modelName))
	if err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(tree, "*.safetensors"))
	if err != nil || len(files) != 1 {
		return "", errors.Join(fmt.Errorf("%s has %d files", tree, len(files)), err)
	}
	return files[0], nil
}

// maxOrigin is how much of the model may come from elsewhere than the sender.
const maxOrigin = 0.01

// fetch brings the model to a new node.
func (r *region) fetch(ctx context.Context, i int) (f figures, err error) {
	name := fmt.Sprintf("receiver-%d", i+1)
	before, err := r.sender.CPU()
	if err != nil {
		return f, err
	}
	p, err := r.node(ctx, name, "127.0.0.3")
	if err != nil {
		return f, err
	}
	defer func() {
		p.Kill()
		err = errors.Join(err, sample.Remove(r.path(name)))
	}()
	profiled := r.profile(ctx, map[string]*program.Program{"sender": r.sender, "receiver": p})
	if f.Memory, err = r.await(ctx, p, time.Now()); err != nil {
		return f, err
	}
	ready := time.Now()
	if err := p.AwaitChecked(ctx); err != nil {
		return f, err
	}
	checked := time.Since(ready)
	sender, err1 := r.sender.CPU()
	receiver, err2 := p.CPU()
	if err := errors.Join(err1, err2, profiled()); err != nil {
		return f, err
	}
	f.Sender, f.Receiver = r.perGiB(sender-before), r.perGiB(receiver)
	seconds, _ := p.Took([]string{modelName})
	f.MBs, f.Checked = r.mbs(seconds), r.mbs(seconds+checked.Seconds())
	origin, err := p.Metric(ctx, "shoal_peer_origin_bytes_total")
	if err != nil {
		return f, err
	}
	if float64(origin) > maxOrigin*float64(r.run.size) {
		return f, fmt.Errorf("%d bytes came from the mirror and not from the other node", origin)
	}
	file, err := r.fileOf(name)
	if err != nil {
		return f, err
	}
	sum, err := sample.Sum(ctx, file)
	if err == nil && sum != r.run.sum {
		err = fmt.Errorf("%s is wrong", file)
	}
	return f, err
}

// profile profiles programs for the next seconds; wait returns when that is done.
func (r *region) profile(ctx context.Context, programs map[string]*program.Program) (wait func() error) {
	errs := make(chan error, len(programs))
	if r.run.flags.profiles == "" {
		return func() error { return nil }
	}
	for name, p := range programs {
		go func() {
			raw, err := p.Get(ctx, "/debug/pprof/profile?seconds=10")
			if err == nil {
				err = os.WriteFile(filepath.Join(r.run.flags.profiles, strings.Join([]string{r.transport, name, "pprof"}, ".")), raw, 0o644)
			}
			errs <- err
		}()
	}
	return func() error {
		var all []error
		for range programs {
			all = append(all, <-errs)
		}
		return errors.Join(all...)
	}
}

func (r *region) perGiB(seconds float64) float64 { return seconds / (float64(r.run.size) / (1 << 30)) }

func (r *region) mbs(seconds float64) float64 { return float64(r.run.size) / 1e6 / seconds }

// stop ends everything and removes what it left.
func (r *region) stop() error {
	for _, p := range r.started {
		p.Kill()
	}
	return errors.Join(r.close(), sample.Remove(r.dir))
}
