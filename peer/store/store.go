package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Config says where a store lies and how much it may take. All but Dir may be zero.
type Config struct {
	// Dir is the store's folder; all of it lies on one file system, because of the hard links.
	Dir string
	// Quota is how many bytes the blobs may take; 0 means as many as fit.
	Quota int64
	// KeepFree is how many bytes of the file system stay free: on a node more than kubelet's
	// eviction threshold, or pods are evicted for our cache.
	KeepFree int64
	// KeepOrphans is for how long GC leaves a blob that no model needs and nobody uses, such as a
	// download that was given up, when there is room enough. 0 means for ever, as the mirror wants.
	KeepOrphans time.Duration
	// Evicted, if any, is called after a model was removed to make room, with no lock held that a
	// Blob's Close needs. Before it returns, the caller stops to seed these blobs and closes them,
	// which frees their bytes. It must not call Create, Publish or GC. Without it a model whose
	// blobs are all in use is not removed, because that would free nothing.
	Evicted func(manifest digest.Digest, layers []Key)
	// SyncBytes and SyncEvery are after how many bytes of marked pieces, or how much time, a blob is
	// synced. 0 means 128 MiB (what a raw fill may have to read again after kill -9) and 5 s.
	SyncBytes int64
	SyncEvery time.Duration
	// Hashers is how many pieces are hashed at once in the background; 0 means half the CPUs,
	// because the pods that run here come first.
	Hashers int
	// OpenFiles is how many files are kept open; 0 means 256.
	OpenFiles int
	// Logger gets a line where something was found damaged; nil means none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.SyncBytes <= 0 {
		c.SyncBytes = 128 << 20
	}
	if c.SyncEvery <= 0 {
		c.SyncEvery = 5 * time.Second
	}
	if c.Hashers <= 0 {
		c.Hashers = max(1, runtime.NumCPU()/2)
	}
	if c.OpenFiles <= 0 {
		c.OpenFiles = 256
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Store is a folder of blobs and of the models made of them. It is safe for concurrent use.
type Store struct {
	cfg     Config
	log     *slog.Logger
	locked  *os.File
	blobs   string // folders
	records string
	models  string
	files   *fileCache
	chunks  chunks
	hashers lock // as many holders as Config.Hashers

	space sync.Mutex // held while room is made; taken before trees and mu
	trees sync.Mutex // guards the folder of models and pins.json; taken before mu

	mu      sync.Mutex
	closed  bool
	entries map[Key]*entry
	known   map[digest.Digest]*record
	pins    map[digest.Digest]map[string]bool
}

// entry is what the store knows of a blob, whether it is in use or at rest.
type entry struct {
	key  Key
	size int64
	busy lock // held while the blob is created, loaded or put to rest

	// Guarded by Store.mu.
	refs      int
	blob      *Blob // nil at rest
	onDisk    bool
	reserved  bool      // room is set aside for all of it
	complete  bool      // at rest
	verified  bool      // at rest
	allocated int64     // at rest, bytes
	used      time.Time // end of the last use
	doomed    bool      // to be removed after its last use
}

// Open opens the store in cfg.Dir, which is made if need be, and clears away what a killed process
// left half made or half removed. The error may be ErrLocked.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("store: no folder given")
	}
	cfg = cfg.withDefaults()
	s := &Store{
		cfg: cfg, log: cfg.Logger,
		blobs:   filepath.Join(cfg.Dir, "blobs"),
		records: filepath.Join(cfg.Dir, "records"),
		models:  filepath.Join(cfg.Dir, "models"),
		files:   newFileCache(cfg.OpenFiles),
		hashers: make(lock, cfg.Hashers),
		entries: map[Key]*entry{},
		known:   map[digest.Digest]*record{},
		pins:    map[digest.Digest]map[string]bool{},
	}
	for dir, mode := range map[string]os.FileMode{s.blobs: 0o700, s.records: 0o700, filepath.Join(s.models, byName): 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
	}
	var err error
	if s.locked, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	if err := s.scan(ctx); err != nil {
		s.locked.Close()
		return nil, fmt.Errorf("store %s: %w", cfg.Dir, err)
	}
	return s, nil
}

// Close syncs and closes all blobs, which must not be used any more.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	all := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		all = append(all, e)
	}
	s.mu.Unlock()
	var errs []error
	for _, e := range all {
		e.busy <- struct{}{}
		errs = append(errs, s.rest(e))
		e.busy.release()
	}
	s.files.close()
	return errors.Join(append(errs, s.locked.Close())...)
}

// Create returns the blob of spec's key, made if need be. All callers get the same one, in the state
// in which it is; each of them calls Close. A blob that was cut off is looked through first: pieces
// that cannot be trusted are hashed again where the disk has bytes for them.
//
// The error may be ErrNoSpace, ErrClosed, model.ErrRootMismatch or a *model.LayerError.
func (s *Store) Create(ctx context.Context, spec Spec) (*Blob, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	return s.use(ctx, spec.Key(), &spec)
}

// OpenBlob returns a blob that the store has, whole or in parts, as Create does. The error may be
// ErrNotFound.
func (s *Store) OpenBlob(ctx context.Context, key Key) (*Blob, error) { return s.use(ctx, key, nil) }

// use takes a reference; with a spec, a blob that is not there is made.
func (s *Store) use(ctx context.Context, key Key, spec *Spec) (*Blob, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	e := s.entries[key]
	if e == nil && spec == nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("blob %s: %w", key, ErrNotFound)
	}
	if e == nil {
		e = &entry{key: key, size: spec.Size, busy: newLock()}
		s.entries[key] = e
	}
	e.refs++
	e.doomed = false
	s.mu.Unlock()

	if err := e.busy.acquire(ctx); err != nil {
		return nil, errors.Join(err, s.release(e))
	}
	blob, err := s.bring(ctx, e, spec)
	e.busy.release()
	if err != nil {
		return nil, errors.Join(err, s.release(e))
	}
	return blob, nil
}

// bring brings a blob from the disk into use; e.busy is held.
func (s *Store) bring(ctx context.Context, e *entry, spec *Spec) (*Blob, error) {
	s.mu.Lock()
	blob, onDisk, closed := e.blob, e.onDisk, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case blob != nil:
		return blob, nil
	case spec == nil && !onDisk:
		return nil, fmt.Errorf("blob %s: %w", e.key, ErrNotFound)
	case spec != nil && spec.Size != e.size:
		return nil, fmt.Errorf("blob %s: has %d bytes, not %d", e.key, e.size, spec.Size)
	}
	if err := s.reserve(ctx, e); err != nil {
		return nil, err
	}
	if !onDisk {
		if err := s.make(e, *spec); err != nil {
			return nil, fmt.Errorf("blob %s: %w", e.key, err)
		}
	}
	blob, err := s.load(ctx, e, spec)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", e.key, err)
	}
	blob.start(context.WithoutCancel(ctx))
	blob.wake()
	s.mu.Lock()
	e.blob = blob
	s.mu.Unlock()
	return blob, nil
}

// release gives back a reference; the last one puts the blob to rest. It waits for nobody who brings
// the blob into use: that one has a reference of his own.
func (s *Store) release(e *entry) error {
	s.mu.Lock()
	if e.refs == 0 {
		s.mu.Unlock()
		return fmt.Errorf("blob %s: closed more often than created", e.key)
	}
	e.refs--
	last := e.refs == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	e.busy <- struct{}{}
	defer e.busy.release()
	s.mu.Lock()
	again := e.refs > 0
	s.mu.Unlock()
	if again {
		return nil
	}
	err := s.rest(e)
	s.mu.Lock()
	doomed := e.doomed && e.refs == 0
	if e.refs == 0 && !e.onDisk && s.entries[e.key] == e {
		delete(s.entries, e.key) // it could not be made
	}
	s.mu.Unlock()
	if doomed {
		return errors.Join(err, s.removeBlob(e))
	}
	return err
}

// rest syncs a blob and ends its use; e.busy is held.
func (s *Store) rest(e *entry) error {
	s.mu.Lock()
	blob := e.blob
	e.reserved = e.reserved && blob != nil
	s.mu.Unlock()
	if blob == nil {
		return nil
	}
	blob.stop()
	err := blob.Sync()
	s.files.forget(blob.dir)
	size, allocErr := blob.Allocated()
	now := time.Now()
	touchErr := touch(filepath.Join(blob.dir, specFile), now)
	s.mu.Lock()
	e.blob, e.reserved, e.used = nil, false, now
	e.complete, e.verified, e.allocated = blob.Complete(), blob.Verified(), size
	s.mu.Unlock()
	return errors.Join(err, allocErr, touchErr)
}

// Reader reads a blob that was verified.
type Reader struct{ blob *Blob }

// Size returns the blob's length in bytes.
func (r *Reader) Size() int64 { return r.blob.size }

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.blob.ReadAt(p, off) }

// Close gives the blob back.
func (r *Reader) Close() error { return r.blob.Close() }

var _ io.ReaderAt = (*Reader)(nil)

// OpenVerified opens a blob of this digest whose whole sha256 was checked, whatever its root. The
// error is ErrNotFound where there is none.
func (s *Store) OpenVerified(ctx context.Context, d digest.Digest) (*Reader, error) {
	s.mu.Lock()
	var found []Key
	for key, e := range s.entries {
		if key.Digest == d && (e.verified || e.blob != nil) {
			found = append(found, key)
		}
	}
	s.mu.Unlock()
	for _, key := range found {
		blob, err := s.OpenBlob(ctx, key)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if blob.Verified() { // loading it may have found damage
			return &Reader{blob}, nil
		}
		if err := blob.Close(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("blob %s: %w", d, ErrNotFound)
}

// BlobInfo describes a blob of the store.
type BlobInfo struct {
	Key  Key
	Size int64 // bytes
	// Held is how many bytes are there: exact for a complete blob or one in use, else what the disk
	// has allocated.
	Held               int64
	Complete, Verified bool
	InUse              bool
}

// Blobs lists all blobs in no order.
func (s *Store) Blobs() []BlobInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]BlobInfo, 0, len(s.entries))
	for _, e := range s.entries {
		if !e.onDisk {
			continue
		}
		info := BlobInfo{Key: e.key, Size: e.size, Held: e.allocated, Complete: e.complete, Verified: e.verified, InUse: e.refs > 0}
		if e.blob != nil {
			info.Held, info.Complete, info.Verified = e.blob.Held(), e.blob.Complete(), e.blob.Verified()
		} else if e.complete {
			info.Held = e.size
		}
		all = append(all, info)
	}
	return all
}
