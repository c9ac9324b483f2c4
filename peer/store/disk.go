package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lockDir takes the lock of a store's folder, so that two processes never share it. The kernel
// gives it up with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("store %s: %w", dir, err)
	}
	return f, nil
}

// freeBytes is what an unprivileged process may still write to the file system of dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// hasData reports whether any of the n bytes of f at off were ever written. A file system that
// cannot tell says yes (lseek(2), SEEK_DATA).
func hasData(f *os.File, off, n int64) bool {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return false
	}
	return err != nil || at < off+n
}

// writeFile replaces dir/name by content with one rename, all of it synced.
func writeFile(dir, name string, content []byte) error {
	tmp := filepath.Join(dir, "."+name+".tmp")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// openWritable opens a file that may have been published. Its mode is 0444 then, which stops its
// owner too (unless that is root), so the mode is lifted for the moment of opening.
func openWritable(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrPermission) {
		return f, err
	}
	if err := os.Chmod(path, 0o644); err != nil {
		return nil, err
	}
	f, err = os.OpenFile(path, os.O_RDWR, 0)
	return f, errors.Join(err, os.Chmod(path, 0o444))
}

// allocated is how many bytes the files below dir take on disk, without what somebody else shares.
func allocated(dir string) (int64, error) {
	var sum int64
	_, err := os.Lstat(filepath.Join(dir, sharedFile))
	shared := err == nil
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		if shared && st.Nlink > 1 {
			return nil
		}
		sum += st.Blocks * 512 // st_blocks counts 512 bytes, whatever the file system's block is
		return nil
	})
	return sum, err
}

// removeTree removes dir, whose folders may be read-only.
func removeTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o700)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(dir)
}

// trashPrefix marks what is being made or removed; Open clears it away.
const trashPrefix = ".tmp-"

// trash makes the folder dir/name invisible at once, in the same parent: a rename to another one
// would need leave to write into the folder itself. It returns where it lies now.
func trash(dir, name string) (string, error) {
	gone := filepath.Join(dir, trashPrefix+rand.Text())
	return gone, os.Rename(filepath.Join(dir, name), gone)
}

// touch sets the time of last use, which is the modification time of a blob's or model's record.
func touch(path string, at time.Time) error { return os.Chtimes(path, at, at) }

// lock is a mutex that one can stop to wait for.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l lock) release() { <-l }

// chunkSize is how much is read at once for hashing, in bytes; a multiple of model.BlockSize.
const chunkSize = 256 << 10

// chunks are the buffers for it.
type chunks struct{ pool sync.Pool }

func (c *chunks) get() []byte {
	if b, ok := c.pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, chunkSize)
}

func (c *chunks) put(b []byte) { c.pool.Put(&b) }
