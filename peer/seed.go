package peer

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
)

// seeds are the layers that the node takes part in, one session each, however many models have it.
type seeds struct {
	cfg     Config
	log     *slog.Logger
	contact *contact
	running sync.WaitGroup

	mu      sync.Mutex
	byKey   map[store.Key]*seed
	busy    map[store.Key]chan struct{} // layers being opened or left; closed at the end of that
	open    map[*seed]bool              // all that count: also those that failed, or are being left
	past    swarm.Stats                 // of seeds that are closed
	spoiled chan struct{}               // closed and replaced when a seed is not ready any more
}

func newSeeds(cfg Config) *seeds {
	return &seeds{
		cfg: cfg, log: cfg.Logger, contact: &contact{}, byKey: map[store.Key]*seed{},
		busy: map[store.Key]chan struct{}{}, open: map[*seed]bool{}, spoiled: make(chan struct{}),
	}
}

// inventory returns the keys of the swarms in which the node takes part.
func (s *seeds) inventory() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, sd := range s.byKey {
		sd.mu.Lock()
		for _, m := range sd.live {
			keys = append(keys, m.key.String())
		}
		sd.mu.Unlock()
	}
	return keys
}

// changed tells the neighbours that the inventory is another one.
func (s *seeds) changed() {
	if s.cfg.Neighbours != nil {
		s.cfg.Neighbours.Changed()
	}
}

// seed is one layer on its way, or complete and offered to others. With a pieces root it is one
// swarm; without one, a swarm for each of its segments (segments.go).
type seed struct {
	all    *seeds
	key    store.Key
	size   int64
	layer  *model.Layer // nil for a raw blob
	blob   *store.Blob
	repos  []*registry.Repository
	cancel context.CancelFunc
	ended  chan struct{} // run has returned

	checked chan struct{} // closed when the whole sha256 was found right

	mu    sync.Mutex
	ready chan struct{} // closed when every piece is right; another one after damage was found
	refs  int           // guarded by seeds.mu
	err   error         // why it never will be ready
	why   error         // why nothing comes at the moment, beside what the sessions say
	live  []*membership
	past  swarm.Stats
	scrub chan chan []int // asks run to hash everything again

	// Of run, for a blob without a root.
	known map[int]model.Segment // described by the mirror's last answer
	wrong int                   // whole copies that were wrong
}

// acquire joins the swarm of a layer, or returns the seed that is in it already. The caller calls
// release. open gives the repositories, which stay open for as long as the seed lives. What the part
// has counted so far was for others.
func (s *seeds) acquire(ctx context.Context, spec store.Spec, open func() ([]*registry.Repository, error)) (part, error) {
	key := spec.Key()
	for {
		s.mu.Lock()
		if busy := s.busy[key]; busy != nil {
			s.mu.Unlock()
			select {
			case <-busy:
				continue
			case <-ctx.Done():
				return part{}, ctx.Err()
			}
		}
		if sd := s.byKey[key]; sd != nil && sd.failure() == nil {
			sd.refs++
			s.mu.Unlock()
			return part{sd, sd.stats()}, nil
		}
		done := s.occupy(key)
		s.mu.Unlock()
		// Without the lock: the store may have to hash what it has of the layer.
		sd, err := s.begin(ctx, spec, open)
		s.mu.Lock()
		if err == nil {
			s.byKey[key] = sd
			s.open[sd] = true
		}
		s.mu.Unlock()
		done()
		return part{seed: sd}, err
	}
}

// join joins a layer that the node takes part in already, whoever wants it, and whatever its root.
func (s *seeds) join(d digest.Digest) (part, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, sd := range s.byKey {
		if key.Digest == d && sd.failure() == nil {
			sd.refs++
			return part{sd, sd.stats()}, true
		}
	}
	return part{}, false
}

// occupy makes acquires of key wait until the returned function is called. s.mu is held now, and not
// then.
func (s *seeds) occupy(key store.Key) (done func()) {
	busy := make(chan struct{})
	s.busy[key] = busy
	return func() {
		s.mu.Lock()
		delete(s.busy, key)
		s.mu.Unlock()
		close(busy)
	}
}

// begin opens the blob and starts the seed's run.
func (s *seeds) begin(ctx context.Context, spec store.Spec, open func() ([]*registry.Repository, error)) (*seed, error) {
	blob, err := s.cfg.Store.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	repos, err := open()
	if err != nil {
		return nil, errors.Join(err, blob.Close())
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	sd := &seed{
		all: s, key: spec.Key(), size: spec.Size, layer: spec.Layer, blob: blob, repos: repos, cancel: cancel, refs: 1,
		ended: make(chan struct{}), ready: make(chan struct{}), checked: make(chan struct{}), scrub: make(chan chan []int),
	}
	s.running.Go(func() {
		defer close(sd.ended)
		sd.run(life)
	})
	return sd, nil
}

// release gives up one acquire. The last one leaves the swarm and waits for that; who acquires the
// layer meanwhile waits too, because a node cannot be in one swarm twice.
func (s *seeds) release(sd *seed) {
	s.mu.Lock()
	sd.refs--
	if sd.refs > 0 {
		s.mu.Unlock()
		return
	}
	if s.byKey[sd.key] == sd {
		delete(s.byKey, sd.key)
		defer s.occupy(sd.key)()
	}
	s.mu.Unlock()
	sd.cancel()
	<-sd.ended
	for _, repo := range sd.repos {
		repo.Close()
	}
	if err := sd.blob.Close(); err != nil {
		s.log.Error("a blob was not closed in order", "digest", sd.key.Digest, "err", err)
	}
	s.mu.Lock()
	delete(s.open, sd)
	s.past = add(s.past, sd.stats())
	s.mu.Unlock()
}

func (s *seeds) wait() { s.running.Wait() }

// unchecked counts the layers that are ready and not checked.
func (s *seeds) unchecked() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sd := range s.open {
		if sd.isReady() && !sd.isChecked() && sd.failure() == nil {
			n++
		}
	}
	return n
}

// total counts everything since the start.
func (s *seeds) total() swarm.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.past
	for sd := range s.open {
		sum = add(sum, sd.stats())
	}
	return sum
}

// run keeps the node in the layer's swarm until ctx ends or it fails for good.
func (sd *seed) run(ctx context.Context) {
	take := sd.rooted
	if sd.key.Root.IsZero() {
		take = sd.segmented
	}
	if err := sd.adopt(ctx); err != nil && ctx.Err() == nil {
		sd.fail(err)
		return
	}
	for ctx.Err() == nil {
		if err := take(ctx); err != nil && ctx.Err() == nil {
			sd.fail(err)
			return
		}
	}
}

// rooted is one membership of the layer's swarm: from joining it until ctx ends, or pieces have to
// be fetched again.
func (sd *seed) rooted(ctx context.Context) error {
	m, err := sd.join(ctx, swarm.Torrent{
		Digest: sd.key.Digest, Size: sd.size, Root: sd.key.Root, Pieces: sd.blob.PieceHashes(),
	}, sd.blob, 0)
	if err != nil {
		return err
	}
	return errors.Join(sd.serve(ctx, m.session.Done(), m.ended), m.stop())
}

// serve finishes the layer when all of it is there, and answers scrubs, until ctx ends or pieces
// have to be fetched again, or a membership ended.
func (sd *seed) serve(ctx context.Context, done, ended <-chan struct{}) error {
	for {
		select {
		case <-ended:
			return nil // its stop says why
		case <-ctx.Done():
			return nil
		case <-done:
			done = nil
			err := sd.finish(ctx)
			if errors.Is(err, store.ErrIncomplete) { // the disk changed: join anew, fetch what is wrong
				sd.all.log.Warn("pieces changed on disk and are fetched again", "digest", sd.key.Digest)
				sd.unready()
				return nil
			}
			if err != nil {
				return err
			}
		case answer := <-sd.scrub:
			bad, err := sd.blob.Verify(ctx)
			answer <- bad
			if err != nil || len(bad) > 0 {
				sd.all.log.Error("pieces on disk are wrong and are fetched again", "digest", sd.key.Digest, "pieces", len(bad), "err", err)
				sd.unready()
				return err
			}
		}
	}
}

// finish makes the seed ready and checks the whole sha256. Where a root binds the pieces to the manifest that
// named it, a model need not wait for the sha256, which takes a second for a GiB: it only says whether the
// blob may be given to those who ask for the digest.
func (sd *seed) finish(ctx context.Context) error {
	if !sd.key.Root.IsZero() {
		sd.makeReady()
	}
	if err := sd.blob.Finish(ctx); err != nil {
		return err
	}
	sd.makeReady()
	if !sd.isChecked() {
		close(sd.checked)
	}
	return nil
}

func (sd *seed) makeReady() {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	select {
	case <-sd.ready:
	default:
		close(sd.ready)
	}
}

// readiness is closed once every piece of the layer is right. After damage was found it is another one.
func (sd *seed) readiness() chan struct{} {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	return sd.ready
}

func (sd *seed) isReady() bool {
	select {
	case <-sd.readiness():
		return true
	default:
		return false
	}
}

func (sd *seed) isChecked() bool {
	select {
	case <-sd.checked:
		return true
	default:
		return false
	}
}

func (sd *seed) fail(err error) {
	sd.mu.Lock()
	sd.err = err
	sd.mu.Unlock()
	sd.all.spoil()
	sd.all.log.Error("a layer cannot be had", "digest", sd.key.Digest, "err", err)
}

func (sd *seed) failure() error {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	return sd.err
}

// await waits until every piece of the layer is right.
func (sd *seed) await(ctx context.Context) error { return sd.awaitClosed(ctx, sd.readiness()) }

// awaitChecked waits until the layer's whole sha256 was found right.
func (sd *seed) awaitChecked(ctx context.Context) error { return sd.awaitClosed(ctx, sd.checked) }

func (sd *seed) awaitClosed(ctx context.Context, ch <-chan struct{}) error {
	select {
	case <-ch:
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
	if sd.err != nil {
		return sd.err
	}
	for _, m := range sd.live {
		if err := m.session.Trouble(); err != nil {
			return err
		}
	}
	return sd.why
}

func (sd *seed) setTrouble(err error) {
	sd.mu.Lock()
	sd.why = err
	sd.mu.Unlock()
}

func (sd *seed) stats() swarm.Stats {
	sd.mu.Lock()
	defer sd.mu.Unlock()
	sum := sd.past
	for _, m := range sd.live {
		sum = add(sum, m.session.Stats())
	}
	return sum
}

func add(a, b swarm.Stats) swarm.Stats {
	return swarm.Stats{
		Origin: a.Origin + b.Origin, Peers: a.Peers + b.Peers, Imported: a.Imported + b.Imported,
		Sent: a.Sent + b.Sent, Wasted: a.Wasted + b.Wasted,
	}
}
