package peer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/peer/pagecache"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// Config says who the node is and what it works with.
type Config struct {
	// Name is the node's name, the one in its certificate. Zone and Rack say where it stands.
	Name, Zone, Rack string
	Store            *store.Store
	Swarm            *swarm.Client
	// Tracker may be nil where Neighbours or Models are there.
	Tracker *client.Client
	// Neighbours find the swarms' members while no tracker answers; nil means none.
	Neighbours Neighbours
	// Models are wanted whatever the tracker says.
	Models  []client.DesiredModel
	Origins Origins
	// Adopt are folders with models, or OCI image layouts, that were on the node's disk before Shoal:
	// what a model has in common with them is taken over instead of fetched.
	Adopt []string
	// Dir keeps what the node remembers over a restart: the desired set and what it resolved. ""
	// means that it remembers nothing.
	Dir string
	// Cache says how models are kept in memory; its Trees are the node's. AllInMemory does it for
	// every model, whatever its tier.
	Cache       pagecache.KeeperConfig
	AllInMemory bool
	// Wait, if any, is called before n bytes are read from an origin, and may hold the read up. The
	// Swarm has the same for its own.
	Wait func(ctx context.Context, n int) error
	// GuestStay is for how long a blob that a container runtime asked for is kept after its last reader, for
	// the other nodes that pull the same image now; 0 means 10 minutes. Then it becomes a link to
	// containerd's file below ContentStore, its content store's folder, where that can be: both lie under
	// one mount. Else it is dropped.
	GuestStay    time.Duration
	ContentStore string
	// Layers is how many layers of a model are fetched side by side. 0 means 3: one is in its
	// tail, one in its middle, one begins.
	Layers int
	// Scrub is how often everything on disk is hashed again; 0 means never.
	Scrub time.Duration
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

// Peer is a node agent.
type Peer struct {
	cfg     Config
	log     *slog.Logger
	seeds   *seeds
	guests  *guests
	memory  memory
	keeper  *pagecache.Keeper
	changed chan struct{} // a model's state changed: report at once

	pinning sync.Mutex // held while a pin changes; taken before mu

	mu    sync.Mutex
	tasks map[string]*task // by name and reference
}

// New checks the configuration.
func New(cfg Config) (*Peer, error) {
	switch {
	case cfg.Name == "":
		return nil, errors.New("peer: the node has no name")
	case cfg.Store == nil || cfg.Swarm == nil:
		return nil, errors.New("peer: store and swarm are needed")
	case cfg.Tracker == nil && len(cfg.Models) == 0:
		return nil, errors.New("peer: without a tracker nobody says which models the node should hold; give it models")
	}
	if cfg.Layers <= 0 {
		cfg.Layers = 3
	}
	if cfg.GuestStay <= 0 {
		cfg.GuestStay = 10 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Wait == nil {
		cfg.Wait = func(context.Context, int) error { return nil }
	}
	p := &Peer{cfg: cfg, log: cfg.Logger, memory: memory{cfg.Dir}, changed: make(chan struct{}, 1), tasks: map[string]*task{}}
	p.seeds = newSeeds(cfg)
	p.guests = newGuests(cfg, p.seeds)
	cache := cfg.Cache
	cache.Trees, cache.Registerer, cache.Logger = p.trees, cfg.Registerer, cfg.Logger
	var err error
	if p.keeper, err = pagecache.NewKeeper(cache); err != nil {
		return nil, err
	}
	if cfg.Registerer != nil {
		for _, c := range []prometheus.Collector{newCollector(p), p.guests.settled} {
			if err := cfg.Registerer.Register(c); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// Run works until ctx ends. It waits for everything that it started.
func (p *Peer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.keeper.Run(ctx) })
	p.follow(ctx, group, p.remembered())
	if p.cfg.Tracker != nil {
		group.Go(func() error { return p.reportLoop(ctx) })
		group.Go(func() error { return p.desiredLoop(ctx, group) })
	} else {
		group.Go(func() error { <-ctx.Done(); return ctx.Err() })
	}
	if p.cfg.Scrub > 0 {
		group.Go(func() error { return p.seeds.scrubLoop(ctx, p.cfg.Scrub) })
	}
	err := group.Wait()
	p.guests.close()
	p.seeds.wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

const (
	// pollWait is how long the tracker may hold a poll: short enough to notice a dead connection.
	pollWait = 30 * time.Second
	// pollRetry is the first wait after a failed poll; it doubles up to pollRetryMax.
	pollRetry, pollRetryMax = 500 * time.Millisecond, 5 * time.Second
	// reportBusy and reportIdle are the times between reports without a change.
	reportBusy, reportIdle = 500 * time.Millisecond, 10 * time.Second
)

// Inventory returns the keys of the swarms in which the node takes part.
func (p *Peer) Inventory() []string { return p.seeds.inventory() }

// Status says how far the node's models are.
func (p *Peer) Status() client.Progress {
	models, _ := p.progress()
	return client.Progress{Node: p.cfg.Name, Models: models}
}

// trees are the published models, the most wanted first.
func (p *Peer) trees() []pagecache.Tree {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []pagecache.Tree
	for _, t := range p.tasks {
		if at := t.published(); at != "" {
			out = append(out, pagecache.Tree{
				Name: t.model.Name, Dir: at, Priority: t.model.Priority,
				Keep: p.cfg.AllInMemory || t.model.Tier == client.TierMemory,
			})
		}
	}
	slices.SortFunc(out, func(a, b pagecache.Tree) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Dir, b.Dir))
	})
	return out
}

// remembered is what the node was told to hold when it last ran.
func (p *Peer) remembered() []client.DesiredModel {
	if p.cfg.Tracker == nil {
		return nil
	}
	models, err := p.memory.desired()
	if err != nil {
		p.log.Warn("what the node should hold is asked anew", "err", err)
	}
	return models
}

// desiredLoop follows the desired set. A tracker that does not answer, or does not know, changes
// nothing.
func (p *Peer) desiredLoop(ctx context.Context, group *errgroup.Group) error {
	var revision string
	wait := pollRetry
	for {
		reply, err := p.cfg.Tracker.Desired(ctx, p.cfg.Name, revision, pollWait)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, client.ErrNoDesired):
			wait = pollRetry
			p.seeds.contact.heard()
			continue
		case err != nil:
			p.log.Warn("the tracker does not say what is desired", "err", err)
			if !pause(ctx, wait) {
				return ctx.Err()
			}
			wait = min(2*wait, pollRetryMax)
			continue
		}
		wait = pollRetry
		p.seeds.contact.heard()
		if reply.Revision != revision {
			revision = reply.Revision
			if err := p.memory.saveDesired(reply.Models); err != nil {
				p.log.Warn("the desired set is not remembered over a restart", "err", err)
			}
			p.follow(ctx, group, reply.Models)
		}
	}
}

// follow starts and stops tasks so that they are those of models and of Config.Models.
func (p *Peer) follow(ctx context.Context, group *errgroup.Group, models []client.DesiredModel) {
	models = slices.Concat(p.cfg.Models, models)
	slices.SortStableFunc(models, func(a, b client.DesiredModel) int { return cmp.Compare(b.Priority, a.Priority) })
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := map[string]bool{}
	for _, m := range models {
		key := m.Name + " " + m.Reference
		wanted[key] = true
		if t := p.tasks[key]; t != nil {
			t.retune(m)
			continue
		}
		t := newTask(p, m)
		p.tasks[key] = t
		taskCtx, cancel := context.WithCancel(ctx)
		t.cancel = cancel
		p.log.Info("a model is desired", "model", m.Name, "reference", m.Reference)
		group.Go(func() error {
			defer cancel()
			t.run(taskCtx)
			return nil
		})
	}
	for key, t := range p.tasks {
		if !wanted[key] {
			p.log.Info("a model is not desired any more", "model", t.model.Name, "reference", t.model.Reference)
			t.unwanted.Store(true) // before it ends, which unpins
			t.cancel()
			delete(p.tasks, key)
		}
	}
	p.notify()
}

// unpin lets manifest go, unless another desired model is the same image. p.pinning is held.
func (p *Peer) unpin(manifest digest.Digest) error {
	for _, t := range p.all() {
		if image := t.known(); image != nil && image.manifest() == manifest {
			return nil
		}
	}
	return p.cfg.Store.Unpin(manifest, pinOwner)
}

// all returns the tasks in no order.
func (p *Peer) all() []*task {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.tasks))
}

// priorityCheck is how often a model that gives way looks again.
const priorityCheck = 200 * time.Millisecond

// giveWay waits while a model of a higher priority is on its way: one that a pod waits for comes
// before a preload. A model that does not get on holds up nobody.
func (p *Peer) giveWay(ctx context.Context, t *task) error {
	var told bool
	for p.outranked(t) {
		if !told {
			t.log.Info("the model gives way to one of a higher priority")
			told = true
		}
		if !pause(ctx, priorityCheck) {
			return ctx.Err()
		}
	}
	return nil
}

func (p *Peer) outranked(t *task) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, other := range p.tasks {
		if other.model.Priority > t.model.Priority && other.coming() {
			return true
		}
	}
	return false
}

// notify makes the next report go out at once.
func (p *Peer) notify() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// reportLoop tells the tracker how far the models are.
func (p *Peer) reportLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var broken bool
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.changed:
		case <-timer.C:
		}
		models, busy := p.progress()
		err := p.cfg.Tracker.Report(ctx, client.Progress{Node: p.cfg.Name, Models: models})
		if err != nil && !broken && ctx.Err() == nil {
			p.log.Warn("the tracker does not take the report", "err", err)
		}
		broken = err != nil
		switch {
		case broken:
			timer.Reset(jitter(pollRetryMax / 2))
		case busy:
			timer.Reset(reportBusy)
		default:
			timer.Reset(reportIdle)
		}
	}
}

func (p *Peer) progress() (models []client.ModelProgress, busy bool) {
	for _, t := range p.all() {
		m := t.progress()
		models = append(models, m)
		busy = busy || m.State != StateReady
	}
	slices.SortFunc(models, func(a, b client.ModelProgress) int {
		return slices.Compare([]string{a.Name, a.Reference}, []string{b.Name, b.Reference})
	})
	return models, busy
}
