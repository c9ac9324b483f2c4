package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/internal/recent"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/peer/store"
)

// Config describes a mirror. Dir and Upstreams are needed.
type Config struct {
	// Dir keeps blobs, manifests and tags; one process at a time.
	Dir string
	// Upstreams are the registries that are mirrored; nothing else is reached through the mirror.
	Upstreams []Upstream
	// Quota is how many bytes the blobs may take, 0 as many as fit; KeepFree how many bytes of the
	// file system stay free. The least recently used blobs go first, those of desired models never.
	Quota, KeepFree int64
	// Parallel is how many ranges of one blob are read from upstream at once, at most: as many as make it faster.
	// 0 means 4.
	Parallel int
	// MaxParallel bounds the ranges of all blobs of an upstream together; 0 means 4 times Parallel.
	MaxParallel int
	// RangeSize is how many bytes a blob's first range has, and at most, a 256th of the blob if that is less, one that
	// is not in order. 0 means 8 MiB.
	RangeSize int64
	// TagTTL is for how long a tag is believed without asking upstream; 0 means 30 s.
	TagTTL time.Duration
	// Retry is how often and how patiently upstream is asked for a blob; its zero value means
	// registry.DefaultRetry, which bridges a registry's restart. Manifests are tried 3 times at most,
	// because the last known one can answer.
	Retry registry.Retry
	// Stall is how long upstream's body may bring no byte; 0 means 30 s.
	Stall time.Duration
	// SyncBytes is after how many bytes a fill is synced: at most these are read again after
	// kill -9. 0 means 64 MiB, which costs a disk nothing and a 10 Gbit/s link 50 ms.
	SyncBytes int64
	// Tracker, where it is set, names the models that the region's nodes should hold: their blobs stay, over
	// the quota's order. Nil means that no blob is more than another.
	Tracker Tracker
	// Identify tells who sent a request (certs.From). Nil serves everyone: for trials.
	Identify func(*http.Request) (certs.Identity, bool)
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Parallel <= 0 {
		c.Parallel = 4
	}
	if c.MaxParallel <= 0 {
		c.MaxParallel = 4 * c.Parallel
	}
	if c.RangeSize <= 0 {
		c.RangeSize = 8 << 20
	}
	if c.TagTTL <= 0 {
		c.TagTTL = 30 * time.Second
	}
	if c.Retry.Tries == 0 {
		c.Retry = registry.DefaultRetry()
	}
	if c.SyncBytes <= 0 {
		c.SyncBytes = 64 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Mirror is a registry mirror. Its methods may be called from many goroutines while Run runs.
type Mirror struct {
	cfg       Config
	log       *slog.Logger
	metrics   *metrics
	paths     pullapi.Parser
	store     *store.Store
	manifests manifestStore
	upstreams map[string]*upstream // for blobs
	quick     map[string]*upstream // for manifests: fewer tries
	failures  failures
	confirmed *recent.Map[failureKey, struct{}] // repositories that were seen to have a blob
	admitted  *recent.Map[admission, struct{}]  // tokens that upstream accepted
	buffers   buffers
	runner    runner
	flights   flights
	segments  segments

	mu    sync.Mutex
	fills map[digest.Digest]*fill
	idle  []*fill // complete, without users, the longest idle first
}

const (
	// confirmedFor is for how long a repository is believed to still have a blob without asking upstream. The mirror keeps a blob once, whoever has it: a repository that lacks it must be no way to it.
	confirmedFor = 10 * time.Minute
	maxConfirmed = 1 << 16
)

// maxIdle is how many blobs are kept open after their last use: opening one reads its records.
const maxIdle = 64

// New opens the mirror in cfg.Dir. Requests are answered once Run runs; Close is to be called after
// it. The error may be store.ErrLocked.
func New(cfg Config) (*Mirror, error) {
	cfg = cfg.withDefaults()
	if len(cfg.Upstreams) == 0 {
		return nil, errors.New("mirror: no upstream registry is configured")
	}
	m := &Mirror{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(), paths: pullapi.NewParser(),
		upstreams: map[string]*upstream{}, quick: map[string]*upstream{},
		runner: runner{kick: make(chan struct{}, 1)},
		fills:  map[digest.Digest]*fill{},

		confirmed: recent.New[failureKey, struct{}](confirmedFor, maxConfirmed),
		admitted:  recent.New[admission, struct{}](admittedFor, maxAdmitted),
	}
	quick := registry.Retry{Tries: min(3, cfg.Retry.Tries), Base: min(cfg.Retry.Base, 200*time.Millisecond), Max: min(cfg.Retry.Max, 2*time.Second)}
	for _, u := range cfg.Upstreams {
		if u.Registry == "" {
			u.Registry = u.Name
		}
		if u.Name == "" || m.upstreams[u.Name] != nil {
			return nil, fmt.Errorf("mirror: upstream %q: every one needs a name of its own", u.Name)
		}
		limit := u.limiter()
		open := func(retry registry.Retry) *upstream {
			return &upstream{cfg: u, retry: retry, stall: cfg.Stall, limit: limit, slots: make(chan struct{}, cfg.MaxParallel), streams: newStreams(cfg.Parallel), repos: map[string]*registry.Repository{}}
		}
		m.upstreams[u.Name], m.quick[u.Name] = open(cfg.Retry), open(quick)
		if _, err := m.upstreams[u.Name].repository(anyRepository); err != nil {
			return nil, fmt.Errorf("mirror: upstream %s: %w", u.Name, err)
		}
	}
	if cfg.Registerer != nil {
		if err := m.metrics.register(cfg.Registerer); err != nil {
			return nil, fmt.Errorf("mirror: %w", err)
		}
	}
	var err error
	if m.manifests, err = openManifests(filepath.Join(cfg.Dir, "manifests")); err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	m.store, err = store.Open(context.Background(), store.Config{
		Dir: filepath.Join(cfg.Dir, "store"), Quota: cfg.Quota, KeepFree: cfg.KeepFree, SyncBytes: cfg.SyncBytes, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("mirror: %w", err)
	}
	return m, nil
}

// Run runs the fills until ctx ends. They stop then, what they wrote is kept, and their readers are
// told so.
func (m *Mirror) Run(ctx context.Context) error {
	if m.cfg.Tracker == nil {
		if err := m.keep(ctx, nil); err != nil { // there may have been one when it last ran
			return err
		}
		m.runner.run(ctx)
		return nil
	}
	var following sync.WaitGroup
	following.Go(func() { m.followDesired(ctx) })
	m.runner.run(ctx)
	following.Wait()
	return nil
}

// Close closes the store, after Run and the last request.
func (m *Mirror) Close() error {
	m.closeIdle(0)
	for name := range m.upstreams {
		m.upstreams[name].close()
		m.quick[name].close()
	}
	return m.store.Close()
}

// pick chooses the upstream by containerd's ns parameter; without it there must be exactly one.
func (m *Mirror) pick(ns string) (string, error) {
	if ns == "" && len(m.cfg.Upstreams) == 1 {
		return m.cfg.Upstreams[0].Name, nil
	}
	if m.upstreams[ns] == nil {
		return "", fmt.Errorf("upstream %q: %w", ns, ErrUnknownUpstream)
	}
	return ns, nil
}

// Blob is a blob that is there or arrives. Its readers share one fill.
type Blob struct {
	mirror *Mirror
	fill   *fill
}

// Blob opens a blob of src and starts its fill if need be. It returns once the size is known. The
// caller closes it. The error may be ErrUnknownUpstream, an *UpstreamError, store.ErrNoSpace or
// ErrStopped.
func (m *Mirror) Blob(ctx context.Context, src Source, d digest.Digest) (*Blob, error) {
	b, how, err := m.blob(ctx, src, d)
	if err != nil && ctx.Err() == nil {
		how = "error"
	}
	m.metrics.requests.WithLabelValues(how).Inc()
	return b, err
}

func (m *Mirror) blob(ctx context.Context, src Source, d digest.Digest) (*Blob, string, error) {
	if m.upstreams[src.Upstream] == nil {
		return nil, "error", fmt.Errorf("upstream %q: %w", src.Upstream, ErrUnknownUpstream)
	}
	for {
		f, started, err := m.join(src, d)
		if err != nil {
			return nil, "error", err
		}
		how := "join"
		if started {
			how = "fill"
		}
		select {
		case <-f.ready:
		case <-ctx.Done():
			m.leave(f)
			return nil, how, context.Cause(ctx)
		}
		blob, err := f.state()
		switch {
		case blob != nil:
			if blob.Verified() {
				how = "hit"
			}
			return &Blob{m, f}, how, nil
		case !started && f.source != src && !errors.Is(err, ErrStopped):
			m.leave(f) // another repository failed, not ours
		default:
			m.leave(f)
			return nil, how, err
		}
	}
}

// join becomes a user of the blob's fill, which is started if there is none.
func (m *Mirror) join(src Source, d digest.Digest) (f *fill, started bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.fills[d]; f != nil {
		m.wakeIdle(f)
		f.users++
		return f, false, nil
	}
	if err := m.failures.check(failureKey{src, d.String()}, time.Now()); err != nil {
		return nil, false, err
	}
	f = newFill(d, src)
	f.users = 2 // the runner and the caller
	if !m.runner.start(func(ctx context.Context) { m.runFill(ctx, f) }) {
		return nil, false, ErrStopped
	}
	m.fills[d] = f
	return f, true, nil
}

// runFill fills the blob and says how it ended.
func (m *Mirror) runFill(ctx context.Context, f *fill) {
	m.metrics.filling.Inc()
	defer m.metrics.filling.Dec()
	start := time.Now()
	err := m.fillBlob(ctx, f)
	if ctx.Err() != nil && err != nil {
		err = ErrStopped
	}
	key := failureKey{f.source, f.digest.String()}
	log := m.log.With(slog.String("digest", f.digest.String()), slog.Duration("dur", time.Since(start)))
	switch {
	case err == nil:
		m.failures.forget(key)
		m.saw(f.source, f.digest)
		m.metrics.fillsEnded.WithLabelValues("ok").Inc()
		log.InfoContext(ctx, "blob is here", slog.Int64("bytes", f.blob.Size()))
	case errors.Is(err, ErrWrongBytes):
		err = m.failures.note(key, err, time.Now())
		m.metrics.fillsEnded.WithLabelValues("wrong_bytes").Inc()
		log.ErrorContext(ctx, "blob is dropped", slog.Any("error", err))
	default:
		err = m.failures.note(key, err, time.Now())
		m.metrics.fillsEnded.WithLabelValues("error").Inc()
		log.WarnContext(ctx, "blob did not come", slog.Any("error", err))
	}
	if err != nil {
		m.mu.Lock()
		delete(m.fills, f.digest)
		m.mu.Unlock()
	}
	f.end(err)
	m.leave(f)
}

// leave ends a use. A blob that is whole stays open for a while.
func (m *Mirror) leave(f *fill) {
	m.mu.Lock()
	f.users--
	last := f.users == 0
	if last && m.fills[f.digest] == f {
		m.idle = append(m.idle, f)
		last = false
	}
	m.mu.Unlock()
	if last {
		m.closeFill(f)
	}
	m.closeIdle(maxIdle)
}

// wakeIdle takes f out of the idle ones; m.mu is held.
func (m *Mirror) wakeIdle(f *fill) {
	for i, other := range m.idle {
		if other == f {
			m.idle = append(m.idle[:i], m.idle[i+1:]...)
			return
		}
	}
}

// closeIdle closes the longest idle blobs, so that the store may remove them, until keep are left. It
// reports whether there was one.
func (m *Mirror) closeIdle(keep int) bool {
	m.mu.Lock()
	n := max(0, len(m.idle)-keep)
	closing := append([]*fill(nil), m.idle[:n]...)
	m.idle = append([]*fill(nil), m.idle[n:]...)
	for _, f := range closing {
		delete(m.fills, f.digest)
	}
	m.mu.Unlock()
	for _, f := range closing {
		m.closeFill(f)
	}
	return n > 0
}

// closeFill gives the blob back to the store after its last use.
func (m *Mirror) closeFill(f *fill) {
	if f.blob == nil {
		return
	}
	err := f.blob.Close()
	if f.dropped {
		removed := m.store.RemoveBlob(f.blob.Key())
		if !errors.Is(removed, store.ErrInUse) && !errors.Is(removed, store.ErrNotFound) { // a newer fill has it
			err = errors.Join(err, removed)
		}
	}
	if err != nil {
		m.log.Warn("blob is not closed well", slog.String("digest", f.digest.String()), slog.Any("error", err))
	}
}

// Stat returns a blob's size in bytes without starting its fill, if the repository of src has it: that the mirror
// has it from another one is not enough. Its errors are those of Blob.
func (m *Mirror) Stat(ctx context.Context, src Source, d digest.Digest) (int64, error) {
	if m.upstreams[src.Upstream] == nil {
		return 0, fmt.Errorf("upstream %q: %w", src.Upstream, ErrUnknownUpstream)
	}
	key := failureKey{src, d.String()}
	_, _, fresh := m.confirmed.Get(key, time.Now())
	kept, here := m.sizeHere(ctx, d)
	if here && fresh {
		return kept, nil
	}
	size, err := m.statUpstream(ctx, src, d, key)
	e, upstream := errors.AsType[*UpstreamError](err)
	switch {
	case err == nil:
		m.saw(src, d)
	case upstream && e.down() && here && m.manifests.hadBlob(src, d):
		return kept, nil
	case upstream && !e.down():
		m.confirmed.Delete(key)
		err = errors.Join(err, m.manifests.dropBlob(src, d))
	}
	return size, err
}

// saw notes that a repository has a blob.
func (m *Mirror) saw(src Source, d digest.Digest) {
	m.confirmed.Put(failureKey{src, d.String()}, struct{}{}, time.Now())
	if err := m.manifests.saveBlob(src, d); err != nil {
		m.log.Warn("which repository has a blob is not remembered over a restart", slog.String("digest", d.String()), slog.Any("error", err))
	}
}

// sizeHere is the blob's size where the mirror has it, or fills it.
func (m *Mirror) sizeHere(ctx context.Context, d digest.Digest) (int64, bool) {
	m.mu.Lock()
	f := m.fills[d]
	m.mu.Unlock()
	if f != nil {
		if blob, _ := f.state(); blob != nil {
			return blob.Size(), true
		}
	}
	r, err := m.store.OpenVerified(ctx, d)
	if err != nil {
		return 0, false
	}
	size := r.Size()
	return size, r.Close() == nil
}

func (m *Mirror) statUpstream(ctx context.Context, src Source, d digest.Digest, key failureKey) (int64, error) {
	if err := m.failures.check(key, time.Now()); err != nil {
		return 0, err
	}
	size, err := m.do(ctx, "blob "+src.Upstream+"/"+src.Repository+" "+d.String(), func(ctx context.Context) (any, error) {
		info, err := m.quick[src.Upstream].stat(ctx, src, d)
		return info.size, m.failures.note(key, err, time.Now())
	})
	if err != nil {
		return 0, err
	}
	return size.(int64), nil
}

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { return b.fill.blob.Size() }

// Wait returns once the byte at off is there (the whole blob, verified, where off is its size), or the
// error that keeps it away: an *UpstreamError, ErrWrongBytes, ErrStopped or ctx's.
func (b *Blob) Wait(ctx context.Context, off int64) error {
	_, err := b.fill.wait(ctx, off, min(off+1, b.Size()), off == b.Size())
	return err
}

// CopyRange writes the n bytes at off to w as they arrive. The last byte of the whole blob is held
// back until the digest was found right; parts are written before. The error is w's or one of Wait's.
func (b *Blob) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	if off < 0 || n < 0 || off > b.Size()-n {
		return fmt.Errorf("blob %s: %w", b.fill.digest, pullapi.ErrRange)
	}
	return b.mirror.copyRange(ctx, b.fill, w, off, n)
}

// Close gives the blob back. The fill goes on.
func (b *Blob) Close() { b.mirror.leave(b.fill) }
