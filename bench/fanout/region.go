package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/bench/internal/sample"
	"github.com/shoal-project/shoal/internal/probe"
	"github.com/shoal-project/shoal/tracker/client"
)

// region is a registry, a mirror, a tracker and nodes, each on a host of its own.
type region struct {
	run      *benchRun
	bed      *bed
	dir      string
	registry *process
	mirror   *process
	tracker  *process
	nodes    []*node
	peak     int64 // highest anonymous memory of a node so far
	before   marks // of mark
}

// node is a peer on its host.
type node struct {
	*process
	name  string
	dir   string
	flags []string // that it is started with
}

const (
	trackerPort, mirrorPort, registryPort = "7070", "7071", "5000"
)

// newRegion starts everything but the nodes. The registry's and the mirror's links have the given
// rates; the tracker's has none: it moves no bytes.
func (b *benchRun) newRegion(ctx context.Context, bed *bed, registryRate, mirrorRate string) (*region, error) {
	dir, err := os.MkdirTemp(b.dir, "region-")
	if err != nil {
		return nil, err
	}
	r := &region{run: b, bed: bed, dir: dir}
	if !b.flags.plaintext {
		if err := r.shoal(ctx, "certs", "init", filepath.Join(dir, "ca")); err != nil {
			return nil, err
		}
	}
	reg, err := bed.host(ctx, "registry", "a", registryRate)
	if err != nil {
		return nil, err
	}
	if r.registry, err = reg.start(ctx, "registry", b.self, "registry", filepath.Join(b.dir, "registry"), reg.ip+":"+registryPort); err != nil {
		return nil, err
	}
	track, err := bed.host(ctx, "tracker", "a", "")
	if err != nil {
		return nil, err
	}
	if r.tracker, err = r.daemon(ctx, track, "tracker", "tracker", "tracker", "--listen", track.ip+":"+trackerPort); err != nil {
		return nil, err
	}
	mir, err := bed.host(ctx, "mirror", "a", mirrorRate)
	if err != nil {
		return nil, err
	}
	upstream := reg.ip + ":" + registryPort
	r.mirror, err = r.daemon(ctx, mir, "mirror", "mirror", "mirror", "--listen", mir.ip+":"+mirrorPort,
		"--dir", filepath.Join(dir, "mirror"), "--upstream", upstream+"=http://"+upstream)
	return r, err
}

// shoal runs the program on no host.
func (r *region) shoal(ctx context.Context, args ...string) error {
	return run(ctx, r.run.shoal, args...)
}

// security returns the flags of a part.
func (r *region) security(ctx context.Context, role string) ([]string, error) {
	if r.run.flags.plaintext {
		return []string{"--plaintext"}, nil
	}
	dir := filepath.Join(r.dir, "certs", filepath.FromSlash(role))
	if _, err := os.Stat(dir); err == nil {
		return []string{"--certs", dir}, nil
	}
	return []string{"--certs", dir}, r.shoal(ctx, "certs", "issue", filepath.Join(r.dir, "ca"), dir, role)
}

func (r *region) daemon(ctx context.Context, h *host, what, role string, args ...string) (*process, error) {
	flags, err := r.security(ctx, role)
	if err != nil {
		return nil, err
	}
	if r.run.flags.profiles != "" {
		flags = append(flags, "--pprof")
	}
	return h.start(ctx, what, append(append([]string{r.run.shoal}, args...), flags...)...)
}

func (r *region) scheme() string {
	if r.run.flags.plaintext {
		return "http://"
	}
	return "https://"
}

// addHost makes the host of another node, which is started later.
func (r *region) addHost(ctx context.Context, zone, rate string) (*node, error) {
	n := &node{name: fmt.Sprintf("node-%d", len(r.nodes)+1)}
	h, err := r.bed.host(ctx, n.name, zone, rate)
	if err != nil {
		return nil, err
	}
	n.dir = filepath.Join(r.dir, n.name)
	n.flags = []string{
		"peer", "--name", n.name, "--listen", h.ip + ":7072", "--dir", n.dir, "--zone", zone,
		"--tracker", r.scheme() + r.tracker.host.ip + ":" + trackerPort,
		"--mirror", r.scheme() + r.mirror.host.ip + ":" + mirrorPort,
		// All nodes share one processor here, and each would take the others for its pods.
		"--no-yield",
	}
	n.process = &process{host: h}
	r.nodes = append(r.nodes, n)
	return n, nil
}

func (r *region) startNode(ctx context.Context, n *node) error {
	p, err := r.daemon(ctx, n.host, "swarm", "node/"+n.name, n.flags...)
	if err == nil {
		n.process = p
	}
	return err
}

// addNodes adds hosts in zone and starts a node on each, side by side.
func (r *region) addNodes(ctx context.Context, count int, zone, rate string) ([]*node, error) {
	var added []*node
	for range count {
		n, err := r.addHost(ctx, zone, rate)
		if err != nil {
			return nil, err
		}
		added = append(added, n)
	}
	for _, n := range added {
		if err := r.startNode(ctx, n); err != nil {
			return nil, err
		}
	}
	return added, nil
}

// desire makes nodes (all where nil) hold the models, from now on.
func (r *region) desire(ctx context.Context, models []string, nodes []*node) error {
	var d client.Desired
	for _, m := range models {
		model := client.DesiredModel{Name: m, Reference: r.reference(m)}
		for _, n := range nodes {
			model.Nodes = append(model.Nodes, n.name)
		}
		d.Models = append(d.Models, model)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	file := filepath.Join(r.dir, "desired.yaml")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return err
	}
	flags, err := r.security(ctx, "controller")
	if err != nil {
		return err
	}
	args := []string{r.run.shoal, "desired", file, "--tracker", r.scheme() + r.tracker.host.ip + ":" + trackerPort}
	return r.tracker.host.Output(ctx, nil, append(args, flags...)...)
}

func (r *region) reference(model string) string {
	return r.registry.host.ip + ":" + registryPort + "/models/bench:" + model
}

// push packs the run's models into the registry, from the registry's own host.
func (r *region) push(ctx context.Context) error {
	for _, m := range r.run.models {
		err := r.registry.host.Output(ctx, nil, r.run.shoal, "push", filepath.Join(r.run.dir, "models", m), r.reference(m),
			"--plain-http", "--state", filepath.Join(r.run.dir, "state"))
		if err != nil {
			return err
		}
	}
	if r.run.flags.sparse {
		return sample.Dig(ctx, filepath.Join(r.run.dir, "registry"))
	}
	return nil
}

// await waits until nodes have models, and watches their memory.
func (r *region) await(ctx context.Context, models []string, nodes ...*node) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		done := 0
		for _, n := range nodes {
			if _, ok := n.Took(models); ok {
				done++
			}
			select {
			case <-n.Gone():
				return fmt.Errorf("%s ended by itself:\n%s", n.name, n.Last())
			default:
			}
			memory, err := probe.Anonymous(n.Pid())
			if err != nil {
				return err
			}
			r.peak = max(r.peak, memory)
		}
		if done == len(nodes) {
			return nil
		}
		select {
		case <-ctx.Done():
			var late []string
			for _, n := range nodes {
				if _, ok := n.Took(models); !ok {
					status, _ := n.Get(context.WithoutCancel(ctx), "/status")
					late = append(late, n.name+": "+string(status)+"\n"+n.Last())
				}
			}
			return errors.Join(context.Cause(ctx), errors.New(strings.Join(late, "\n")))
		case <-tick.C:
		}
	}
}

// held is how many bytes of the models the node has, as it says.
func (n *node) held(ctx context.Context) (int64, error) {
	raw, err := n.Get(ctx, "/status")
	if err != nil {
		return 0, err
	}
	var p client.Progress
	if err := json.Unmarshal(raw, &p); err != nil {
		return 0, err
	}
	var sum int64
	for _, m := range p.Models {
		sum += m.Bytes
	}
	return sum, nil
}

// half waits until the node holds half of total bytes.
func (n *node) half(ctx context.Context, total int64) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		has, err := n.held(ctx)
		if err != nil || has >= total/2 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// verify compares every file of nodes with the source.
func (r *region) verify(ctx context.Context, models []string, nodes []*node) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, n := range nodes {
		for _, m := range models {
			group.Go(func() error {
				tree, err := filepath.EvalSymlinks(filepath.Join(n.dir, "models", "by-name", m))
				if err != nil {
					return err
				}
				for name, want := range r.run.sums[m] {
					got, err := sample.Sum(ctx, filepath.Join(tree, name))
					if err != nil {
						return err
					}
					if got != want {
						return fmt.Errorf("%s: %s of %s is wrong", n.name, name, m)
					}
				}
				return nil
			})
		}
	}
	return group.Wait()
}

// stop ends everything at once: the next run has hosts of its own.
func (r *region) stop(ctx context.Context) error {
	for _, n := range r.nodes {
		if n.Program != nil {
			n.Kill()
		}
	}
	for _, p := range []*process{r.mirror, r.tracker, r.registry} {
		if p != nil {
			p.Kill()
		}
	}
	return errors.Join(r.bed.remove(ctx), sample.Remove(r.dir))
}
