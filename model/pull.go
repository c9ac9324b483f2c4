package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
)

// PullConfig says how an image is pulled; its zero value will do.
type PullConfig struct {
	// Parallel is how many layers are read at once; 0 means 4.
	Parallel int
	// Progress, if any, is called by several goroutines and must not block.
	Progress func(Progress)
}

// Pull restores the files of the image that reference names in the new directory dir, mode 0444.
// Every layer's and every file's sha256 and the tars' headers are verified before dir appears, by
// one rename of a temporary directory beside it; on an error nothing is left. A dir that exists is
// an error (fs.ErrExist). A target whose Fetch goes on after a broken connection, as
// internal/registry's does, makes Pull do so.
func Pull(ctx context.Context, target oras.ReadOnlyTarget, reference, dir string, cfg PullConfig) (*Image, error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w; choose a new directory", dir, fs.ErrExist)
	}
	image, err := Resolve(ctx, target, reference)
	if err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".pull-")
	if err != nil {
		return nil, err
	}
	if err := pullInto(ctx, target, image, tmp, cfg); err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	// rename(2) would replace an empty directory that was made meanwhile, which harms nobody.
	if err := os.Rename(tmp, dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return image, syncDir(filepath.Dir(dir))
}

func pullInto(ctx context.Context, target content.Fetcher, image *Image, tmp string, cfg PullConfig) error {
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer root.Close()
	dirs, err := makeDirs(root, image.Layers)
	if err != nil {
		return err
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	group, layerCtx := errgroup.WithContext(ctx)
	group.SetLimit(cfg.Parallel)
	for i := range image.Layers {
		group.Go(func() error {
			if err := layerCtx.Err(); err != nil {
				return err // another layer failed
			}
			return pullLayer(layerCtx, target, root, image, i, cfg.Progress)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := syncDir(filepath.Join(tmp, filepath.FromSlash(dir))); err != nil {
			return err
		}
	}
	return os.Chmod(tmp, 0o755)
}

// makeDirs makes the directories of all members and returns them, the root included.
func makeDirs(root *os.Root, layers []Layer) ([]string, error) {
	dirs := []string{"."}
	seen := map[string]bool{".": true}
	for _, l := range layers {
		for _, m := range l.Members {
			if err := root.MkdirAll(filepath.FromSlash(path.Dir(m.Path)), 0o755); err != nil {
				return nil, err
			}
			for dir := path.Dir(m.Path); !seen[dir]; dir = path.Dir(dir) {
				seen[dir] = true
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func pullLayer(ctx context.Context, target content.Fetcher, root *os.Root, image *Image, i int, tell func(Progress)) error {
	l := image.Layers[i]
	body, err := target.Fetch(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size})
	if err != nil {
		return fmt.Errorf("layer %s: %w", l.Digest, err)
	}
	defer body.Close()
	r := &layerReader{ctx: ctx, body: body, layer: l, sha256: sha256.New(), buf: make([]byte, 1<<20)}
	if tell != nil {
		r.tell = func(done int64) {
			tell(Progress{Layer: i, Layers: len(image.Layers), Name: layerName(l), Done: done, Size: l.Size, Total: image.Size()})
		}
	}
	for m := range l.Members {
		if err := r.skeletonBefore(m); err != nil {
			return err
		}
		if err := r.extract(root, l.Members[m]); err != nil {
			return err
		}
	}
	if err := r.skeletonBefore(len(l.Members)); err != nil {
		return err
	}
	return r.end()
}

// layerReader takes a layer's tar apart as it arrives. The member table says what comes; the tar's
// own headers are compared with it and otherwise not believed.
type layerReader struct {
	ctx    context.Context // of one pullLayer: io.Reader has no place for it
	body   io.Reader
	layer  Layer
	sha256 hash.Hash
	buf    []byte
	at     int64
	told   int64
	tell   func(done int64) // may be nil
}

// Read implements io.Reader.
func (r *layerReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.body.Read(p)
	r.sha256.Write(p[:n])
	r.at += int64(n)
	if r.tell != nil && r.at-r.told >= 4<<20 && r.at < r.layer.Size {
		r.told = r.at
		r.tell(r.at)
	}
	return n, err
}

func (r *layerReader) skeletonBefore(i int) error {
	offset, want := r.layer.skeletonBefore(i)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil {
		return fmt.Errorf("layer %s: read at %d: %w", r.layer.Digest, r.at, err)
	}
	if !bytes.Equal(got, want) {
		return &SkeletonError{r.layer.Digest, offset + int64(firstDifference(got, want))}
	}
	return nil
}

// extract writes one member's content, synced.
func (r *layerReader) extract(root *os.Root, m Member) (err error) {
	f, err := root.OpenFile(filepath.FromSlash(m.Path), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), io.LimitReader(r, m.Size), r.buf)
	if err != nil {
		return fmt.Errorf("file %q of layer %s: %w", m.Path, r.layer.Digest, err)
	}
	if n < m.Size {
		return fmt.Errorf("file %q of layer %s: %w after %d of %d bytes", m.Path, r.layer.Digest, io.ErrUnexpectedEOF, n, m.Size)
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != m.SHA256 {
		return fmt.Errorf("file %q of layer %s: its content is %s, the member table says %s", m.Path, r.layer.Digest, got, m.SHA256)
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return f.Sync()
}

// end checks that the layer ends here and that all of it was right.
func (r *layerReader) end() error {
	switch n, err := io.ReadFull(r.body, r.buf[:1]); {
	case n > 0:
		return fmt.Errorf("layer %s: more than its %d bytes arrived", r.layer.Digest, r.layer.Size)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("the end of layer %s: %w", r.layer.Digest, err)
	}
	if got := digest.NewDigest(digest.SHA256, r.sha256); got != r.layer.Digest {
		return fmt.Errorf("layer %s: the bytes that arrived are %s", r.layer.Digest, got)
	}
	if r.tell != nil {
		r.tell(r.layer.Size)
	}
	return nil
}
