package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/model"
)

// hashNext hashes the piece at the frontier into the blob's sha256, while its pages are still
// cached. It reports whether there was such a piece.
func (b *Blob) hashNext(ctx context.Context) (bool, error) {
	if err := b.hashing.acquire(ctx); err != nil {
		return false, err
	}
	defer b.hashing.release()
	b.mu.RLock()
	i, sum := b.frontier, b.sum
	ready := i < b.count && b.marked.has(i)
	b.mu.RUnlock()
	if !ready {
		return false, nil
	}
	off, n := b.span(i)
	err := b.store.hashers.acquire(ctx)
	if err == nil {
		buf := b.store.chunks.get()
		_, err = io.CopyBuffer(onlyWriter{b.sha}, &contextReader{ctx, io.NewSectionReader(b, off, n)}, buf)
		b.store.chunks.put(buf)
		b.store.hashers.release()
	}
	if err == nil {
		sum, err = saveSum(b.sha)
	}
	if err != nil { // half a piece is in the sum
		var resumeErr error
		b.sha, resumeErr = resumeSum(sum)
		return false, errors.Join(err, resumeErr)
	}
	b.mu.Lock()
	b.frontier, b.sum, b.changed = i+1, sum, true
	b.mu.Unlock()
	return true, nil
}

// onlyWriter hides everything else, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// contextReader ends a long read early.
type contextReader struct {
	ctx context.Context // of one copy: io.Reader has no place for it
	r   io.Reader
}

// Read implements io.Reader.
func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// restart makes the next Finish hash everything anew.
func (b *Blob) restart(ctx context.Context) error {
	if err := b.hashing.acquire(ctx); err != nil {
		return err
	}
	defer b.hashing.release()
	sha, err := resumeSum(nil)
	if err != nil {
		return err
	}
	b.sha = sha
	b.mu.Lock()
	b.frontier, b.sum, b.changed = 0, nil, true
	b.mu.Unlock()
	return nil
}

// Finish waits until the whole blob is hashed, checks its digest and, for a layer, that the tar's
// headers are those of the member table, and syncs. Verified is true from then on.
//
// The error is ErrIncomplete where pieces are missing, also because they were found to have changed
// on disk; a *CorruptError where the bytes have the root and not the digest, or, for a raw blob, not
// the digest, in which case its pieces are unmarked; a *model.SkeletonError where only the member
// table lies.
func (b *Blob) Finish(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = b.hashNext(ctx); err == nil {
			continue
		}
		if damaged(err) && b.hashes != nil {
			return cmp.Or(b.lookAgain(ctx), err)
		}
		return err
	}
	b.mu.RLock()
	missing, hashed := b.missing, b.frontier == b.count
	verified, sum := b.verified, b.sum
	b.mu.RUnlock()
	if missing > 0 || !hashed {
		return fmt.Errorf("blob %s: %d of %d pieces missing: %w", b.key.Digest, missing, b.count, ErrIncomplete)
	}
	if !verified {
		if err := b.checkDigest(ctx, sum); err != nil {
			return err
		}
	}
	if err := b.checkSkeleton(); err != nil {
		return err
	}
	return b.Sync()
}

// checkDigest compares the sum over the whole blob with its digest.
func (b *Blob) checkDigest(ctx context.Context, saved []byte) error {
	sha, err := resumeSum(saved)
	if err != nil {
		return err
	}
	sum := sha.Sum(nil)
	if fmt.Sprintf("%x", sum) == b.key.Digest.Encoded() {
		b.mu.Lock()
		b.verified, b.changed = true, true
		b.mu.Unlock()
		return nil
	}
	if b.hashes == nil {
		return errors.Join(b.corrupt(sum), b.unmarkAll(ctx))
	}
	if err := b.lookAgain(ctx); err != nil { // before the manifest is blamed
		return err
	}
	b.mu.Lock()
	b.contradicted, b.changed = true, true
	b.mu.Unlock()
	return errors.Join(b.corrupt(sum), b.Sync())
}

// lookAgain hashes the marked pieces anew. The error is ErrIncomplete where some changed, or cannot be read, since
// they were checked: they are not marked any more.
func (b *Blob) lookAgain(ctx context.Context) error {
	bad, err := b.Verify(ctx)
	if err != nil || len(bad) == 0 {
		return err
	}
	err = fmt.Errorf("blob %s: %d pieces changed on disk: %w", b.key.Digest, len(bad), ErrIncomplete)
	return errors.Join(err, b.restart(ctx), b.Sync())
}

// unmarkAll gives up all pieces, those of a raw blob that is wrong somewhere.
func (b *Blob) unmarkAll(ctx context.Context) error {
	b.mu.Lock()
	for i := range b.count {
		b.setPiece(i, false)
	}
	b.mu.Unlock()
	return errors.Join(b.restart(ctx), b.Sync())
}

// checkSkeleton compares the complete layer's headers with its member table, once.
func (b *Blob) checkSkeleton() error {
	b.mu.RLock()
	done := b.skeleton || b.layer == nil
	b.mu.RUnlock()
	if done {
		return nil
	}
	if err := b.layer.VerifySkeleton(b); err != nil {
		return err
	}
	b.mu.Lock()
	b.skeleton, b.changed = true, true
	b.mu.Unlock()
	return nil
}

// pieceRight hashes piece i from the disk. Bytes that cannot be read are wrong ones: writing them
// anew is what repairs them.
func (b *Blob) pieceRight(i int) (bool, error) {
	off, left := b.span(i)
	buf := b.store.chunks.get()
	defer b.store.chunks.put(buf)
	leaves := make([]model.Hash, 0, (left+model.BlockSize-1)/model.BlockSize)
	for left > 0 {
		chunk := buf[:min(left, chunkSize)]
		if _, err := b.ReadAt(chunk, off); damaged(err) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		leaves = model.AppendLeaves(leaves, chunk)
		off += int64(len(chunk))
		left -= int64(len(chunk))
	}
	return model.FoldPiece(leaves, b.length, b.size) == b.hashes[i], nil
}

// damaged reports whether err means that the bytes on the disk are gone, and not that we could not
// look.
func damaged(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EIO)
}

// CheckPiece hashes piece i from the disk, marks or unmarks it accordingly and reports whether it
// is right. A raw blob's pieces have no hash: they stay as they are.
func (b *Blob) CheckPiece(i int) (bool, error) {
	if i < 0 || i >= b.count {
		return false, fmt.Errorf("blob %s: piece %d of %d", b.key.Digest, i, b.count)
	}
	if b.hashes == nil {
		return b.Have(i), nil
	}
	right, err := b.pieceRight(i)
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	b.setPiece(i, right)
	b.mu.Unlock()
	return right, nil
}

// Verify hashes all marked pieces from the disk (a complete raw blob: as a whole), unmarks the wrong
// ones and returns them. That they are missing is on the disk when it returns: what was damaged
// without a new time of modification would be trusted again after a restart.
func (b *Blob) Verify(ctx context.Context) ([]int, error) {
	if b.hashes == nil {
		return b.verifyRaw(ctx)
	}
	var (
		mu  sync.Mutex
		bad []int
	)
	marked := bitmap(b.Bitmap())
	err := b.checkAll(ctx, marked.has, func(i int, right bool) {
		if !right {
			mu.Lock()
			bad = append(bad, i)
			mu.Unlock()
		}
	})
	slices.Sort(bad)
	if len(bad) > 0 {
		err = errors.Join(err, b.Sync())
	}
	return bad, err
}

// checkAll calls CheckPiece for the pieces that pick picks, several at once, and tells the results
// from any goroutine.
func (b *Blob) checkAll(ctx context.Context, pick func(i int) bool, tell func(i int, right bool)) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(cap(b.store.hashers))
	for i := range b.count {
		if !pick(i) {
			continue
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := b.store.hashers.acquire(groupCtx); err != nil {
				return err
			}
			defer b.store.hashers.release()
			right, err := b.CheckPiece(i)
			if err == nil {
				tell(i, right)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (b *Blob) verifyRaw(ctx context.Context) ([]int, error) {
	if !b.Complete() {
		return nil, nil // nothing to compare a part with
	}
	if err := b.restart(ctx); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.verified = false
	b.mu.Unlock()
	err := b.Finish(ctx)
	if damaged(err) {
		err = b.unmarkAll(ctx)
	} else if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
		err = nil
	}
	if err != nil || b.Complete() {
		return nil, err
	}
	bad := make([]int, b.count)
	for i := range bad {
		bad[i] = i
	}
	return bad, nil
}
