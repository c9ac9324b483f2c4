package model

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
)

// earlier are the layers of images that a repository has.
type earlier struct {
	target oras.ReadOnlyTarget
	layers map[string][]Layer // by the first member's path
}

// readEarlier collects the layers of the images that references name in target. passOver is told of one that cannot be
// used; an error that it returns ends the reading.
func readEarlier(ctx context.Context, target oras.ReadOnlyTarget, references []string, passOver func(reference string, err error) error) (*earlier, error) {
	e := &earlier{target: target, layers: map[string][]Layer{}}
	for _, reference := range references {
		image, err := Resolve(ctx, target, reference)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			if err := passOver(reference, err); err != nil {
				return nil, err
			}
			continue
		}
		for _, l := range image.Layers {
			first := l.Members[0].Path
			e.layers[first] = append(e.layers[first], l)
		}
	}
	return e, nil
}

// find returns the layer of an earlier image that has exactly these files, if the repository has both of its blobs.
func (e *earlier) find(ctx context.Context, files []File) (Layer, bool, error) {
	for _, old := range e.layers[files[0].Path] {
		if !slices.EqualFunc(files, old.Members, sameContent) {
			continue
		}
		if ok, err := inRepository(ctx, e.target, old); err != nil || ok {
			return old, ok, err
		}
	}
	return Layer{}, false, nil
}

// inRepository reports whether target has a layer and its hash layer.
func inRepository(ctx context.Context, target oras.ReadOnlyTarget, l Layer) (bool, error) {
	for _, desc := range []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size},
		hashLayerDescriptor(l),
	} {
		if ok, err := target.Exists(ctx, desc); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// LayerPlan is what Pack would make of a list of files.
type LayerPlan struct {
	// Layers are those of the image, in its order. Their digests are not known yet.
	Layers []Layer
	groups [][]File
}

// PlanLayers divides files into layers as Pack does. The error may be a *PathError.
func PlanLayers(files []File) (*LayerPlan, error) {
	layers, groups, err := planLayers(files)
	if err != nil {
		return nil, err
	}
	return &LayerPlan{layers, groups}, nil
}

// Reusable returns, in the place of each layer that Pack would neither read nor send because one of the images that
// references name in target has it, that image's, and an empty one in the place of the others. It reads descriptions
// alone and writes nothing. A reference that does not exist, or is not Shoal's, is passed over, as Pack does; unlike
// Pack it returns the error of a registry that does not answer, or refuses.
func (p *LayerPlan) Reusable(ctx context.Context, target oras.ReadOnlyTarget, references []string) ([]Layer, error) {
	found := make([]Layer, len(p.Layers))
	images, err := readEarlier(ctx, target, references, func(_ string, err error) error {
		if told, ok := errors.AsType[*registry.Error](err); ok && !errors.Is(err, errdef.ErrNotFound) {
			return told
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, files := range p.groups {
		if found[i], _, err = images.find(ctx, files); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// ListImage returns the digest of the image that reference names, and the blobs that Copy would bring along under the
// tag toTag, each once. Manifests alone are read. Errors are as of Copy.
func ListImage(ctx context.Context, from *registry.Repository, reference, toTag string) (digest.Digest, []ocispec.Descriptor, error) {
	graph, err := readGraph(ctx, from, reference, toTag+ModelPackSuffix, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", nil, err
	}
	return graph.root.desc.Digest, graph.blobs, nil
}
