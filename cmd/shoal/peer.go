package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/pagecache"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

type peerFlags struct {
	daemon
	name, zone, rack string
	dir              string
	tracker          string
	mirrors          []string
	upstreams        []string
	quota, keepFree  string
	layers           int
	scrub            time.Duration
	models, adopt    []string
	warm             bool
	memory, reserve  string
	gossip           gossipFlags
	yield            yieldFlags
	endpoint         endpointFlags
}

func peerCommand() *cobra.Command {
	f := peerFlags{daemon: daemon{name: "peer"}}
	host, _ := os.Hostname() // without one, --name has to be given
	cmd := &cobra.Command{
		Use:   "peer",
		Short: "Run a node agent: holds the models that the tracker says this node should hold",
		Long: `Run a node agent. It fetches the desired models through the region's mirror and swarm into their
final files under DIR/models, and serves their pieces to other nodes.

With --gossip the nodes find each other without a tracker, or while it is down. Pieces that no node
has come from the mirror, and from --upstream when the mirror does not deliver.

With --containerd-config the node's containerd pulls its images through Shoal: a hosts.toml names the
endpoint of --containerd-listen as a mirror. Who may have an image is still for its registry to say, and
containerd goes there whenever Shoal has no answer. "shoal peer check" says whether containerd reads
that folder; "shoal peer uninstall" restores it.`,
		Example: "  shoal peer --dir /var/lib/shoal --listen 10.0.0.7:7072 --tracker https://tracker:7070 --mirror https://mirror:7071 --certs /etc/shoal/certs",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runPeer(cmd.Context(), &f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", host, "the node's name, as in its certificate")
	fl.StringVar(&f.zone, "zone", "", "zone in which the node stands: nodes of one zone share everything, and each piece comes into a zone once")
	fl.StringVar(&f.rack, "rack", "", "rack in which the node stands: nodes of one rack are preferred")
	fl.StringVar(&f.dir, "dir", "", "folder for blobs and models (required)")
	fl.StringVar(&f.tracker, "tracker", "", "address of the tracker, https://HOST:PORT; none with --gossip and --model")
	fl.StringArrayVar(&f.mirrors, "mirror", nil, "address of a mirror, https://HOST:PORT (repeatable: they share the work, and stand in for each other)")
	fl.StringArrayVar(&f.upstreams, "upstream", nil, upstreamHelp+"; read directly, without credentials, when the mirror does not deliver")
	fl.StringVar(&f.quota, "quota", "0", "bytes that models may take, such as 500GiB; 0 is what fits")
	fl.StringVar(&f.keepFree, "keep-free", "1GiB", "bytes of the file system that stay free")
	fl.BoolVar(&f.warm, "warm", false, "keep every model in the page cache, not only those of the tier Memory")
	fl.StringVar(&f.memory, "memory", "0", "bytes of models that are kept in the page cache together, such as 200GiB; 0 is what memory has room for")
	fl.StringVar(&f.reserve, "memory-reserve", "1GiB", "bytes of memory that stay free for others")
	fl.IntVar(&f.layers, "layers", 0, "layers of a model that are fetched at once (0: a good default)")
	fl.StringArrayVar(&f.models, "model", nil, "NAME=REFERENCE of a model that the node holds whatever the tracker says; may be given again")
	fl.StringArrayVar(&f.adopt, "adopt", nil, "folder with models, or an OCI image layout, whose files are taken over (hashed and linked) instead of fetched; may be given again")
	f.gossip.register(fl)
	f.yield.register(fl)
	f.endpoint.register(fl)
	fl.DurationVar(&f.scrub, "scrub", 7*24*time.Hour, "how often everything on disk is hashed again; 0 is never")
	f.register(cmd, "127.0.0.1:7072")
	cmd.AddCommand(checkCommand(), uninstallCommand())
	return cmd
}

func runPeer(ctx context.Context, f *peerFlags) (err error) {
	if f.dir == "" || (f.tracker == "" && len(f.models) == 0) || (len(f.mirrors) == 0 && len(f.upstreams) == 0) {
		return errors.New("--dir, --tracker or --model, and --mirror or --upstream are needed")
	}
	if f.bundle != nil {
		if id := f.bundle.Identity(); id.Role != certs.Node || id.Name != f.name {
			return fmt.Errorf("the certificate in %s is of %s, the node's name is %s: issue one for node/%s, or give --name", f.certs, id, f.name, f.name)
		}
	}
	origins, err := f.origins()
	if err != nil {
		return err
	}
	models, err := parseModels(f.models)
	if err != nil {
		return err
	}
	var cache pagecache.KeeperConfig
	if cache.Budget, err = bytesFlag("memory", f.memory); err != nil {
		return err
	}
	if cache.Reserve, err = bytesFlag("memory-reserve", f.reserve); err != nil {
		return err
	}
	cfg := store.Config{Dir: f.dir, Logger: f.log}
	if cfg.Quota, err = bytesFlag("quota", f.quota); err != nil {
		return err
	}
	if cfg.KeepFree, err = bytesFlag("keep-free", f.keepFree); err != nil {
		return err
	}
	disk, err := store.Open(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	var track *client.Client
	if f.tracker != "" {
		if track, err = client.New(client.Config{URL: f.tracker, TLS: f.client(certs.Tracker)}); err != nil {
			return err
		}
		defer track.Close()
	}
	governor, err := f.governor()
	if err != nil {
		return err
	}
	l, err := f.bind(ctx, "swarm", f.listen)
	if err != nil {
		return err
	}
	bt, err := swarm.New(swarm.Config{
		Listener: l, ServerTLS: f.server(certs.Node, certs.Mirror), ClientTLS: f.client(certs.Node, certs.Mirror), Logger: f.log,
		Download: governor.Download(), Upload: governor.Upload(), Wait: governor.WaitDownload,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bt.Close()) }()
	f.yield.moved.Store(bt)
	cache.Wait = governor.Background
	peers, err := f.neighbours(ctx, bt.Addr())
	if err != nil {
		return err
	}
	settings := peer.Config{
		Name: f.name, Zone: f.zone, Rack: f.rack, Store: disk, Swarm: bt, Tracker: track, Origins: origins,
		Models: models, Adopt: f.adopt, Dir: filepath.Join(f.dir, "node"), Cache: cache, AllInMemory: f.warm, Wait: governor.WaitDownload,
		GuestStay: f.endpoint.stay, ContentStore: filepath.Join(f.endpoint.root, "io.containerd.content.v1.content"),
		Layers: f.layers, Scrub: f.scrub, Registerer: f.metrics, Logger: f.log,
	}
	if peers != nil {
		settings.Neighbours = peers
	}
	agent, err := peer.New(settings)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if peers != nil {
		peers.agent.Store(agent)
		group.Go(func() error { return peers.run(ctx) })
	}
	group.Go(func() error { return governor.Run(ctx) })
	f.status = func() any { return agent.Status() }
	group.Go(func() error { return f.serveAdmin(ctx, f.endpoint.ready) })
	group.Go(func() error { return agent.Run(ctx) })
	group.Go(func() error { return f.endpoint.run(ctx, &f.daemon, agent) })
	return group.Wait()
}

// parseModels reads NAME=REFERENCE.
func parseModels(args []string) ([]client.DesiredModel, error) {
	var models []client.DesiredModel
	for _, arg := range args {
		name, reference, ok := strings.Cut(arg, "=")
		if !ok || name == "" || reference == "" {
			return nil, fmt.Errorf("--model %q: want NAME=REGISTRY/REPOSITORY:TAG", arg)
		}
		models = append(models, client.DesiredModel{Name: name, Reference: reference})
	}
	return models, nil
}

func (f *peerFlags) origins() (peer.Origins, error) {
	out := peer.Origins{MirrorTLS: f.client(certs.Mirror), Upstreams: map[string]peer.Upstream{}}
	want := "https"
	if f.plaintext {
		want = "http"
	}
	for _, mirror := range f.mirrors {
		u, err := url.Parse(mirror)
		if err != nil || u.Scheme != want || u.Host == "" {
			return out, fmt.Errorf("--mirror %q: want %s://HOST:PORT", mirror, want)
		}
		out.Mirrors = append(out.Mirrors, u.Host)
	}
	ups, err := parseUpstreams(f.upstreams)
	for _, u := range ups {
		out.Upstreams[u.name] = peer.Upstream{Host: u.host, PlainHTTP: u.plainHTTP}
	}
	return out, err
}
