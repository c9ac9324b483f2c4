package peer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/shoal-project/shoal/peer/store"
)

// adopt takes over what the folders of Config.Adopt have of the layer: files of the model, or the
// layer's blob in an OCI image layout. What is not there, or is not right, comes from the swarm.
func (sd *seed) adopt(ctx context.Context) error {
	if sd.blob.Held() > 0 || len(sd.all.cfg.Adopt) == 0 {
		return nil
	}
	var found bool
	for _, dir := range sd.all.cfg.Adopt {
		some, err := sd.adoptFrom(ctx, dir)
		if err != nil {
			return err
		}
		found = found || some
	}
	if !found {
		return nil
	}
	if err := sd.blob.Settle(ctx); err != nil {
		return err
	}
	sd.all.log.Info("a layer was taken over from the disk", "digest", sd.key.Digest, "bytes", sd.blob.Held(), "of", sd.size)
	return nil
}

func (sd *seed) adoptFrom(ctx context.Context, dir string) (found bool, err error) {
	blob := filepath.Join(dir, "blobs", "sha256", sd.key.Digest.Encoded())
	if sd.layer == nil {
		return sd.adoptFile(ctx, 0, blob)
	}
	for i, m := range sd.layer.Members {
		ok, err := sd.adoptFile(ctx, i, filepath.Join(dir, filepath.FromSlash(m.Path)))
		if err != nil {
			return found, err
		}
		found = found || ok
	}
	if found {
		return true, nil
	}
	return sd.adoptTar(ctx, blob)
}

// adoptFile hands one file to the store. Hub caches keep links to their files: they are followed.
func (sd *seed) adoptFile(ctx context.Context, i int, path string) (bool, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false, nil //nolint:nilerr // not there, or not to be had: it comes from the swarm
	}
	ok, err := sd.blob.Adopt(ctx, i, path)
	if errors.Is(err, fs.ErrPermission) {
		sd.all.log.Warn("a file cannot be taken over", "path", path, "err", err)
		return false, nil
	}
	return ok, err
}

// adoptTar copies a layer's blob, whose members are no files yet, into the store. Settle checks it.
func (sd *seed) adoptTar(ctx context.Context, path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, nil //nolint:nilerr // as above
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() != sd.size {
		return false, err
	}
	to := io.NewOffsetWriter(sd.blob, 0)
	_, err = io.CopyBuffer(struct{ io.Writer }{to}, &contextReader{ctx, f}, make([]byte, 1<<20))
	return err == nil, err
}

var _ io.WriterAt = (*store.Blob)(nil)
