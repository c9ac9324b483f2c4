package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/store"
)

// fill is a blob in use: one that arrives, or one that is there. All who want the blob share it.
type fill struct {
	digest digest.Digest
	source Source
	ready  chan struct{} // closed once the size is known, or nothing will come of it
	users  int           // guarded by Mirror.mu; the runner is one of them

	mu       sync.Mutex
	blob     *store.Blob // set before ready is closed, nil when that failed
	plan     *plan       // nil when the blob was there
	complete bool        // and verified
	dropped  bool        // its bytes are wrong
	err      error
	waiters  []*waiter // in the order in which they came
}

// waiter is a reader that lacks the byte at off.
type waiter struct {
	want
	wake chan struct{} // of one
}

func newFill(d digest.Digest, src Source) *fill {
	return &fill{digest: d, source: src, ready: make(chan struct{})}
}

// begin makes the blob known to its readers.
func (f *fill) begin(blob *store.Blob, p *plan) {
	f.mu.Lock()
	f.blob, f.plan, f.complete = blob, p, p == nil
	f.mu.Unlock()
	close(f.ready)
}

// end tells all readers how it ended.
func (f *fill) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.complete = err, err == nil
	f.dropped = errors.Is(err, ErrWrongBytes) || errors.Is(err, errDamaged)
	if f.blob == nil {
		close(f.ready)
	}
	for _, w := range f.waiters {
		w.notify()
	}
}

// state returns the blob, or why there is none.
func (f *fill) state() (*store.Blob, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blob == nil {
		return nil, f.err
	}
	return f.blob, nil
}

func (w *waiter) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// has reports whether the bytes from off to end are there.
func (f *fill) has(off, end int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for off < end {
		to, err := f.available(off, end, false)
		if err != nil || to <= off {
			return false
		}
		off = to
	}
	return true
}

// wait returns once bytes from off on are there, with their end, which is end at most. A reader of
// the whole blob gets its last byte only when the digest was found right.
func (f *fill) wait(ctx context.Context, off, end int64, whole bool) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var w *waiter
	for {
		to, err := f.available(off, end, whole)
		if to > off || err != nil || off == end && f.complete {
			return to, err
		}
		if w == nil {
			w = &waiter{want: want{off, end}, wake: make(chan struct{}, 1)}
			f.waiters = append(f.waiters, w)
			defer f.forget(w)
		}
		f.mu.Unlock()
		select {
		case <-w.wake:
			err = nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		f.mu.Lock()
		if err != nil {
			return off, err
		}
	}
}

// available says how far a reader at off may go; f.mu is held.
func (f *fill) available(off, end int64, whole bool) (int64, error) {
	switch {
	case f.complete:
		return end, nil
	case f.dropped:
		return off, f.err
	}
	if whole && end == f.plan.size {
		end--
	}
	to := off
	if off < end {
		to = min(end, f.plan.available(off, end))
	}
	if to == off {
		return off, f.err
	}
	return to, nil
}

// forget takes a waiter out; f.mu is held.
func (f *fill) forget(w *waiter) {
	for i, other := range f.waiters {
		if other == w {
			f.waiters = append(f.waiters[:i], f.waiters[i+1:]...)
			return
		}
	}
}

// take returns the next range to fetch, of about length bytes where it goes on in order.
func (f *fill) take(jump bool, length int64) *span {
	f.mu.Lock()
	defer f.mu.Unlock()
	if jump {
		return f.plan.take(f.waiters, length)
	}
	return f.plan.take(nil, length)
}

// wrote notes n more written bytes of s, wakes who waits for them, and marks the pieces that are full.
func (f *fill) wrote(s *span, n int64) error {
	f.mu.Lock()
	from := s.at
	first, last := f.plan.advance(s, n)
	for _, w := range f.waiters {
		if w.off >= from && w.off < s.at {
			w.notify()
		}
	}
	f.mu.Unlock()
	for i := first; i < last; i++ {
		if err := f.blob.MarkPiece(i); err != nil {
			return err
		}
		f.mu.Lock()
		f.plan.done(i)
		f.mu.Unlock()
	}
	return nil
}

// left reports whether there is a range to take.
func (f *fill) left() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plan.left()
}

func (f *fill) finish(s *span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan.finish(s)
}

// prepare finds the blob on the disk, or makes room for it. There is no plan for one that is whole.
func (m *Mirror) prepare(ctx context.Context, f *fill) (blob *store.Blob, info blobInfo, err error) {
	key := store.Key{Digest: f.digest}
	known := int64(-1)
	blob, err = m.store.OpenBlob(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return nil, info, err
	case blob.Complete():
		return blob, blobInfo{size: blob.Size()}, nil // perhaps without its last check
	default:
		known = blob.Size()
		if err := blob.Close(); err != nil {
			return nil, info, err
		}
	}
	info, err = m.upstreams[f.source.Upstream].stat(ctx, f.source, f.digest)
	if err != nil {
		return nil, info, err
	}
	if known >= 0 && known != info.size { // one of the two answers was wrong
		if err := m.store.RemoveBlob(key); err != nil {
			return nil, info, err
		}
	}
	spec := store.Spec{Digest: f.digest, Size: info.size}
	blob, err = m.store.Create(ctx, spec)
	if errors.Is(err, store.ErrNoSpace) && m.closeIdle(0) {
		blob, err = m.store.Create(ctx, spec)
	}
	return blob, info, err
}

// fillBlob brings the blob to the disk and verifies it.
func (m *Mirror) fillBlob(ctx context.Context, f *fill) error {
	blob, info, err := m.prepare(ctx, f)
	if err != nil {
		return err
	}
	if blob.Verified() {
		f.begin(blob, nil)
		return nil
	}
	m.metrics.fills.Inc()
	p := newPlan(blob.Size(), blob.PieceLength(), min(m.cfg.RangeSize, blob.Size()/256), blob.Have)
	resumed := p.missing < len(p.have)
	f.begin(blob, p)
	if !blob.Complete() {
		if err := m.fetch(ctx, f, info); err != nil {
			return err
		}
	}
	if resumed {
		return m.verifyAll(ctx, f)
	}
	return wrongBytes(f.source, blob.Finish(ctx))
}

// verifyAll hashes the whole blob from the disk. A part of it was written by an earlier fill: the sum
// that the store saved then says nothing of what became of the file since.
func (m *Mirror) verifyAll(ctx context.Context, f *fill) error {
	wrong, err := f.blob.Verify(ctx)
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("blob %s: %w", f.digest, errDamaged)
	}
	return err
}

// copyRange writes the n bytes at off to w as they come.
func (m *Mirror) copyRange(ctx context.Context, f *fill, w io.Writer, off, n int64) error {
	return m.readRange(ctx, f, off, n, func(chunk []byte) error {
		n, err := w.Write(chunk)
		m.metrics.sentBytes.Add(float64(n))
		return err
	})
}

// readRange hands the n bytes at off to take, in order, as they arrive.
func (m *Mirror) readRange(ctx context.Context, f *fill, off, n int64, take func(chunk []byte) error) error {
	end := off + n
	whole := off == 0 && end == f.blob.Size()
	buf := m.buffers.get()
	defer m.buffers.put(buf)
	for at := off; ; {
		to, err := f.wait(ctx, at, end, whole)
		if err != nil {
			return fmt.Errorf("blob %s at byte %d: %w", f.digest, at, err)
		}
		for at < to {
			chunk := buf[:min(int64(len(buf)), to-at)]
			if _, err := f.blob.ReadAt(chunk, at); err != nil {
				return err
			}
			if err := take(chunk); err != nil {
				return err
			}
			at += int64(len(chunk))
		}
		if at == end {
			return nil
		}
	}
}

// buffers are for copying.
type buffers struct{ pool sync.Pool }

// bufferSize is in bytes: large enough that a system call a buffer costs nothing, small enough for
// a thousand readers.
const bufferSize = 128 << 10

func (b *buffers) get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, bufferSize)
}

func (b *buffers) put(p []byte) { b.pool.Put(&p) }
