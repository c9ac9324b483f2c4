package peer

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/foreign"
	"github.com/shoal-project/shoal/peer/store"
)

// content is what a reference names: an image of ours, or a foreign one. One of the two is set.
type content struct {
	Model   *model.Image   `json:"model,omitempty"`
	Foreign *foreign.Image `json:"foreign,omitempty"`
}

func resolveContent(ctx context.Context, r *registry.Repository, tag string) (*content, error) {
	image, err := model.Resolve(ctx, r, tag)
	if err == nil {
		return &content{Model: image}, nil
	}
	if !errors.Is(err, model.ErrNotShoal) {
		return nil, err
	}
	other, err := foreign.Resolve(ctx, r, tag)
	if err != nil {
		return nil, err
	}
	return &content{Foreign: other}, nil
}

func (c *content) manifest() digest.Digest {
	if c.Model != nil {
		return c.Model.Manifest.Digest
	}
	return c.Foreign.Manifest.Digest
}

func (c *content) size() int64 {
	if c.Model != nil {
		return c.Model.Size()
	}
	return c.Foreign.Size()
}

// specs describes the layers to the store, each once; hash layers are still to be found.
func (c *content) specs() []store.Spec {
	var out []store.Spec
	if c.Model != nil {
		for _, l := range c.Model.Layers {
			out = append(out, store.Spec{Digest: l.Digest, Size: l.Size, Root: l.Root, Layer: &l})
		}
		return out
	}
	seen := map[digest.Digest]bool{}
	for _, l := range c.Foreign.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			out = append(out, store.Spec{Digest: l.Digest, Size: l.Size})
		}
	}
	return out
}

// validate checks what was read from a file.
func (c *content) validate() error {
	if (c.Model == nil) == (c.Foreign == nil) {
		return errors.New("is neither one image nor the other")
	}
	if err := checkDigest(c.manifest()); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	left := int64(maxImage)
	take := func(size int64) error {
		if size < 0 || size > left {
			return fmt.Errorf("layer of %d bytes is out of range", size)
		}
		left -= size
		return nil
	}
	if c.Model != nil {
		for _, l := range c.Model.Layers {
			if err := errors.Join(l.Validate(), take(l.Size)); err != nil {
				return err
			}
		}
	} else {
		for _, l := range c.Foreign.Layers {
			if err := errors.Join(checkDigest(l.Digest), take(l.Size)); err != nil {
				return err
			}
		}
	}
	if len(c.specs()) == 0 {
		return errors.New("has no layers")
	}
	return nil
}

// maxImage bounds an image, in bytes, so that sums of sizes cannot overflow.
const maxImage = 1 << 60

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%.100q is not a sha256 digest", d.String())
	}
	return nil
}

// publish makes the tree visible; all layers are there and checked.
func (c *content) publish(ctx context.Context, s *store.Store, name string) (string, error) {
	if c.Model != nil {
		return s.Publish(ctx, store.Model{Name: name, Digest: c.manifest(), Layers: c.Model.Layers})
	}
	tree := store.Tree{Name: name, Digest: c.manifest()}
	for _, spec := range c.specs() {
		tree.Layers = append(tree.Layers, spec.Key())
	}
	tree.Build = func(ctx context.Context, dir string, data func(store.Key) string) error {
		room, err := s.Room()
		if err != nil {
			return err
		}
		open := func(l foreign.Layer) (io.ReadCloser, error) {
			r, err := s.OpenVerified(ctx, l.Digest)
			if err != nil {
				return nil, err
			}
			return sectionCloser{io.NewSectionReader(r, 0, r.Size()), r}, nil
		}
		return foreign.Unpack(ctx, dir, c.Foreign, open, foreign.Options{
			MaxBytes: max(1, room),
			Link:     func(l foreign.Layer) string { return data(store.Key{Digest: l.Digest}) },
		})
	}
	return s.PublishTree(ctx, tree)
}

type sectionCloser struct {
	io.Reader
	io.Closer
}
