package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// sharedFile marks a raw blob whose data may be a link to somebody else's file: it is read only. What
// wants to write to it makes a copy of its own first.
const sharedFile = "shared"

// Share makes a verified raw blob's file a link to the file at path, which is somebody else's, has the
// same bytes and does not change, so that the disk has them once. It reports whether it did: not where
// path is not there, is no such file, lies under another mount, or where a model's tree has the blob. The
// file's bytes, mode and times stay as they are.
func (b *Blob) Share(ctx context.Context, path string) (bool, error) {
	if b.layer != nil || !b.key.Root.IsZero() || !b.Verified() || links(b.path(0)) != 1 {
		return false, nil
	}
	theirs, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, ignorable(err)
	}
	defer theirs.Close()
	info, err := theirs.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != b.size {
		return false, err
	}
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(sum.Hash(), &contextReader{ctx: ctx, r: theirs}); err != nil || sum.Digest() != b.key.Digest {
		return false, err
	}
	b.owning.Lock()
	defer b.owning.Unlock()
	if err := b.linkShared(path, info); err != nil {
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EMLINK) {
			return false, nil
		}
		return false, fmt.Errorf("blob %s: share %s: %w", b.key.Digest, path, err)
	}
	b.mu.Lock()
	b.changed = true // the file has another time of modification
	b.mu.Unlock()
	b.dirty[0].Store(true)
	return true, b.Sync()
}

// linkShared puts a link to the file at path, which has to be the one of info, in place of the blob's.
func (b *Blob) linkShared(path string, info os.FileInfo) error {
	at := b.path(0)
	tmp := at + ".share"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(path, tmp); err != nil {
		return err
	}
	linked, err := os.Lstat(tmp)
	if err == nil && !os.SameFile(linked, info) {
		err = errors.New("somebody replaced the file meanwhile")
	}
	if err == nil {
		err = writeFile(b.dir, sharedFile, nil) // before the file is theirs: see own
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	b.shared.Store(true)
	b.store.files.forget(b.dir)
	if err := os.Rename(tmp, at); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(b.dir)
}

// Shared reports whether somebody else has the blob's file too.
func (b *Blob) Shared() bool { return b.shared.Load() && links(b.path(0)) > 1 }

// own makes sure that the blob's file is nobody else's, before something is written to it.
func (b *Blob) own() error {
	if !b.shared.Load() {
		return nil
	}
	b.owning.Lock()
	defer b.owning.Unlock()
	if !b.shared.Load() {
		return nil
	}
	at := b.path(0)
	from, err := os.Open(at)
	if err != nil {
		return err
	}
	defer from.Close()
	tmp := at + ".own"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := copyFile(tmp, from); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	b.store.files.forget(b.dir)
	if err := os.Rename(tmp, at); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := syncDir(b.dir); err != nil {
		return err
	}
	b.dirty[0].Store(true)
	b.shared.Store(false)
	return os.Remove(filepath.Join(b.dir, sharedFile))
}

// links is how many names the file at path has, 0 where it is not there.
func links(path string) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return uint64(st.Nlink) //nolint:unconvert // its type depends on the architecture
}
