package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/swarm"
)

const (
	// segmentsOpen is how many segments are fetched at once: while the nodes finish one, the next is
	// well under way.
	segmentsOpen = 3
	// aloneBelow is the size, in bytes, below which a blob is fetched without a swarm: asking for
	// leases would take longer.
	aloneBelow = 4 << 20
	// segmentsTimeout bounds one question for segments; a mirror holds it for 20 s.
	segmentsTimeout = 40 * time.Second
	// wrongCopies is how often a whole blob may come wrong before it is given up.
	wrongCopies = 3
)

// segmented takes part in the swarms of a blob without a pieces root, one after another, until ctx
// ends or everything has to be fetched again.
func (sd *seed) segmented(ctx context.Context) (err error) {
	var joined []*membership
	defer func() {
		for _, m := range joined {
			// What a session could not bring was fetched alone, so that its error only explains another.
			if stopped := m.stop(); stopped != nil && err != nil && ctx.Err() == nil {
				err = errors.Join(err, stopped)
			}
		}
	}()
	if sd.size >= aloneBelow {
		for i := range model.NumSegments(sd.size) {
			m, err := sd.joinSegment(ctx, i)
			if err != nil {
				return err
			}
			if m == nil {
				continue // it was fetched alone
			}
			joined = append(joined, m)
			if err := awaitSegments(ctx, joined, segmentsOpen-1); err != nil {
				return err
			}
		}
	}
	// What the swarms could not bring, and blobs too small for one.
	if err := awaitSegments(ctx, joined, 0); err != nil {
		return err
	}
	if err := sd.fetchAlone(ctx, 0, sd.size); err != nil {
		return err
	}
	done, ended := make(chan struct{}), make(chan struct{})
	close(done)
	err = sd.serve(ctx, done, ended)
	if e, wrong := errors.AsType[*store.CorruptError](err); wrong && sd.again(e) {
		return nil
	}
	return err
}

// again reports whether a blob that came wrong is fetched once more.
func (sd *seed) again(e *store.CorruptError) bool {
	sd.wrong++
	sd.known = nil // the mirror may have described the wrong bytes
	sd.setTrouble(e)
	sd.all.log.Error("a blob came wrong and is fetched again", "digest", sd.key.Digest, "err", e)
	return sd.wrong < wrongCopies
}

// awaitSegments waits until at most open segments are on their way. One whose session ended is not.
func awaitSegments(ctx context.Context, joined []*membership, open int) error {
	for {
		events := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
		under := 0
		for _, m := range joined {
			if !m.underWay() {
				continue
			}
			under++
			for _, ch := range []<-chan struct{}{m.session.Done(), m.ended} {
				events = append(events, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ch)})
			}
		}
		if under <= open {
			return nil
		}
		// Whichever comes next: the first one may be the slowest.
		if chosen, _, _ := reflect.Select(events); chosen == 0 {
			return ctx.Err()
		}
	}
}

// joinSegment joins the swarm of segment i. Where the mirror does not describe it, the segment is
// fetched without a swarm, and there is no membership.
func (sd *seed) joinSegment(ctx context.Context, i int) (*membership, error) {
	off, n := model.SegmentSpan(i, sd.size)
	found, err := sd.describe(ctx, i)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		sd.all.log.Warn("a segment is fetched without a swarm", "digest", sd.key.Digest, "segment", i, "err", err)
		return nil, sd.fetchAlone(ctx, off, n)
	}
	m, err := sd.join(ctx, swarm.Torrent{
		Digest: sd.key.Digest, Size: n, Root: found.Root, Pieces: found.Hashes.Pieces(model.PieceLength(n), n),
	}, newSegment(sd.blob, off, n), off)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// describe returns the hashes of segment i: hashed from the disk where the whole blob was verified,
// else those of the mirror, which is trusted until the blob's sha256 was checked.
func (sd *seed) describe(ctx context.Context, i int) (model.Segment, error) {
	if sd.blob.Verified() {
		off, n := model.SegmentSpan(i, sd.size)
		var h model.PieceHasher
		if _, err := io.Copy(&h, &contextReader{ctx, io.NewSectionReader(sd.blob, off, n)}); err != nil {
			return model.Segment{}, err
		}
		hashes, root := h.Sum()
		return model.Segment{Root: root, Hashes: hashes}, nil
	}
	if known, ok := sd.known[i]; ok {
		return known, nil
	}
	mirrors := sd.repos[:min(len(sd.repos), len(sd.all.cfg.Origins.Mirrors))]
	if len(mirrors) == 0 {
		return model.Segment{}, errors.New("there is no mirror")
	}
	for {
		list, err := each(ctx, mirrors, func(mirror *registry.Repository) (model.SegmentList, error) {
			return askSegments(ctx, mirror, sd.key.Digest, sd.size, i)
		})
		if err != nil {
			return model.Segment{}, err
		}
		if len(list.Segments) == 0 {
			continue // the mirror has held the question and waits for upstream
		}
		sd.known = map[int]model.Segment{}
		for k, s := range list.Segments {
			sd.known[list.From+k] = s
		}
		if s, ok := sd.known[i]; ok {
			return s, nil
		}
		return model.Segment{}, fmt.Errorf("the mirror was asked for segment %d and described number %d", i, list.From)
	}
}

func askSegments(ctx context.Context, mirror *registry.Repository, d digest.Digest, size int64, from int) (model.SegmentList, error) {
	ctx, cancel := context.WithTimeout(ctx, segmentsTimeout)
	defer cancel()
	raw, err := mirror.Extension(ctx, "_shoal/segments/"+d.String(), url.Values{"from": {strconv.Itoa(from)}}, model.MaxSegmentList)
	if err != nil {
		return model.SegmentList{}, err
	}
	return model.ParseSegmentList(raw, size)
}

// fetchAlone reads what is missing of the n bytes at off from the origins, until it is there.
func (sd *seed) fetchAlone(ctx context.Context, off, n int64) error {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		err := sd.tryAlone(ctx, off, n)
		if err == nil {
			sd.setTrouble(nil)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errDisk) {
			return err
		}
		sd.setTrouble(err)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

var errDisk = errors.New("the store does not take the blob")

func (sd *seed) tryAlone(ctx context.Context, off, n int64) error {
	length := sd.blob.PieceLength()
	buf := make([]byte, 256<<10)
	for i := int(off / length); i < int((off+n+length-1)/length); i++ {
		if sd.blob.Have(i) {
			continue
		}
		at := int64(i) * length
		if _, err := each(ctx, sd.repos, func(repo *registry.Repository) (struct{}, error) {
			return struct{}{}, sd.fetchPiece(ctx, repo, at, min(length, sd.size-at), buf)
		}); err != nil {
			return err
		}
		if err := sd.blob.MarkPiece(i); err != nil {
			return errors.Join(errDisk, err)
		}
	}
	return nil
}

func (sd *seed) fetchPiece(ctx context.Context, repo *registry.Repository, at, n int64, buf []byte) error {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sd.key.Digest, Size: sd.size}
	body, err := repo.OpenRange(ctx, desc, at, n)
	if err != nil {
		return err
	}
	defer body.Close()
	for done := int64(0); done < n; {
		part := buf[:min(int64(len(buf)), n-done)]
		if err := sd.all.cfg.Wait(ctx, len(part)); err != nil {
			return err
		}
		k, err := io.ReadFull(body, part)
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", done+int64(k), n, err)
		}
		sd.mu.Lock()
		sd.past.Origin += int64(k)
		sd.mu.Unlock()
		if _, err := sd.blob.WriteAt(buf[:k], at+done); err != nil {
			return errors.Join(errDisk, err)
		}
		done += int64(k)
	}
	return nil
}

// segment is a part of a raw blob as its swarm sees it. The store marks a raw blob in longer pieces
// than the swarm has; after a restart, those that were not whole are fetched again.
type segment struct {
	blob   *store.Blob
	off, n int64
	length int64 // of a piece of the swarm

	mu   sync.Mutex
	have []bool
}

func newSegment(blob *store.Blob, off, n int64) *segment {
	s := &segment{blob: blob, off: off, n: n, length: model.PieceLength(n), have: make([]bool, model.NumPieces(n))}
	for i := range s.have {
		s.have[i] = blob.Have(s.outer(i))
	}
	return s
}

// outer is the blob's piece in which piece i of the swarm lies.
func (s *segment) outer(i int) int {
	return int((s.off + int64(i)*s.length) / s.blob.PieceLength())
}

// ReadAt implements swarm.Storage.
func (s *segment) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d of a segment", off)
	}
	if off >= s.n {
		return 0, io.EOF
	}
	short := min(int64(len(p)), s.n-off)
	n, err := s.blob.ReadAt(p[:short], s.off+off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements swarm.Storage. What falls into a marked piece is dropped.
func (s *segment) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.n-int64(len(p)) {
		return 0, fmt.Errorf("write of %d bytes at %d passes the segment's end at %d", len(p), off, s.n)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		i := at / s.length
		n := int(min(int64(len(p)-done), (i+1)*s.length-at))
		if !s.Have(int(i)) {
			if k, err := s.blob.WriteAt(p[done:done+n], s.off+at); err != nil {
				return done + k, err
			}
		}
		done += n
	}
	return done, nil
}

// Have implements swarm.Storage.
func (s *segment) Have(i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return i >= 0 && i < len(s.have) && s.have[i]
}

// MarkPiece implements swarm.Storage.
func (s *segment) MarkPiece(i int) error {
	if i < 0 || i >= len(s.have) {
		return fmt.Errorf("piece %d of a segment of %d", i, len(s.have))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have[i] {
		return nil
	}
	outer := s.outer(i)
	for k := range s.have {
		if k != i && !s.have[k] && s.outer(k) == outer {
			s.have[i] = true
			return nil
		}
	}
	if err := s.blob.MarkPiece(outer); err != nil {
		return err
	}
	s.have[i] = true
	return nil
}

// Bitmap implements swarm.Storage.
func (s *segment) Bitmap() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]byte, (len(s.have)+7)/8)
	for i, have := range s.have {
		if have {
			out[i/8] |= 1 << (7 - i%8)
		}
	}
	return out
}

var _ swarm.Storage = (*segment)(nil)

// contextReader stops when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
