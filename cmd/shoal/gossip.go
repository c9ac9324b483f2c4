package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/peer"
	"github.com/shoal-project/shoal/peer/gossip"
	"github.com/shoal-project/shoal/swarm"
)

// gossipFlags are those of shoal peer that turn gossip on.
type gossipFlags struct {
	bind, advertise string
	api             string
	keys            string
	join            []string
}

func (f *gossipFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.bind, "gossip", "", "IP:PORT (UDP and TCP) on which the nodes find each other without a tracker; none: off")
	fl.StringVar(&f.advertise, "gossip-advertise", "", "IP:PORT by which others reach --gossip, where that is another one")
	fl.StringVar(&f.keys, "gossip-keys", "", "file of keys that encrypt the gossip (shoal certs gossip-key); read again when it changes")
	fl.StringVar(&f.api, "api", "", "IP:PORT on which other nodes ask what this one has (default: the IP of --gossip, a free port)")
	fl.StringArrayVar(&f.join, "join", nil, "IP:PORT or NAME:PORT of nodes to meet first; may be given again")
}

// neighbours is gossip as the node agent sees it.
type neighbours struct {
	f     *peerFlags
	g     *gossip.Gossip
	api   net.Listener
	agent atomic.Pointer[peer.Peer]
}

// neighbours starts to listen; it returns nil without --gossip.
func (f *peerFlags) neighbours(ctx context.Context, swarmAddr string) (*neighbours, error) {
	gf := f.gossip
	if gf.bind == "" {
		if len(gf.join) > 0 {
			return nil, errors.New("--join is for nodes that gossip: give --gossip too")
		}
		return nil, nil
	}
	cfg := gossip.Config{
		Name: f.name, Zone: f.zone, Rack: f.rack, Bind: gf.bind, Advertise: gf.advertise, Swarm: swarmAddr,
		Join: gf.join, TLS: f.client(certs.Node), Identify: f.identify(), Registerer: f.metrics, Logger: f.log,
	}
	switch {
	case gf.keys != "":
		keys, err := readKeys(gf.keys)
		if err != nil {
			return nil, err
		}
		cfg.Keys = keys
	case !f.plaintext:
		return nil, errors.New("gossip is to be encrypted: give --gossip-keys FILE (shoal certs gossip-key makes a key)")
	}
	if gf.api == "" {
		host, _, err := net.SplitHostPort(gf.bind)
		if err != nil {
			return nil, fmt.Errorf("--gossip %q: want IP:PORT", gf.bind)
		}
		gf.api = net.JoinHostPort(host, "0")
	}
	n := &neighbours{f: f}
	var err error
	if n.api, err = f.bind(ctx, "api", gf.api); err != nil {
		return nil, err
	}
	cfg.API = n.api.Addr().String()
	cfg.Inventory = func() []string {
		if agent := n.agent.Load(); agent != nil {
			return agent.Inventory()
		}
		return nil
	}
	if n.g, err = gossip.New(cfg); err != nil {
		return nil, errors.Join(err, n.api.Close())
	}
	f.log.Info("listening", "what", "gossip", "addr", n.g.Addr())
	return n, nil
}

func (n *neighbours) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.g.Run(ctx) })
	group.Go(func() error {
		return n.f.serve(ctx, n.api, n.f.server(certs.Node, certs.Mirror, certs.Controller), n.g.Handler())
	})
	if n.f.gossip.keys != "" {
		group.Go(func() error { return n.watchKeys(ctx) })
	}
	return group.Wait()
}

// Find implements peer.Neighbours.
func (n *neighbours) Find(ctx context.Context, key string) []swarm.Peer {
	members := n.g.WhoHas(ctx, key)
	out := make([]swarm.Peer, 0, len(members))
	for _, m := range members {
		out = append(out, swarm.Peer{Name: m.Name, Addr: m.Swarm})
	}
	return out
}

// Changed implements peer.Neighbours.
func (n *neighbours) Changed() { n.g.Changed() }

// keysEvery is how often the key file is looked at.
const keysEvery = 5 * time.Second

// watchKeys takes the keys anew when their file changes.
func (n *neighbours) watchKeys(ctx context.Context) error {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	var last time.Time
	if info, err := os.Stat(n.f.gossip.keys); err == nil {
		last = info.ModTime()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		info, err := os.Stat(n.f.gossip.keys)
		if err != nil || info.ModTime().Equal(last) {
			continue // a file that is being replaced comes back
		}
		last = info.ModTime()
		keys, err := readKeys(n.f.gossip.keys)
		if err == nil {
			err = n.g.SetKeys(keys)
		}
		if err != nil {
			n.f.log.Error("the old gossip keys stay in use", "err", err)
			continue
		}
		n.f.log.Info("gossip has other keys", "keys", len(keys))
	}
}

func readKeys(path string) ([][]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("--gossip-keys: %w", err)
	}
	keys, err := gossip.ParseKeys(string(text))
	if err != nil {
		return nil, fmt.Errorf("--gossip-keys %s: %w", path, err)
	}
	return keys, nil
}
