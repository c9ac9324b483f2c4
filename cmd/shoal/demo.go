package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/tracker/client"
)

type demoFlags struct {
	nodes     int
	size      string
	uplink    string
	model     string
	dir       string
	json      bool
	plaintext bool
}

func demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Carry a model to several nodes on this machine, to see how it works",
		Long: `Carry a model to several nodes on this machine. The demo packs a generated model (or the one of
--model), pushes it to a registry of its own whose uplink is limited, and starts a mirror, a tracker
and the nodes as processes with mTLS between them. Each byte leaves the registry once; the nodes
lease disjoint pieces and trade them. Then one shard changes, and version two moves only that.

Nothing else is needed: no root, no cluster, no network.`,
		Example: "  shoal demo\n  shoal demo --nodes 8 --size 2GiB --uplink 100MiB\n  shoal demo --model ./qwen3-8b --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), &f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&f.nodes, "nodes", 4, "number of nodes")
	fl.StringVar(&f.size, "size", "512MiB", "size of the generated model")
	fl.StringVar(&f.uplink, "uplink", "200MiB", "bytes a second that leave the registry, 0 for no limit")
	fl.StringVar(&f.model, "model", "", "folder of a model to carry instead of a generated one")
	fl.StringVar(&f.dir, "dir", "", "folder to work in, kept afterwards (default: a temporary one)")
	fl.BoolVar(&f.json, "json", false, "print one JSON object on the last line of stdout")
	fl.BoolVar(&f.plaintext, "plaintext", false, "without TLS between the parts")
	return cmd
}

// demo is one run.
type demo struct {
	flags    *demoFlags
	out      io.Writer // for people, as it goes
	dir      string
	registry *registryserver.Server
	host     string // of the registry
	repo     *registry.Repository
	tracker  *client.Client
	names    []string
	procs    []*process
}

// version is what one version of the model cost.
type version struct {
	image    *model.Image
	pushed   *model.PackResult
	moved    int64 // layer bytes that left the registry
	changed  int64 // layer bytes that had to
	seconds  float64
	progress []client.Progress
	nodes    []nodeCheck
}

func runDemo(ctx context.Context, f *demoFlags, stdout, stderr io.Writer) (err error) {
	size, err := bytesFlag("size", f.size)
	if err != nil {
		return err
	}
	uplink, err := bytesFlag("uplink", f.uplink)
	if err != nil {
		return err
	}
	if f.nodes < 1 || f.nodes > 200 {
		return errors.New("--nodes: between 1 and 200, each has an address 127.0.0.x of its own")
	}
	d := &demo{flags: f, out: stdout, dir: f.dir}
	if f.json {
		d.out = stderr
	}
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "shoal-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, removeAll(d.dir)) }()
	}
	if f.model != "" {
		if size, err = dirSize(f.model); err != nil {
			return err
		}
	}
	// The source and its copy, the registry, the mirror, and each node; version two adds a shard to
	// each.
	if err := checkRoom(d.dir, size*int64(f.nodes+3)*9/8); err != nil {
		return err
	}
	files := filepath.Join(d.dir, "model")
	if f.model != "" {
		err = copyModel(ctx, f.model, files)
	} else {
		fmt.Fprintf(d.out, "making a model of %s\n", units.BytesSize(float64(size)))
		err = writeModel(ctx, files, size)
	}
	if err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	var group errgroup.Group
	defer func() {
		d.stopAll()
		stop()
		err = errors.Join(err, group.Wait())
	}()
	if err := d.startRegistry(ctx, &group, uplink); err != nil {
		return err
	}
	if err := d.startRegion(ctx); err != nil {
		return err
	}
	v1, err := d.carry(ctx, files, "v1", nil)
	if err != nil {
		return err
	}
	if err := changeModel(files, f.model == "", size); err != nil {
		return err
	}
	v2, err := d.carry(ctx, files, "v2", []string{"v1"})
	if err != nil {
		return err
	}
	return d.report(stdout, v1, v2)
}

func (d *demo) startRegistry(ctx context.Context, group *errgroup.Group, uplink int64) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.host = l.Addr().String()
	d.registry, err = registryserver.New(registryserver.Config{ //nolint:contextcheck // Run gets it
		Dir: filepath.Join(d.dir, "registry"), Listener: l, UplinkBytesPerSecond: uplink,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	group.Go(func() error { return d.registry.Run(ctx) })
	d.repo, err = registry.Open(d.host+"/models/demo:v1", registry.Config{PlainHTTP: true})
	return err
}

// startRegion starts tracker, mirror and nodes.
func (d *demo) startRegion(ctx context.Context) error {
	if !d.flags.plaintext {
		if err := certs.CreateCA(filepath.Join(d.dir, "ca")); err != nil {
			return err
		}
	}
	trackerAddr, err := d.start(ctx, "tracker", "tracker", "tracker", "tracker", "--listen", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mirrorAddr, err := d.start(ctx, "mirror", "mirror", "mirror", "mirror", "--listen", "127.0.0.1:0",
		"--dir", filepath.Join(d.dir, "mirror"), "--upstream", d.host+"=http://"+d.host)
	if err != nil {
		return err
	}
	scheme := "https://"
	if d.flags.plaintext {
		scheme = "http://"
	}
	for i := range d.flags.nodes {
		name := fmt.Sprintf("node-%d", i+1)
		d.names = append(d.names, name)
		_, err := d.start(ctx, name, "swarm", "node/"+name, "peer", "--name", name,
			"--listen", fmt.Sprintf("127.0.0.%d:0", i+2), "--dir", d.nodeDir(name),
			"--tracker", scheme+trackerAddr, "--mirror", scheme+mirrorAddr, "--upstream", d.host+"=http://"+d.host,
			"--no-yield") // the mirror and the registry, on the same machine, would be taken for pods
		if err != nil {
			return err
		}
	}
	controllerTLS, err := d.controllerTLS()
	if err != nil {
		return err
	}
	d.tracker, err = client.New(client.Config{URL: scheme + trackerAddr, TLS: controllerTLS})
	return err
}

func (d *demo) nodeDir(name string) string { return filepath.Join(d.dir, name) }

// start runs one daemon under the identity role and returns its address.
func (d *demo) start(ctx context.Context, name, what, role string, args ...string) (string, error) {
	if d.flags.plaintext {
		args = append(args, "--plaintext")
	} else {
		dir, err := d.issue(role)
		if err != nil {
			return "", err
		}
		args = append(args, "--certs", dir)
	}
	p, addr, err := startProcess(ctx, name, what, args...)
	if err != nil {
		return "", err
	}
	d.procs = append(d.procs, p)
	return addr, nil
}

func (d *demo) issue(role string) (string, error) {
	id, err := certs.ParseIdentity(role)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(d.dir, "certs", filepath.FromSlash(role))
	return dir, certs.Issue(filepath.Join(d.dir, "ca"), dir, id)
}

func (d *demo) controllerTLS() (*tls.Config, error) {
	if d.flags.plaintext {
		return nil, nil
	}
	dir, err := d.issue("controller")
	if err != nil {
		return nil, err
	}
	bundle, err := certs.Load(dir)
	if err != nil {
		return nil, err
	}
	return bundle.Client(certs.Tracker), nil
}

// stopAll ends the nodes before what they use.
func (d *demo) stopAll() {
	if d.tracker != nil {
		d.tracker.Close()
	}
	for _, p := range slices.Backward(d.procs) {
		p.stop()
	}
	if d.repo != nil {
		d.repo.Close()
	}
}

// carry packs, pushes, and waits until every node has the version and it was checked.
func (d *demo) carry(ctx context.Context, files, tag string, previous []string) (*version, error) {
	state := filepath.Join(d.dir, "state")
	dir, err := source.NewDir(files, filepath.Join(state, "checksums"), slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(d.out, "packing and pushing %s\n", tag)
	show, done := layerProgress(d.out)
	pushed, err := model.Pack(ctx, model.PackConfig{
		Source: dir, Target: d.repo, Tag: tag, Previous: previous, StateDir: filepath.Join(state, "pack"), Progress: show,
	})
	done()
	if err != nil {
		return nil, err
	}
	v := &version{pushed: pushed, image: pushed.Image}
	before := d.registry.SentBlobs()
	reference := d.host + "/models/demo:" + tag
	fmt.Fprintf(d.out, "carrying %s to %d nodes\n", tag, d.flags.nodes)
	begin := time.Now()
	err = d.tracker.SetDesired(ctx, client.Desired{Models: []client.DesiredModel{{Name: "demo", Reference: reference}}})
	if err != nil {
		return nil, err
	}
	if v.progress, err = d.await(ctx, reference); err != nil {
		return nil, err
	}
	for _, p := range v.progress {
		v.seconds = max(v.seconds, p.Models[0].Seconds)
	}
	v.seconds = min(v.seconds, time.Since(begin).Seconds())
	after := d.registry.SentBlobs()
	for _, l := range v.image.Layers {
		moved := after[l.Digest] - before[l.Digest]
		v.moved += moved
		if before[l.Digest] == 0 {
			v.changed += l.Size
		}
	}
	fmt.Fprintf(d.out, "checking every file of every node\n")
	for _, name := range d.names {
		tree := filepath.Join(d.nodeDir(name), "models", v.image.Manifest.Digest.Encoded())
		check, err := checkNode(ctx, files, tree, d.nodeDir(name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		v.nodes = append(v.nodes, check)
	}
	return v, nil
}

// stallTime is for how long nothing at all may move.
const stallTime = 2 * time.Minute

// await shows progress until every node has the model.
func (d *demo) await(ctx context.Context, reference string) ([]client.Progress, error) {
	bars := newNodeProgress(d.out, d.names)
	defer bars.done()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var last int64
	moved := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
		for _, p := range d.procs {
			if err := p.died(); err != nil {
				return nil, err
			}
		}
		all, err := d.tracker.Progress(ctx)
		if err != nil {
			return nil, err
		}
		all = onlyReference(all, reference)
		bars.show(all)
		var ready int
		var sum int64
		for _, p := range all {
			m := p.Models[0]
			sum += m.Bytes
			switch m.State {
			case peer.StateReady:
				ready++
			case peer.StateFailed:
				return nil, fmt.Errorf("%s: %s", p.Node, m.Error)
			}
		}
		if ready == len(d.names) {
			return all, nil
		}
		if sum != last {
			last, moved = sum, time.Now()
		}
		if time.Since(moved) > stallTime {
			return nil, fmt.Errorf("nothing has moved for %s; the last words of %s:\n%s", stallTime, d.procs[2].name, d.procs[2].lastLines())
		}
	}
}

// onlyReference keeps what the nodes say about one image, by node.
func onlyReference(all []client.Progress, reference string) []client.Progress {
	var out []client.Progress
	for _, p := range all {
		for _, m := range p.Models {
			if m.Reference == reference {
				out = append(out, client.Progress{Node: p.Node, Models: []client.ModelProgress{m}})
			}
		}
	}
	return out
}
