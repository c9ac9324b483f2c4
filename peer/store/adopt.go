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

// Adopt takes the file at path over as the content of member i, of a raw blob's whole for i = 0,
// where its bytes are those: by a hard link, or by a copy where path lies on another file system.
// It reports whether it did; a file of another size or content, a link, or one that is not there is
// no error. The file is the store's from then on: it becomes read-only, and damage found in it is
// mended in place.
//
// It is called before anything is written to the blob, and followed by Settle.
func (b *Blob) Adopt(ctx context.Context, i int, path string) (bool, error) {
	file, want, size := 0, b.key.Digest, b.size
	if b.layer != nil {
		if i < 0 || i >= len(b.layer.Members) {
			return false, fmt.Errorf("blob %s: member %d of %d", b.key.Digest, i, len(b.layer.Members))
		}
		file, want, size = i+1, b.layer.Members[i].SHA256, b.layer.Members[i].Size
	} else if !b.key.Root.IsZero() {
		return false, nil // in one file, and checked by pieces: Settle reads it
	}
	if b.marksAny(file) {
		return false, nil
	}
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, ignorable(err)
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != size {
		return false, err
	}
	sum := digest.SHA256.Digester()
	if _, err := io.Copy(sum.Hash(), &contextReader{ctx: ctx, r: from}); err != nil {
		return false, err
	}
	if sum.Digest() != want {
		return false, nil
	}
	if err := b.replaceFile(from, info, path, file); err != nil {
		return false, fmt.Errorf("blob %s: adopt %s: %w", b.key.Digest, path, err)
	}
	return true, nil
}

// ignorable drops the errors that say that there is nothing to adopt.
func ignorable(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// marksAny reports whether a piece that is marked has bytes in file.
func (b *Blob) marksAny(file int) bool {
	for _, e := range b.layout.extents {
		if e.file != file {
			continue
		}
		for i := e.off / b.length; i*b.length < e.off+e.size; i++ {
			if b.Have(int(i)) {
				return true
			}
		}
	}
	return false
}

// replaceFile puts from, which is the file at path, in place of the blob's file.
func (b *Blob) replaceFile(from *os.File, info os.FileInfo, path string, file int) error {
	at := b.path(file)
	tmp := at + ".adopt"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.Link(path, tmp)
	if err == nil {
		var linked os.FileInfo
		if linked, err = os.Lstat(tmp); err == nil && !os.SameFile(linked, info) {
			err = errors.New("somebody replaced the file meanwhile")
		}
	} else if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EMLINK) {
		err = copyFile(tmp, from)
	}
	if err == nil {
		err = os.Chmod(tmp, 0o644) // the fill may have to mend it
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	b.store.files.forget(b.dir)
	if err := os.Rename(tmp, at); err != nil {
		os.Remove(tmp)
		return err
	}
	b.dirty[file].Store(true)
	return syncDir(filepath.Dir(at))
}

// copyFile copies from's bytes to a new file, by reflink where the file system has it.
func copyFile(to string, from *os.File) error {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from) // copy_file_range(2)
	return errors.Join(err, f.Close())
}

// Settle marks what Adopt brought: it writes the layer's headers, which follow from its member
// table, and hashes the pieces that are not marked. Pieces that are wrong stay missing.
func (b *Blob) Settle(ctx context.Context) error {
	if b.hashes == nil {
		return b.settleRaw(ctx)
	}
	if b.layer != nil {
		if err := b.layer.Skeleton(func(off int64, p []byte) error {
			_, err := b.WriteAt(p, off)
			return err
		}); err != nil {
			return err
		}
	}
	if err := b.checkAll(ctx, func(i int) bool { return !b.Have(i) }, func(int, bool) {}); err != nil {
		return err
	}
	return b.Sync()
}

// settleRaw marks a raw blob whose file has its digest.
func (b *Blob) settleRaw(ctx context.Context) error {
	if b.Complete() {
		return nil
	}
	sum := digest.SHA256.Digester()
	_, err := io.Copy(sum.Hash(), &contextReader{ctx: ctx, r: io.NewSectionReader(b, 0, b.size)})
	if err != nil || sum.Digest() != b.key.Digest {
		return err
	}
	for i := range b.count {
		if err := b.MarkPiece(i); err != nil {
			return err
		}
	}
	return b.Sync()
}
