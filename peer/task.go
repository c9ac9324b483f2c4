package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// States of a model on a node, as they are reported.
const (
	StateResolving = "Resolving" // reading its manifest
	StateFetching  = "Fetching"  // its pieces are on their way
	StateReady     = "Ready"     // verified and published
	StateFailed    = "Failed"    // it cannot be had as it is; tried again from time to time
)

const (
	// retryMin and retryMax bound the wait after a try that failed.
	retryMin, retryMax = time.Second, time.Minute
	// pinOwner marks models that the desired set wants.
	pinOwner = "desired"
)

// task brings one desired model onto the node and keeps it there.
type task struct {
	peer     *Peer
	model    client.DesiredModel
	log      *slog.Logger
	cancel   context.CancelFunc
	unwanted atomic.Bool
	started  time.Time

	mu    sync.Mutex
	state string
	err   error
	image *content // what the reference means, or meant when it was last resolved; nil where nobody knows
	parts []part
	took  time.Duration // from the start to Ready
	tree  string        // where it is published; "" where it is not
}

// part is a layer of the model.
type part struct {
	seed *seed
	base swarm.Stats // what the seed had counted before it was this model's
}

func newTask(p *Peer, m client.DesiredModel) *task {
	t := &task{
		peer: p, model: m, started: time.Now(), state: StateResolving,
		log: p.log.With("model", m.Name, "reference", m.Reference),
	}
	if image, err := p.memory.image(m.Reference); err == nil {
		t.image = image // and pinned: an earlier run of the node may have held it
	}
	return t
}

// run tries until ctx ends.
func (t *task) run(ctx context.Context) {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := t.try(ctx)
		if ctx.Err() != nil {
			break
		}
		t.set(StateFailed, err)
		t.log.Error("the model cannot be had", "err", err)
		if !pause(ctx, wait) {
			break
		}
		t.set(StateResolving, err)
	}
	if t.unwanted.Load() {
		if err := t.unpin(); err != nil {
			t.log.Error("the model stays pinned", "err", err)
		}
	}
}

// pin keeps image in the store, and what the reference meant before no longer.
func (t *task) pin(image *content) error {
	t.peer.pinning.Lock()
	defer t.peer.pinning.Unlock()
	if err := t.peer.cfg.Store.Pin(image.manifest(), pinOwner); err != nil {
		return err
	}
	t.mu.Lock()
	before := t.image
	t.image = image
	t.mu.Unlock()
	if before == nil || before.manifest() == image.manifest() {
		return nil
	}
	return t.peer.unpin(before.manifest())
}

func (t *task) unpin() error {
	t.peer.pinning.Lock()
	defer t.peer.pinning.Unlock()
	if image := t.known(); image != nil {
		return t.peer.unpin(image.manifest())
	}
	return nil
}

func (t *task) known() *content {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.image
}

func (t *task) set(state string, err error) {
	t.mu.Lock()
	t.state, t.err = state, err
	t.mu.Unlock()
	t.peer.notify()
}

// try brings the model and holds it until ctx ends. It returns earlier only with an error.
func (t *task) try(ctx context.Context) error {
	repos, tag, err := t.peer.cfg.Origins.open(t.model.Reference)
	if err != nil {
		return err
	}
	defer func() {
		for _, repo := range repos {
			repo.Close()
		}
	}()
	image, err := t.resolve(ctx, repos, tag)
	if err != nil {
		return fmt.Errorf("image %s: %w", t.model.Reference, err)
	}
	if err := t.pin(image); err != nil {
		return err
	}
	t.set(StateFetching, nil)
	defer t.releaseAll()
	if err := t.fetch(ctx, repos, image); err != nil {
		return err
	}
	return t.hold(ctx, image)
}

// resolve asks the origins what the reference means. While none of them answers, it is what it was.
func (t *task) resolve(ctx context.Context, repos []*registry.Repository, tag string) (*content, error) {
	image, err := each(ctx, repos, func(r *registry.Repository) (*content, error) {
		return resolveContent(ctx, r, tag)
	})
	if err == nil {
		if err := t.peer.memory.saveImage(t.model.Reference, image); err != nil {
			t.log.Warn("what the reference means is not remembered over a restart", "err", err)
		}
		return image, nil
	}
	if ctx.Err() != nil || !registry.Unavailable(err) {
		return nil, err
	}
	known, missing := t.peer.memory.image(t.model.Reference)
	if missing != nil {
		return nil, err
	}
	t.log.Warn("no origin answers: the reference means what it meant before", "digest", known.manifest(), "err", err)
	return known, nil
}

// fetch brings all layers, a few at a time.
func (t *task) fetch(ctx context.Context, repos []*registry.Repository, image *content) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(t.peer.cfg.Layers)
	for _, spec := range image.specs() {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := t.peer.giveWay(ctx, t); err != nil {
				return err
			}
			sd, err := t.begin(ctx, repos, spec)
			if err != nil {
				return err
			}
			return sd.await(ctx)
		})
	}
	return group.Wait()
}

// begin makes the node a member of the layer's swarm.
func (t *task) begin(ctx context.Context, repos []*registry.Repository, spec store.Spec) (*seed, error) {
	if spec.Layer != nil {
		var err error
		if spec.Hashes, err = t.hashes(ctx, repos, *spec.Layer); err != nil {
			return nil, err
		}
	}
	// The session outlives this try's repositories.
	open := func() ([]*registry.Repository, error) {
		return t.peer.cfg.Origins.openBlob(t.model.Reference, spec.Digest)
	}
	p, err := t.peer.seeds.acquire(ctx, spec, open)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.parts = append(t.parts, p)
	t.mu.Unlock()
	return p.seed, nil
}

// hashes brings the layer's hash layer: the store has it, or the tracker, or the registry.
func (t *task) hashes(ctx context.Context, repos []*registry.Repository, layer model.Layer) (model.HashLayer, error) {
	if blob, err := t.peer.cfg.Store.OpenBlob(ctx, store.KeyOf(layer)); err == nil {
		return nil, blob.Close()
	}
	key := client.Key{Digest: layer.Digest, Root: layer.Root}
	tracker := t.peer.cfg.Tracker
	if tracker != nil {
		if hashes, err := tracker.Hashes(ctx, key, layer.Size); err == nil {
			return hashes, nil
		}
	}
	hashes, err := each(ctx, repos, func(r *registry.Repository) (model.HashLayer, error) {
		return model.FetchHashLayer(ctx, r, layer)
	})
	if err != nil {
		return nil, err
	}
	if tracker != nil {
		if err := tracker.PutHashes(ctx, key, layer.Size, hashes); err != nil {
			t.log.Debug("the tracker does not take the hash layer", "digest", layer.Digest, "err", err)
		}
	}
	return hashes, nil
}

// hold publishes the model and keeps it right until ctx ends.
func (t *task) hold(ctx context.Context, image *content) error {
	for {
		parts := t.held()
		whole := make([]chan struct{}, len(parts)) // before publishing: what breaks meanwhile counts
		for i, p := range parts {
			whole[i] = p.seed.readiness()
		}
		path, broken := image.publish(ctx, t.peer.cfg.Store, t.model.Name)
		if broken == nil {
			t.mu.Lock()
			t.took, t.tree = time.Since(t.started), path
			t.mu.Unlock()
			t.set(StateReady, nil)
			t.log.Info("the model is ready", "path", path, "bytes", t.progress().Total, "dur", t.took)
			broken = t.untilBroken(ctx, parts, whole)
		}
		// What contradicts itself may stand from before the node's last start.
		if _, corrupt := errors.AsType[*store.CorruptError](broken); broken != nil && !corrupt {
			return broken
		}
		t.mu.Lock()
		t.tree = ""
		t.mu.Unlock()
		if err := t.peer.cfg.Store.Withdraw(image.manifest()); err == nil {
			t.log.Error("the model is not what it was published as: it is withdrawn", "err", broken)
		} else if !errors.Is(err, store.ErrNotFound) {
			return errors.Join(err, broken)
		}
		if broken != nil {
			return broken
		}
		t.set(StateFetching, errScrubbed)
		for _, p := range parts {
			if err := p.seed.await(ctx); err != nil {
				return err
			}
		}
	}
}

// untilBroken returns nil when a layer is not ready any more, or was not for a while, since it had the
// readiness in whole: the tree has to be looked at again even where the layer was mended meanwhile.
func (t *task) untilBroken(ctx context.Context, parts []part, whole []chan struct{}) error {
	for {
		spoils := t.peer.seeds.spoils()
		for i, p := range parts {
			if err := p.seed.failure(); err != nil {
				return err
			}
			if p.seed.readiness() != whole[i] {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-spoils:
		}
	}
}

// published is where the model's tree stands, "" where it does not.
func (t *task) published() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.tree
}

// coming reports whether the model is being fetched and gets on.
func (t *task) coming() bool {
	t.mu.Lock()
	on := t.err == nil && (t.state == StateResolving || t.state == StateFetching)
	t.mu.Unlock()
	for _, p := range t.held() {
		on = on && p.seed.trouble() == nil
	}
	return on
}

// retune takes over what may change while the model stays: its tier and priority. Peer.mu is held.
func (t *task) retune(m client.DesiredModel) { t.model.Tier, t.model.Priority = m.Tier, m.Priority }

func (t *task) held() []part {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]part(nil), t.parts...)
}

func (t *task) releaseAll() {
	for _, p := range t.held() {
		t.peer.seeds.release(p.seed)
	}
	t.mu.Lock()
	t.parts = nil
	t.mu.Unlock()
}

// progress says how far the model is.
func (t *task) progress() client.ModelProgress {
	parts := t.held()
	t.mu.Lock()
	out := client.ModelProgress{
		Name: t.model.Name, Reference: t.model.Reference, State: t.state,
		Seconds: time.Since(t.started).Seconds(), ResidentBytes: -1,
	}
	if s, ok := t.peer.keeper.State(t.tree); ok && t.tree != "" {
		out.ResidentBytes = s.Resident
	}
	if t.state == StateReady {
		out.Seconds = t.took.Seconds()
	}
	err := t.err
	if t.image != nil {
		out.Total = t.image.size()
	}
	t.mu.Unlock()
	for _, p := range parts {
		now := p.seed.stats()
		out.Bytes += p.seed.blob.Held()
		out.OriginBytes += now.Origin - p.base.Origin
		out.PeerBytes += now.Peers - p.base.Peers
		out.WastedBytes += now.Wasted - p.base.Wasted
		if err == nil && out.State != StateReady {
			err = p.seed.trouble()
		}
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}
