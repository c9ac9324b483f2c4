package gossip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/certs"
)

// Config says who the node is and whom it meets.
type Config struct {
	// Name is the node's name, unique in the region and the one in its certificate.
	Name, Zone, Rack string
	// Bind is the IP:port of gossip, UDP and TCP; port 0 takes a free one.
	Bind string
	// Advertise is the IP:port by which others reach Bind; "" means Bind itself.
	Advertise string
	// Swarm is the IP:port on which the node accepts BitTorrent peers, API that of Handler.
	Swarm, API string
	// Join are members to begin with: IP:port, or HOST:port, of which all addresses count. They are
	// looked up again at each try. None means to wait for others.
	Join []string
	// Keys encrypt the gossip: the first one what is sent, all of them what is read. Each has 16, 24
	// or 32 bytes. None means plain text, for trials.
	Keys [][]byte
	// TLS is the client side of mTLS with other nodes; nil means plain HTTP.
	TLS *tls.Config
	// Identify tells who asks Handler (certs.From); nil serves everyone.
	Identify func(*http.Request) (certs.Identity, bool)
	// Inventory returns the keys of the swarms in which the node takes part.
	Inventory func() []string
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

// Member is a live node.
type Member struct {
	Name       string
	Zone, Rack string
	Swarm, API string // IP:port
}

// Gossip is a node's part in the gossip. Its methods may be called from many goroutines.
type Gossip struct {
	cfg     Config
	log     *slog.Logger
	list    *memberlist.Memberlist
	addr    string
	ring    *memberlist.Keyring
	client  *http.Client
	version atomic.Int64 // of the inventory
	changed chan struct{}
	known   inventories
	members members

	mu    sync.Mutex
	asked map[string]time.Time // when a member's API was last asked
}

// New starts to listen and to answer. Run joins the others.
func New(cfg Config) (*Gossip, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Inventory == nil {
		cfg.Inventory = func() []string { return nil }
	}
	g := &Gossip{
		cfg: cfg, log: cfg.Logger, changed: make(chan struct{}, 1), asked: map[string]time.Time{},
		client: &http.Client{Timeout: askTimeout, Transport: &http.Transport{
			TLSClientConfig: cfg.TLS, MaxIdleConnsPerHost: 1, MaxIdleConns: askAtOnce, IdleConnTimeout: 30 * time.Second,
		}},
	}
	// Wall time, so that the inventory of a node that was started again counts as newer.
	g.version.Store(time.Now().UnixNano())
	settings, err := g.settings()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	if cfg.Registerer != nil {
		members := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_gossip_members", Help: "Live nodes that gossip knows, this one included.",
		}, func() float64 { return float64(len(g.Members())) })
		if err := cfg.Registerer.Register(members); err != nil {
			return nil, fmt.Errorf("gossip: %w", err)
		}
	}
	if g.list, err = memberlist.Create(settings); err != nil {
		return nil, fmt.Errorf("gossip at %s: %w", cfg.Bind, err)
	}
	g.addr = g.list.LocalNode().Address() // before anything of the node changes
	return g, nil
}

// settings departs from memberlist's defaults for a LAN.
func (g *Gossip) settings() (*memberlist.Config, error) {
	if g.cfg.Name == "" {
		return nil, errors.New("the node has no name")
	}
	bind, err := netip.ParseAddrPort(g.cfg.Bind)
	if err != nil {
		return nil, fmt.Errorf("address %q: want IP:port", g.cfg.Bind)
	}
	s := memberlist.DefaultLANConfig()
	s.Name = g.cfg.Name
	s.BindAddr, s.BindPort, s.AdvertisePort = bind.Addr().String(), int(bind.Port()), int(bind.Port())
	switch {
	case g.cfg.Advertise != "":
		advertise, err := netip.ParseAddrPort(g.cfg.Advertise)
		if err != nil {
			return nil, fmt.Errorf("advertised address %q: want IP:port", g.cfg.Advertise)
		}
		s.AdvertiseAddr, s.AdvertisePort = advertise.Addr().String(), int(advertise.Port())
	case bind.Addr().IsUnspecified():
		return nil, fmt.Errorf("address %s is no address that others can reach: give the one to advertise too", bind)
	default:
		s.AdvertiseAddr = bind.Addr().String()
	}
	// A dead seed must not hold up the others, or the end of the process.
	s.TCPTimeout = 2 * time.Second
	// A dead node's share waits for its death to be known: at most 2 x 4 s here, not 6 x.
	s.SuspicionMaxTimeoutMult = 2
	// A pod that was rescheduled comes back under its name at another address.
	s.DeadNodeReclaimTime = 5 * time.Second
	s.Delegate = delegate{g}
	s.Alive = delegate{g}
	s.Conflict = delegate{g}
	s.Events = delegate{g}
	s.Logger = newLogger(g.log)
	if len(g.cfg.Keys) > 0 {
		if g.ring, err = memberlist.NewKeyring(g.cfg.Keys, g.cfg.Keys[0]); err != nil {
			return nil, err
		}
		s.Keyring = g.ring
	}
	if _, err := g.meta(memberlist.MetaMaxSize); err != nil {
		return nil, err
	}
	return s, nil
}

// Addr is the IP:port of gossip.
func (g *Gossip) Addr() string { return g.addr }

const (
	// leaveTimeout bounds saying goodbye, without which others take some seconds to notice.
	leaveTimeout = 2 * time.Second
	// updateTimeout bounds telling the others of a new inventory version; gossip goes on beyond it.
	updateTimeout = time.Second
)

// Run joins the others, stays with them until ctx ends, and leaves.
func (g *Gossip) Run(ctx context.Context) error {
	var joining sync.WaitGroup
	joining.Go(func() { g.joinLoop(ctx) })
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-g.changed:
			if err := g.list.UpdateNode(updateTimeout); err != nil {
				g.log.Debug("the others learn later of the inventory", "err", err)
			}
		}
	}
	joining.Wait()
	err := g.list.Leave(leaveTimeout)
	if err != nil {
		g.log.Debug("the others were not told that the node leaves", "err", err)
	}
	g.client.CloseIdleConnections()
	return g.list.Shutdown()
}

// Changed says that the inventory is another one.
func (g *Gossip) Changed() {
	g.version.Add(1)
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// Members returns the live nodes, this one included.
func (g *Gossip) Members() []Member {
	all := g.members.all()
	out := make([]Member, len(all))
	for i, m := range all {
		out[i] = m.Member
	}
	return out
}

// SetKeys replaces the keys while gossip runs. A fleet rotates a key in three steps, each on all
// nodes: the new one is added at the end, then moved to the front, then the old one is dropped.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if g.ring == nil || len(keys) == 0 {
		return errors.New("gossip: keys can be replaced, not begun or ended, while it runs")
	}
	for _, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip: key of %d bytes: %w", len(k), err)
		}
	}
	for _, k := range keys {
		if err := g.ring.AddKey(k); err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	if err := g.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	for _, old := range g.ring.GetKeys() {
		if !containsKey(keys, old) {
			if err := g.ring.RemoveKey(old); err != nil {
				return fmt.Errorf("gossip: %w", err)
			}
		}
	}
	return nil
}

// hostPort joins for errors and requests.
func hostPort(addr netip.Addr, port string) string { return net.JoinHostPort(addr.String(), port) }
