package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/shoal-project/shoal/model"
)

// Files of a blob's folder beside those that hold its bytes.
const (
	specFile   = "blob.json"
	hashesFile = "hashes"
	stateFile  = "state"
)

// make makes the blob's folder, which appears by one rename; its files are made by load.
func (s *Store) make(e *entry, spec Spec) error {
	if !spec.Root.IsZero() && spec.Hashes == nil {
		return errors.New("is new here; give its hash layer")
	}
	tmp, err := os.MkdirTemp(s.blobs, trashPrefix)
	if err != nil {
		return err
	}
	if err := fillFolder(tmp, spec); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, filepath.Join(s.blobs, e.key.dir())); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	s.mu.Lock()
	e.onDisk = true
	s.mu.Unlock()
	return syncDir(s.blobs)
}

func fillFolder(dir string, spec Spec) error {
	if spec.Layer != nil {
		if err := os.Mkdir(filepath.Join(dir, "files"), 0o700); err != nil {
			return err
		}
	}
	if err := writeHashes(dir, spec); err != nil {
		return err
	}
	raw, err := spec.encode()
	if err != nil {
		return err
	}
	return writeFile(dir, specFile, raw)
}

func writeHashes(dir string, spec Spec) error {
	if spec.Root.IsZero() {
		return nil
	}
	wire, err := spec.Hashes.MarshalBinary()
	if err != nil {
		return err
	}
	return writeFile(dir, hashesFile, wire)
}

func readSpec(dir string) (Spec, error) {
	raw, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return Spec{}, err
	}
	spec, err := parseSpec(raw)
	if err != nil {
		return Spec{}, fmt.Errorf("%s: %w", filepath.Join(dir, specFile), err)
	}
	if name := spec.Key().dir(); name != filepath.Base(dir) {
		return Spec{}, fmt.Errorf("%s: describes %s", filepath.Join(dir, specFile), name)
	}
	return spec, nil
}

// readHashes returns the hashes at the blob's piece length. A damaged file is replaced when the
// caller brought the hash layer.
func readHashes(dir string, spec Spec, brought model.HashLayer) ([]model.Hash, error) {
	if spec.Root.IsZero() {
		return nil, nil
	}
	wire, err := os.ReadFile(filepath.Join(dir, hashesFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	hashes, err := model.ParseHashLayer(wire, spec.Root, spec.Size)
	if err != nil {
		if brought == nil {
			return nil, fmt.Errorf("its hashes are damaged: %w; give its hash layer", err)
		}
		spec.Hashes, hashes = brought, brought
		if err := writeHashes(dir, spec); err != nil {
			return nil, err
		}
	}
	return hashes.Pieces(spec.pieceLength(), spec.Size), nil
}

// load brings a blob from its folder: what was synced and did not change since is trusted, what is
// on the disk beside that is hashed. brought may be nil.
func (s *Store) load(ctx context.Context, e *entry, brought *Spec) (*Blob, error) {
	dir := filepath.Join(s.blobs, e.key.dir())
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	if brought != nil {
		spec.Hashes = brought.Hashes
	}
	hashes, err := readHashes(dir, spec, spec.Hashes)
	if err != nil {
		return nil, err
	}
	layout := layoutFor(spec)
	b := &Blob{
		store: s, entry: e, key: e.key, dir: dir, size: spec.Size,
		length: spec.pieceLength(), count: spec.numPieces(), hashes: hashes, layer: spec.Layer, layout: layout,
		dirty: make([]atomic.Bool, len(layout.files)), stamps: make([]int64, len(layout.files)),
		kick: make(chan struct{}, 1), hashing: newLock(),
		marked: newBitmap(spec.numPieces()), missing: spec.numPieces(),
	}
	if _, err := os.Lstat(filepath.Join(dir, sharedFile)); err == nil {
		b.shared.Store(true)
	}
	saved := s.readState(b)
	files, err := b.prepareFiles(saved)
	if err != nil {
		return nil, err
	}
	if err := b.recover(ctx, saved, files); err != nil {
		return nil, err
	}
	return b, nil
}

// readState reads the blob's state file. One that is missing or damaged says nothing.
func (s *Store) readState(b *Blob) state {
	nothing := state{Pieces: newBitmap(b.count), Stamps: make([]int64, len(b.layout.files))}
	raw, err := os.ReadFile(filepath.Join(b.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nothing
	}
	var saved state
	if err == nil {
		saved, err = parseState(raw, b.count, len(b.layout.files))
	}
	if err != nil {
		s.log.Warn("blob is hashed again", slog.String("digest", b.key.Digest.String()), slog.Any("error", err))
		return nothing
	}
	return saved
}

// found is in what condition a file was found.
type found int

const (
	lost    found = iota // it was not there, or had another length
	touched              // it has another time of modification than when it was synced
	same
)

// prepareFiles gives every file its final length, as a hole where nothing was written, notes its
// stamp, and returns how it was found.
func (b *Blob) prepareFiles(saved state) ([]found, error) {
	files := make([]found, len(b.layout.files))
	created := false
	for i, file := range b.layout.files {
		path := b.path(i)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			created = true
			err = makeFile(path, file.size)
		case err != nil:
		case !info.Mode().IsRegular():
			err = fmt.Errorf("%s is not a file; remove it", path)
		case info.Size() != file.size && b.shared.Load():
			created = true
			err = errors.Join(os.Remove(path), makeFile(path, file.size))
		case info.Size() != file.size:
			err = resize(path, file.size)
		case info.ModTime().UnixNano() == saved.Stamps[i]:
			files[i] = same
		default:
			files[i] = touched
		}
		if err != nil {
			return nil, err
		}
		if info, err = os.Lstat(path); err != nil {
			return nil, err
		}
		b.stamps[i] = info.ModTime().UnixNano()
	}
	if !created {
		return files, nil
	}
	if b.layer != nil {
		if err := syncDir(filepath.Join(b.dir, "files")); err != nil {
			return nil, err
		}
	}
	return files, syncDir(b.dir)
}

func makeFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func resize(path string, size int64) error {
	f, err := openWritable(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// recover takes over from saved what can be trusted and hashes the rest. A raw blob has nothing to
// be hashed against before it is whole, so that a touched file of it is kept until Finish.
func (b *Blob) recover(ctx context.Context, saved state, files []found) error {
	worst := same
	for i, how := range files {
		worst = min(worst, how)
		if how != same {
			b.dirty[i].Store(true)
		}
	}
	need := same
	if b.hashes == nil {
		need = touched
	}
	for i := range b.count {
		if saved.Pieces.has(i) && b.lies(i, files, need) {
			b.setPiece(i, true)
		}
	}
	b.verified, b.contradicted, b.skeleton = saved.Verified, saved.Contradicted, saved.Skeleton
	b.frontier, b.sum = saved.Frontier, saved.Sum
	// The sum over bytes that have the root stays true whatever happened to the files. That of a raw
	// blob does while the blob grows, which alone touches its file.
	if b.hashes == nil && (worst == lost || worst == touched && b.missing == 0) {
		b.verified, b.frontier, b.sum = false, 0, nil
	}
	var err error
	if b.sha, err = resumeSum(b.sum); err != nil {
		return err
	}
	b.unsynced, b.changed = 0, worst != same
	if b.hashes == nil {
		return nil
	}
	return b.checkAll(ctx, b.worthHashing, func(i int, right bool) {
		if right { // it may be in the kernel only: the next Sync sees to it
			off, n := b.span(i)
			_ = b.layout.each(off, n, func(file int, _, _ int64) (bool, error) {
				b.dirty[file].Store(true)
				return true, nil
			})
		}
	})
}

// lies reports whether all of piece i lies in files found at least as well as need.
func (b *Blob) lies(i int, files []found, need found) bool {
	off, n := b.span(i)
	all := true
	_ = b.layout.each(off, n, func(file int, _, _ int64) (bool, error) {
		all = all && files[file] >= need
		return all, nil
	})
	return all
}

// worthHashing reports whether piece i is not marked and something was written there.
func (b *Blob) worthHashing(i int) bool {
	if b.Have(i) {
		return false
	}
	off, n := b.span(i)
	data := false
	err := b.layout.each(off, n, func(file int, at, n int64) (bool, error) {
		f, err := b.store.files.get(b.path(file), false)
		if err != nil {
			return false, err
		}
		defer b.store.files.put(f)
		data = hasData(f.File, at, n)
		return !data, nil
	})
	return data || err != nil
}
