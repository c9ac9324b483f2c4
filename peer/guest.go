package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/internal/recent"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/peer/store"
)

const (
	// maxStaying is how many such blobs are kept; those without a reader for longest go first.
	maxStaying = 64
	// confirmedFor is for how long a repository is believed to have a blob, and maxConfirmed how many
	// such answers are remembered.
	confirmedFor = 10 * time.Minute
	maxConfirmed = 1 << 16
	// beginTime bounds the questions before a transfer begins.
	beginTime = time.Minute
	// copyBytes is how much is read from the disk at once.
	copyBytes = 256 << 10
)

// guests are blobs that no model of the node's is made of: a container runtime asks for them. However many
// readers one has, it is one transfer.
type guests struct {
	cfg   Config
	seeds *seeds

	confirmed *recent.Map[string, int64] // sizes, by UPSTREAM/REPOSITORY@DIGEST
	settled   *prometheus.CounterVec     // by what became of our copy

	mu     sync.Mutex
	open   map[digest.Digest]*guest
	ended  bool
	leaves sync.WaitGroup

	life     context.Context // of settling
	end      context.CancelFunc
	settling sync.WaitGroup
}

// guest is one blob on its way, or lingering.
type guest struct {
	digest  digest.Digest
	begun   chan struct{} // closed when part or err is set
	part    part
	err     error
	readers int
	idle    time.Time   // since when there is no reader
	leave   *time.Timer // nil while there is one
}

func newGuests(cfg Config, s *seeds) *guests {
	life, end := context.WithCancel(context.Background())
	return &guests{
		life: life, end: end,
		cfg: cfg, seeds: s, open: map[digest.Digest]*guest{}, confirmed: recent.New[string, int64](confirmedFor, maxConfirmed),
		settled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_endpoint_settled_total",
			Help: "Blobs of which the node needs no copy beside the container runtime's any more, by what became of its own: linked to the runtime's, or dropped.",
		}, []string{"way"}),
	}
}

// errEnding says that the node shuts down.
var errEnding = errors.New("the node shuts down")

// confirm returns the size of a blob that the repository has. Whoever may read one repository must not reach
// through it what only others have: the node may hold the blob from there.
func (g *guests) confirm(ctx context.Context, reference string, d digest.Digest) (int64, error) {
	if size, _, fresh := g.confirmed.Get(reference, time.Now()); fresh {
		return size, nil
	}
	ctx, cancel := context.WithTimeout(ctx, beginTime)
	defer cancel()
	repos, err := g.cfg.Origins.openBlob(reference, d)
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, repo := range repos {
			repo.Close()
		}
	}()
	size, err := each(ctx, repos, func(repo *registry.Repository) (int64, error) {
		return repo.BlobSize(ctx, d)
	})
	if err != nil {
		return 0, err
	}
	g.confirmed.Put(reference, size, time.Now())
	return size, nil
}

// enter becomes a reader of the blob, whose transfer begins if need be.
func (g *guests) enter(ctx context.Context, reference string, d digest.Digest, size int64) (*guest, error) {
	g.mu.Lock()
	if g.ended {
		g.mu.Unlock()
		return nil, errEnding
	}
	b := g.open[d]
	if b == nil {
		b = &guest{digest: d, begun: make(chan struct{})}
		g.open[d] = b
		g.leaves.Go(func() {
			b.part, b.err = g.begin(context.WithoutCancel(ctx), reference, d, size)
			close(b.begun)
		})
	}
	b.readers++
	if b.leave != nil {
		b.leave.Stop()
		b.leave = nil
	}
	g.mu.Unlock()
	select {
	case <-b.begun:
	case <-ctx.Done():
		g.exit(b)
		return nil, ctx.Err()
	}
	if b.err != nil {
		g.exit(b)
		return nil, b.err
	}
	return b, nil
}

// begin joins the blob's transfer.
func (g *guests) begin(ctx context.Context, reference string, d digest.Digest, size int64) (part, error) {
	ctx, cancel := context.WithTimeout(ctx, beginTime)
	defer cancel()
	if p, ok := g.seeds.join(d); ok {
		return p, nil
	}
	return g.seeds.acquire(ctx, store.Spec{Digest: d, Size: size}, func() ([]*registry.Repository, error) {
		return g.cfg.Origins.openBlob(reference, d)
	})
}

// exit ends a reader. The blob stays for a while, unless it never came.
func (g *guests) exit(b *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b.readers--
	if b.readers > 0 {
		return
	}
	select {
	case <-b.begun:
		if b.err != nil {
			if g.open[b.digest] == b {
				delete(g.open, b.digest)
			}
			return
		}
	default: // it is still beginning; what comes of it is kept for the next one who asks
	}
	if b.begunBadly() {
		g.dismiss(b)
		return
	}
	b.idle = time.Now()
	b.leave = time.AfterFunc(g.cfg.GuestStay, func() { g.settle(b) })
	g.crowd()
}

// begunBadly reports whether the transfer has failed for good, so that the next reader begins another.
func (b *guest) begunBadly() bool {
	select {
	case <-b.begun:
		return b.part.seed.failure() != nil
	default:
		return false
	}
}

// crowd sends away the blobs that were without a reader for longest, where there are too many. g.mu is held.
func (g *guests) crowd() {
	for {
		var oldest *guest
		staying := 0
		for _, b := range g.open {
			if b.readers > 0 {
				continue
			}
			staying++
			if oldest == nil || b.idle.Before(oldest.idle) {
				oldest = b
			}
		}
		if staying <= maxStaying {
			return
		}
		g.dismiss(oldest)
	}
}

// settle leaves one copy of a blob that had no reader for a while: ours becomes a link to containerd's and goes
// on being offered to the other nodes, or it is dropped.
func (g *guests) settle(b *guest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended || g.open[b.digest] != b || b.readers > 0 {
		return
	}
	b.readers++ // we are one: nobody sends it away meanwhile
	g.settling.Go(func() {
		linked := g.share(b)
		g.mu.Lock()
		defer g.mu.Unlock()
		b.readers--
		switch {
		case g.ended || b.readers > 0:
		case linked:
			b.leave = time.AfterFunc(g.cfg.GuestStay, func() { g.settle(b) }) // until containerd drops its own
		default:
			g.dismiss(b)
		}
	})
}

// share makes our copy of b a link to containerd's. It reports whether it is one.
func (g *guests) share(b *guest) bool {
	<-b.begun
	if g.cfg.ContentStore == "" || b.err != nil {
		return false
	}
	blob := b.part.seed.blob
	if blob.Shared() {
		return true
	}
	linked, err := blob.Share(g.life, filepath.Join(g.cfg.ContentStore, "blobs", "sha256", b.digest.Encoded()))
	if err != nil && g.life.Err() == nil {
		g.seeds.log.Warn("a blob is no link to containerd's", "digest", b.digest, "err", err)
	}
	if linked {
		g.settled.WithLabelValues("linked").Inc()
		g.seeds.log.Info("a blob is a link to containerd's from now on", "digest", b.digest, "bytes", blob.Size(), "copies", 1)
	}
	return linked
}

// dismiss gives the blob up and drops it, unless a model is made of it. g.mu is held.
func (g *guests) dismiss(b *guest) {
	if g.open[b.digest] != b {
		return
	}
	delete(g.open, b.digest)
	if b.leave != nil {
		b.leave.Stop()
	}
	g.leaves.Go(func() {
		<-b.begun
		if b.err != nil {
			return
		}
		key := b.part.seed.key
		g.seeds.release(b.part.seed)
		if !key.Root.IsZero() {
			return // it belongs to a model
		}
		switch err := g.cfg.Store.RemoveBlob(key); {
		case err == nil:
			g.settled.WithLabelValues("dropped").Inc()
			g.seeds.log.Info("a blob that containerd asked for is dropped", "digest", b.digest)
		case !errors.Is(err, store.ErrInUse) && !errors.Is(err, store.ErrNotFound):
			g.seeds.log.Warn("a blob that containerd asked for stays on the disk", "digest", b.digest, "err", err)
		}
	})
}

// close gives up all blobs and waits for that. What is on the disk stays for the next start.
func (g *guests) close() {
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	g.end()
	g.settling.Wait()
	g.mu.Lock()
	for _, b := range g.open {
		if b.leave != nil {
			b.leave.Stop()
		}
		g.leaves.Go(func() {
			<-b.begun
			if b.err == nil {
				g.seeds.release(b.part.seed)
			}
		})
	}
	clear(g.open)
	g.mu.Unlock()
	g.leaves.Wait()
}

// Sources of a blob's bytes, as they are counted.
const (
	FromStore = "store" // verified on the node's disk
	FromSwarm = "swarm" // as it arrives from peers and the mirror
)

// OpenBlob opens a blob that a repository has, for reading while it arrives. source is where its bytes come from.
// The caller closes it. The error says why neither the mirror nor an upstream gives it.
func (p *Peer) OpenBlob(ctx context.Context, upstream, repository string, d digest.Digest) (blob pullapi.Blob, source string, err error) {
	reference := upstream + "/" + repository + "@" + d.String()
	size, err := p.guests.confirm(ctx, reference, d)
	if err != nil {
		return nil, FromSwarm, err
	}
	r, err := p.cfg.Store.OpenVerified(ctx, d)
	if err == nil {
		return verified{r}, FromStore, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, FromStore, err
	}
	b, err := p.guests.enter(ctx, reference, d, size)
	if err != nil {
		return nil, FromSwarm, err
	}
	return &arriving{p.guests, b}, FromSwarm, nil
}

// verified is a blob that is whole.
type verified struct{ *store.Reader }

// Wait implements pullapi.Blob.
func (verified) Wait(context.Context, int64) error { return nil }

// CopyRange implements pullapi.Blob.
func (v verified) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	_, err := io.CopyBuffer(onlyWriter{w}, &contextReader{ctx, io.NewSectionReader(v, off, n)}, make([]byte, copyBytes))
	return err
}

// Close implements pullapi.Blob.
func (v verified) Close() { _ = v.Reader.Close() } // it was only read

// onlyWriter hides ReadFrom, which would take a buffer of its own.
type onlyWriter struct{ io.Writer }

// arriving is a guest as a reader sees it.
type arriving struct {
	guests *guests
	guest  *guest
}

// Size implements pullapi.Blob.
func (a *arriving) Size() int64 { return a.guest.part.seed.size }

// Wait implements pullapi.Blob. Whoever reads all of it hears that it is whole only when its digest was
// checked.
func (a *arriving) Wait(ctx context.Context, off int64) error {
	sd := a.guest.part.seed
	if off >= sd.size {
		return sd.awaitChecked(ctx)
	}
	for piece := int(off / sd.blob.PieceLength()); ; {
		news := sd.blob.News()
		if sd.blob.Have(piece) {
			return nil
		}
		select {
		case <-news:
		case <-sd.ended:
			if err := sd.failure(); err != nil {
				return err
			}
			return errEnding
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CopyRange implements pullapi.Blob.
func (a *arriving) CopyRange(ctx context.Context, w io.Writer, off, n int64) error {
	blob := a.guest.part.seed.blob
	buf := make([]byte, copyBytes)
	for end := off + n; off < end; {
		if err := a.Wait(ctx, off); err != nil {
			return err
		}
		pieceEnd := (off/blob.PieceLength() + 1) * blob.PieceLength()
		part := buf[:min(int64(len(buf)), end-off, pieceEnd-off)]
		if k, err := blob.ReadAt(part, off); k < len(part) {
			return fmt.Errorf("after %d bytes: %w", k, err)
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
		off += int64(len(part))
	}
	return nil
}

// Close implements pullapi.Blob.
func (a *arriving) Close() { a.guests.exit(a.guest) }

// ClientManifest returns a manifest for a client that sent authorization. ok is false where upstream does not give
// it to that client, or where nobody can tell. The error may be a *registry.ChallengeError: upstream wants a
// token.
func (p *Peer) ClientManifest(ctx context.Context, upstream, repository, reference, authorization string) (m pullapi.Manifest, ok bool, err error) {
	mirrors := len(p.cfg.Origins.Mirrors)
	if mirrors == 0 {
		return m, false, nil
	}
	sep := ":"
	if _, isDigest := (pullapi.Target{Reference: reference}).Digest(); isDigest {
		sep = "@"
	}
	repos, _, err := p.cfg.Origins.open(upstream + "/" + repository + sep + reference)
	if err != nil {
		return m, false, err
	}
	defer func() {
		for _, repo := range repos {
			repo.Close()
		}
	}()
	for _, mirror := range repos[:mirrors] {
		var header http.Header
		if m, header, err = mirror.ClientManifest(ctx, reference, authorization); err == nil {
			access := header.Get(pullapi.AccessHeader)
			return m, access == pullapi.Public || access == pullapi.Granted, nil
		}
		if !registry.Unavailable(err) {
			break
		}
	}
	return m, false, err
}
