// Package tracker is the service of a region that knows who has what, who fetches what from the
// origin, and who should hold what.
//
// Nodes announce themselves in swarms, one a blob, and get peers and leases (package lease) in the
// reply; the controller writes the desired set, which nodes long-poll, and reads their progress.
// The wire types and their client are in package client, which is all that other components see.
//
// Everything here is soft state that nodes and controller repeat, and all of it is bounded. A
// tracker that was just started grants nothing in a swarm until those who were there before can
// have told what they hold and lease (see grace): else each restart would send every missing
// piece from the origin again.
//
// cmd builds a Server, serves its Handler over mTLS and runs Run beside it.
package tracker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

// Config configures a Server. Its zero value serves plain text without checks, for trials and tests.
type Config struct {
	// Identify tells who sent a request (certs.From). nil lets everyone do everything.
	Identify func(*http.Request) (certs.Identity, bool)
	// Lease is the lease policy, which also says how often nodes announce themselves.
	Lease lease.Config
	// MaxSwarms bounds the swarms; one of 10,000 pieces takes about 100 KB and 2 KB a node. The
	// default is 4096.
	MaxSwarms int
	// MaxNodes bounds the live nodes of a swarm and the nodes that report progress. The default is
	// 5000, the size of the largest Kubernetes clusters.
	MaxNodes int
	// HashCacheBytes bounds the hash layers that are kept. The default is 64 MiB: those of 1 TiB.
	HashCacheBytes int64
	// Registerer gets the metrics; nil means that nobody reads them.
	Registerer prometheus.Registerer
	// Logger gets state changes; nil means slog.Default.
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Rand is where the epoch and the order of equally near peers come from; nil means crypto/rand.
	// A simulation gives one that repeats.
	Rand io.Reader
}

func (c Config) withDefaults() Config {
	d := lease.DefaultConfig()
	if c.Lease.Interval <= 0 {
		c.Lease.Interval = d.Interval
	}
	if c.Lease.IdleInterval <= 0 {
		c.Lease.IdleInterval = d.IdleInterval
	}
	if c.MaxSwarms <= 0 {
		c.MaxSwarms = 4096
	}
	if c.MaxNodes <= 0 {
		c.MaxNodes = 5000
	}
	if c.HashCacheBytes <= 0 {
		c.HashCacheBytes = 64 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

// Times of the tracker's own. Those of announces are in lease.Config.
const (
	sweepEvery     = time.Second
	keepEmptySwarm = 10 * time.Minute // its counts tell how a distribution went
	keepProgress   = 2 * time.Minute  // see client.Progress
)

// Keys of log attributes.
const (
	keyDigest = "digest"
	keyPeer   = "peer"
	keyBytes  = "bytes"
)

// Server is one tracker. New makes it.
type Server struct {
	cfg     Config
	log     *slog.Logger
	epoch   string
	secret  string // orders equally near peers
	metrics *metrics
	grace   grace

	mu     sync.Mutex
	swarms map[swarmID]*swarm

	hashes   *hashCache
	desired  desired
	progress progress

	stopOnce sync.Once
	stopped  chan struct{} // ends long-polls
}

// New returns a Server. It fails when a metric cannot be registered or Config.Rand ends.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	var random [32]byte
	if _, err := io.ReadFull(cfg.Rand, random[:]); err != nil {
		return nil, fmt.Errorf("tracker epoch: %w", err)
	}
	s := &Server{
		cfg:     cfg,
		log:     cfg.Logger,
		epoch:   hex.EncodeToString(random[:16]),
		secret:  string(random[16:]),
		metrics: newMetrics(),
		grace:   grace{interval: cfg.Lease.Interval, long: cfg.Lease.IdleInterval + time.Second},
		swarms:  map[swarmID]*swarm{},
		hashes:  newHashCache(cfg.HashCacheBytes),
		stopped: make(chan struct{}),
	}
	s.desired.changed = make(chan struct{})
	s.progress.nodes = map[string]report{}
	if cfg.Registerer != nil {
		if err := s.metrics.register(cfg.Registerer); err != nil {
			return nil, fmt.Errorf("tracker metrics: %w", err)
		}
	}
	return s, nil
}

// Handler serves the API of package client. The HTTP server around it must not have a ReadTimeout
// or WriteTimeout, which would end long-polls of client.MaxWait; bodies are bounded here in size
// and time, headers by ReadHeaderTimeout.
func (s *Server) Handler() http.Handler {
	everyone := []certs.Role(nil)
	members := []certs.Role{certs.Node, certs.Mirror}
	mux := http.NewServeMux()
	mux.Handle("POST "+client.SwarmsPath+"/{key}/announce", s.handle(s.announce, members...))
	mux.Handle("GET "+client.SwarmsPath, s.handle(s.listSwarms, everyone...))
	mux.Handle("GET "+client.HashesPath+"/{key}", s.handle(s.getHashes, everyone...))
	mux.Handle("PUT "+client.HashesPath+"/{key}", s.handle(s.putHashes, certs.Node, certs.Mirror, certs.Controller))
	mux.Handle("GET "+client.DesiredPath, s.handle(s.getDesired, everyone...))
	mux.Handle("PUT "+client.DesiredPath, s.handle(s.putDesired, certs.Controller))
	mux.Handle("GET "+client.ProgressPath, s.handle(s.getProgress, everyone...))
	mux.Handle("POST "+client.ProgressPath, s.handle(s.postProgress, members...))
	return mux
}

// Run forgets what nobody repeats, until ctx ends. Long-polls are then answered at once, so that
// the HTTP server can shut down.
func (s *Server) Run(ctx context.Context) error {
	defer s.stopOnce.Do(func() { close(s.stopped) })
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.sweep()
		}
	}
}

// sweep expires nodes, swarms and progress reports.
func (s *Server) sweep() {
	now := s.cfg.Now()
	for _, sw := range s.allSwarms() {
		if sw.expire(now.Add(-keepEmptySwarm)) {
			s.drop(sw)
		}
	}
	s.metrics.progressNodes.Set(float64(s.progress.forget(now.Add(-keepProgress))))
}
