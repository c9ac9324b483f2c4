package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// seeds are the layers that the node takes part in, one session each, however many models have it.
type seeds struct {
	cfg     Config
	log     *slog.Logger
	running sync.WaitGroup

	mu    sync.Mutex
	byKey map[store.Key]*seed
	past  swarm.Stats // of sessions that ended
}

func newSeeds(cfg Config) *seeds {
	return &seeds{cfg: cfg, log: cfg.Logger, byKey: map[store.Key]*seed{}}
}

// seed is one layer on its way, or complete and offered to others.
type seed struct {
	all    *seeds
	layer  model.Layer
	blob   *store.Blob
	repos  []*registry.Repository
	cancel context.CancelFunc
	ended  chan struct{} // run has returned

	ready chan struct{} // the whole sha256 was checked
	mu    sync.Mutex
	refs  int
	err   error // why it never will be ready
	live  *swarm.Session
	past  swarm.Stats
	scrub chan chan []int // asks run to hash everything again
}

// acquire joins the swarm of layer, or returns the seed that is in it already. The caller calls
// release. repos stay open for as long as the seed lives.
func (s *seeds) acquire(ctx context.Context, layer model.Layer, hashes model.HashLayer, open func() ([]*registry.Repository, error)) (*seed, error) {
	key := store.KeyOf(layer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if sd := s.byKey[key]; sd != nil && sd.failure() == nil {
		sd.refs++
		return sd, nil
	}
	blob, err := s.cfg.Store.Create(ctx, store.Spec{
		Digest: layer.Digest, Size: layer.Size, Root: layer.Root, Hashes: hashes, Layer: &layer,
	})
	if err != nil {
		return nil, err
	}
	repos, err := open()
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	sd := &seed{
		all: s, layer: layer, blob: blob, repos: repos, cancel: cancel, refs: 1,
		ended: make(chan struct{}), ready: make(chan struct{}), scrub: make(chan chan []int),
	}
	s.byKey[key] = sd
	s.running.Go(func() {
		defer close(sd.ended)
		sd.run(life)
	})
	return sd, nil
}

// release gives up one acquire. The last one leaves the swarm and waits for that.
func (s *seeds) release(sd *seed) {
	s.mu.Lock()
	sd.refs--
	last := sd.refs == 0
	if key := store.KeyOf(sd.layer); last && s.byKey[key] == sd {
		delete(s.byKey, key)
	}
	s.mu.Unlock()
	if !last {
		return
	}
	sd.cancel()
	<-sd.ended
	for _, repo := range sd.repos {
		repo.Close()
	}
	if err := sd.blob.Close(); err != nil {
		s.log.Error("a blob was not closed in order", "digest", sd.layer.Digest, "err", err)
	}
	s.mu.Lock()
	s.past = add(s.past, sd.stats())
	s.mu.Unlock()
}

func (s *seeds) wait() { s.running.Wait() }

// total counts everything since the start.
func (s *seeds) total() swarm.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.past
	for _, sd := range s.byKey {
		sum = add(sum, sd.stats())
	}
	return sum
}

// run keeps the session going until ctx ends or it fails for good.
func (sd *seed) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := sd.session(ctx)
		if err != nil && ctx.Err() == nil {
			sd.fail(err)
			return
		}
	}
}

// errScrubbed ends a session because pieces on disk turned out wrong.
var errScrubbed = errors.New("pieces on disk are wrong")

// session is one membership of the swarm: from joining it until ctx ends, or pieces have to be
// fetched again.
func (sd *seed) session(ctx context.Context) error {
	cfg := sd.all.cfg
	var origins []swarm.Origin
	for _, repo := range sd.repos {
		origins = append(origins, rangeOrigin{repo, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: sd.layer.Digest, Size: sd.layer.Size,
		}})
	}
	session, err := cfg.Swarm.Join(swarm.Torrent{
		Digest: sd.layer.Digest, Size: sd.layer.Size, Root: sd.layer.Root, Pieces: sd.blob.PieceHashes(),
	}, sd.blob, swarm.JoinConfig{
		Name: cfg.Name, Origins: origins,
		Leaser: announcer{cfg, client.Key{Digest: sd.layer.Digest, Root: sd.layer.Root}, sd.layer.Size},
	})
	if err != nil {
		return err
	}
	sd.mu.Lock()
	sd.live = session
	sd.mu.Unlock()
	work, cancel := context.WithCancel(ctx)
	ran := make(chan error, 1)
	go func() { ran <- session.Run(work) }()
	stop := func() error {
		cancel()
		err := <-ran
		sd.mu.Lock()
		sd.past, sd.live = add(sd.past, session.Stats()), nil
		sd.mu.Unlock()
		return err
	}
	done := session.Done()
	for {
		select {
		case err := <-ran:
			ran <- err
			return errors.Join(err, stop())
		case <-ctx.Done():
			return stop()
		case <-done:
			done = nil
			err := sd.finish(ctx)
			switch {
			case errors.Is(err, store.ErrIncomplete): // the disk changed: join anew, fetch what is wrong
				sd.all.log.Warn("pieces changed on disk and are fetched again", "digest", sd.layer.Digest)
				return stop()
			case err != nil:
				return errors.Join(err, stop())
			}
		case answer := <-sd.scrub:
			bad, err := sd.blob.Verify(ctx)
			answer <- bad
			if err != nil || len(bad) > 0 {
				sd.all.log.Error("pieces on disk are wrong and are fetched again", "digest", sd.layer.Digest, "pieces", bad, "err", err)
				sd.unready()
				return errors.Join(err, stop())
			}
		}
	}
}

// finish checks the whole blob and makes the seed ready.
func (sd *seed) finish(ctx context.Context) error {
	if err := sd.blob.Finish(ctx); err != nil {
		return err
	}
	sd.mu.Lock()
	defer sd.mu.Unlock()
	select {
	case <-sd.ready:
	default:
		close(sd.ready)
	}
	return nil
}

// unready takes finish back.
func (sd *seed) unready() {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	select {
	case <-sd.ready:
		sd.ready = make(chan struct{})
	default:
	}
}

func (sd *seed) fail(err error) {
	sd.mu.Lock()
	sd.err = err
	sd.mu.Unlock()
	sd.all.log.Error("a layer cannot be had", "digest", sd.layer.Digest, "err", err)
}

func (sd *seed) failure() error {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	return sd.err
}

// await waits until the layer is whole and checked.
func (sd *seed) await(ctx context.Context) error {
	sd.mu.Lock()
	ready := sd.ready
	sd.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-sd.ended:
		if err := sd.failure(); err != nil {
			return err
		}
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trouble is why nothing comes at the moment.
func (sd *seed) trouble() error {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.live == nil {
		return sd.err
	}
	return sd.live.Trouble()
}

func (sd *seed) stats() swarm.Stats {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	if sd.live == nil {
		return sd.past
	}
	return add(sd.past, sd.live.Stats())
}

func add(a, b swarm.Stats) swarm.Stats {
	return swarm.Stats{Origin: a.Origin + b.Origin, Peers: a.Peers + b.Peers, Sent: a.Sent + b.Sent, Wasted: a.Wasted + b.Wasted}
}

// scrubLoop hashes every ready layer again, each once in every.
func (s *seeds) scrubLoop(ctx context.Context, every time.Duration) error {
	for pause(ctx, every) {
		s.mu.Lock()
		var now []*seed
		for _, sd := range s.byKey {
			select {
			case <-sd.ready:
				now = append(now, sd)
			default:
			}
		}
		s.mu.Unlock()
		for _, sd := range now {
			answer := make(chan []int, 1)
			select {
			case sd.scrub <- answer:
				<-answer
			case <-sd.ended:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return ctx.Err()
}

// announcer is the tracker as a session sees it.
type announcer struct {
	cfg  Config
	key  client.Key
	size int64
}

// Announce implements swarm.Leaser.
func (a announcer) Announce(ctx context.Context, r swarm.Report) (swarm.Reply, error) {
	reply, err := a.cfg.Tracker.Announce(ctx, a.key, client.Announce{
		Node: a.cfg.Name, Addr: a.cfg.Swarm.Addr(), Zone: a.cfg.Zone, Rack: a.cfg.Rack, Size: a.size,
		Have: r.Have, Complete: r.Complete, Open: r.Open, Stuck: r.Stuck, Want: r.Want, Left: r.Left,
	})
	if err != nil {
		return swarm.Reply{}, fmt.Errorf("tracker: %w", err)
	}
	out := swarm.Reply{Leases: reply.Leases, Retry: reply.Retry(), Interval: reply.Interval()}
	for _, p := range reply.Peers {
		out.Peers = append(out.Peers, swarm.Peer{Name: p.Node, Addr: p.Addr})
	}
	return out, nil
}
