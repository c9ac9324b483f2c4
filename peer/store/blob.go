package store

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/model"
)

// Blob is one blob on the disk, whole or in parts. All who create it share it; it is safe for
// concurrent use, and each of them calls Close once. Offsets are bytes of the blob.
//
// A piece that is marked does not change: late writes to it are dropped. Writes to a piece and its
// mark are ordered by the caller, who checks the bytes in between.
type Blob struct {
	store   *Store
	entry   *entry
	key     Key
	dir     string
	size    int64
	length  int64 // of a piece
	count   int   // pieces
	hashes  []model.Hash
	layer   *model.Layer
	layout  *layout
	dirty   []atomic.Bool // by file: written since it was last synced
	kick    chan struct{} // wakes the worker
	stop    func()        // ends the worker and waits for it
	hashing lock          // guards sha
	shared  atomic.Bool   // the one file may be somebody else's too
	owning  sync.Mutex    // held while shared changes

	sha hash.Hash // over the pieces before the frontier

	syncing sync.Mutex // guards stamps and the state file
	stamps  []int64

	mu           sync.RWMutex // guards what follows
	marked       bitmap
	missing      int   // pieces
	gapless      int   // pieces from the first on that are marked
	held         int64 // bytes of marked pieces
	unsynced     int64 // bytes marked since the last Sync
	changed      bool  // since the last Sync
	frontier     int
	sum          []byte // sha, saved at the frontier
	verified     bool
	contradicted bool
	skeleton     bool
	news         chan struct{} // closed when a piece is marked; nil while nobody waits
	failed       error         // a sync that failed: what the kernel has of the file is unknown since
}

// Key returns the blob's key.
func (b *Blob) Key() Key { return b.key }

// Size returns the blob's length in bytes.
func (b *Blob) Size() int64 { return b.size }

// PieceLength returns the length of all pieces but the last, in bytes: model.PieceLength, or at most
// 4 MiB for a raw blob.
func (b *Blob) PieceLength() int64 { return b.length }

// NumPieces returns how many pieces the blob has.
func (b *Blob) NumPieces() int { return b.count }

// PieceHashes returns the hashes at PieceLength, checked against the root; nil for a raw blob. They
// must not be changed.
func (b *Blob) PieceHashes() []model.Hash { return b.hashes }

// Close gives the blob back; the last user's Close syncs it. The error is that of the sync.
func (b *Blob) Close() error { return b.store.release(b.entry) }

// span returns where piece i lies.
func (b *Blob) span(i int) (off, n int64) {
	off = int64(i) * b.length
	return off, min(b.length, b.size-off)
}

func (b *Blob) path(file int) string { return filepath.Join(b.dir, b.layout.files[file].name) }

// ReadAt implements io.ReaderAt. Bytes of pieces that are not marked are whatever lies there.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", b.key.Digest, off)
	}
	done := 0
	err := b.layout.each(off, int64(len(p)), func(file int, at, n int64) (bool, error) {
		got, err := b.readFile(file, p[done:done+int(n)], at)
		done += got
		return true, err
	})
	if err != nil {
		return done, fmt.Errorf("blob %s: read at %d: %w", b.key.Digest, off, err)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (b *Blob) readFile(file int, p []byte, at int64) (int, error) {
	f, err := b.store.files.get(b.path(file), false)
	if err != nil {
		return 0, err
	}
	defer b.store.files.put(f)
	n, err := f.ReadAt(p, at)
	if errors.Is(err, io.EOF) { // the file was cut by somebody else; io.EOF would say that the blob ends here
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// WriteAt implements io.WriterAt. What falls into a marked piece is dropped.
func (b *Blob) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > b.size-int64(len(p)) {
		return 0, fmt.Errorf("blob %s: write of %d bytes at %d passes its end at %d", b.key.Digest, len(p), off, b.size)
	}
	if err := b.failure(); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		i := int(at / b.length)
		start, length := b.span(i)
		n := int(min(int64(len(p)-done), start+length-at))
		if !b.Have(i) {
			if err := b.write(p[done:done+n], at); err != nil {
				return done, fmt.Errorf("blob %s: write at %d: %w", b.key.Digest, at, err)
			}
		}
		done += n
	}
	return done, nil
}

func (b *Blob) write(p []byte, off int64) error {
	if err := b.own(); err != nil {
		return err
	}
	return b.layout.each(off, int64(len(p)), func(file int, at, n int64) (bool, error) {
		f, err := b.store.files.get(b.path(file), true)
		if err != nil {
			return false, err
		}
		defer b.store.files.put(f)
		_, err = f.WriteAt(p[:n], at)
		if errors.Is(err, unix.ENOSPC) { // somebody else filled the disk
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		p = p[n:]
		// After the write, not before: a Sync in between would clear it and miss these bytes.
		b.dirty[file].Store(true)
		return true, err
	})
}

// Have reports whether piece i is marked.
func (b *Blob) Have(i int) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return i >= 0 && i < b.count && b.marked.has(i)
}

// MarkPiece records that the bytes of piece i were written and checked. They reach the disk, and
// the mark with them, within Config.SyncEvery. The error is that of an earlier sync which failed:
// close the blob then.
func (b *Blob) MarkPiece(i int) error {
	if i < 0 || i >= b.count {
		return fmt.Errorf("blob %s: piece %d of %d", b.key.Digest, i, b.count)
	}
	if err := b.failure(); err != nil {
		return err
	}
	b.mu.Lock()
	b.setPiece(i, true)
	b.mu.Unlock()
	b.wake()
	return nil
}

// News returns a channel that is closed when a piece is marked from now on. Who waits for one asks for the
// channel first, and then whether the piece is there.
func (b *Blob) News() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.news == nil {
		b.news = make(chan struct{})
	}
	return b.news
}

// setPiece marks or unmarks piece i; b.mu is held.
func (b *Blob) setPiece(i int, have bool) {
	if b.marked.has(i) == have {
		return
	}
	_, n := b.span(i)
	b.changed = true
	if have {
		b.marked.set(i)
		if b.news != nil {
			close(b.news)
			b.news = nil
		}
		b.missing--
		b.held += n
		b.unsynced += n
		for b.gapless < b.count && b.marked.has(b.gapless) {
			b.gapless++
		}
		return
	}
	b.marked.clear(i)
	b.gapless = min(b.gapless, i)
	b.missing++
	b.held -= n
	if b.hashes == nil {
		b.verified = false // nothing else binds the bytes that will come to the digest
	}
}

func (b *Blob) wake() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Bitmap returns the marked pieces; piece i is bit 7-i%8 of byte i/8 (BEP 3).
func (b *Blob) Bitmap() []byte {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return append([]byte(nil), b.marked...)
}

// Held returns the bytes of the marked pieces.
func (b *Blob) Held() int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.held
}

// Complete reports whether all pieces are marked.
func (b *Blob) Complete() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.missing == 0
}

// Verified reports whether the blob is complete and its whole sha256 was found to be its digest.
func (b *Blob) Verified() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.verified && b.missing == 0
}

// Frontier returns how many bytes from the first on are marked without a gap.
func (b *Blob) Frontier() int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return min(int64(b.gapless)*b.length, b.size)
}

// Allocated returns the bytes that the blob takes on disk, its records included.
func (b *Blob) Allocated() (int64, error) { return allocated(b.dir) }

func (b *Blob) failure() error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.failed
}

// corrupt returns the error for bytes whose sha256 is sum.
func (b *Blob) corrupt(sum []byte) *CorruptError {
	return &CorruptError{Key: b.key, Actual: digest.NewDigestFromBytes(digest.SHA256, sum)}
}
