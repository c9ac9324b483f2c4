package controller

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
)

// packed is the result of a packing.
type packed struct {
	digest   digest.Digest
	revision string
	bytes    int64 // of the whole image
}

// pack packs the model of md into the registry at to, or copies the image that is its source there.
func (h *Hub) pack(ctx context.Context, md *v1alpha1.ModelDistribution, to place, previous []string, tell func(progress)) (any, error) {
	target, err := h.access.open(ctx, md.Namespace, to)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if md.Spec.ModelSource.Registry != nil {
		return h.takeOver(ctx, md, target, to, tell)
	}
	source, err := h.cfg.Sources(ctx, &md.Spec.ModelSource, h.access.rereading(md.Namespace, sourceSecret(&md.Spec.ModelSource)))
	if err != nil {
		return nil, &sourceError{err}
	}
	files, err := source.List(ctx)
	if err != nil {
		return nil, &sourceError{err}
	}
	t := &tally{tell: tell, layers: map[int]model.Progress{}}
	for _, f := range files {
		t.sum.Total += f.Size
	}
	t.sum.Note = revisionOf(files)
	tell(t.sum)
	result, err := model.Pack(ctx, model.PackConfig{
		Source: &listed{source, files}, Target: target, Tag: to.tag, Previous: previous,
		StateDir: h.stateDir(md), Progress: t.add, Log: h.cfg.Log,
	})
	if err != nil {
		var told *registry.Error
		if !errors.As(err, &told) && ctx.Err() == nil {
			err = &sourceError{err} // Pack's errors are the source's, the registry's, or the disk's
		}
		return nil, err
	}
	size, err := h.copy(ctx, md, target, target, result.Image.Index.Digest, to.tag, func(progress) {})
	if err != nil {
		return nil, err
	}
	return packed{digest: result.Image.Index.Digest, revision: t.sum.Note, bytes: size.bytes}, nil
}

// listed is a source whose list was read already: what is packed is what the revision was made of.
type listed struct {
	model.Source
	files []model.File
}

// List implements model.Source.
func (l *listed) List(context.Context) ([]model.File, error) { return l.files, nil }

// revisionOf is the digest of the list of all files, with their sizes and checksums.
func revisionOf(files []model.File) string {
	lines := make([]string, 0, len(files))
	for _, f := range files {
		lines = append(lines, fmt.Sprintf("%q %d %s\n", f.Path, f.Size, f.Checksum))
	}
	slices.Sort(lines)
	return digest.FromString(strings.Join(lines, "")).String()
}

// stateDir keeps what a killed packing or copy of md goes on from.
func (h *Hub) stateDir(md *v1alpha1.ModelDistribution) string {
	return filepath.Join(h.cfg.StateDir, string(md.UID))
}

// tally adds up what Pack and Copy tell of their layers.
type tally struct {
	tell func(progress)

	mu     sync.Mutex
	layers map[int]model.Progress
	size   int64 // of the layers so far
	sum    progress
}

func (t *tally) add(p model.Progress) {
	t.mu.Lock()
	before := t.layers[p.Layer]
	t.layers[p.Layer] = p
	// Layers have headers beside the files' bytes: all of a layer is all of its files.
	count := func(p model.Progress, sign int64) {
		if p.Reused {
			t.sum.Reused += sign * p.Done
		} else {
			t.sum.Done += sign * p.Done
		}
	}
	count(before, -1)
	count(p, 1)
	if before.Size == 0 {
		t.size += p.Size
	}
	sum := t.sum
	sum.Total = max(sum.Total, t.size)
	t.mu.Unlock()
	t.tell(sum)
}

// takeOver copies the image that is md's source to the first registry.
func (h *Hub) takeOver(ctx context.Context, md *v1alpha1.ModelDistribution, target *registry.Repository, to place, tell func(progress)) (any, error) {
	src := md.Spec.ModelSource.Registry
	from, reference, err := sourcePlace(src)
	if err != nil {
		return nil, &sourceError{err}
	}
	repo, err := h.access.open(ctx, md.Namespace, from)
	if err != nil {
		return nil, &sourceError{err}
	}
	defer repo.Close()
	desc, err := repo.Resolve(ctx, reference)
	if err != nil {
		return nil, &sourceError{err}
	}
	tell(progress{Note: desc.Digest.String()})
	size, err := h.copy(ctx, md, repo, target, desc.Digest, to.tag, tell)
	if err != nil {
		return nil, err
	}
	return packed{digest: desc.Digest, revision: desc.Digest.String(), bytes: size.bytes}, nil
}

// errLost means that a registry lacks the image, and that no other has it.
var errLost = errors.New("the registry lacks the image, and no other registry of this object has it")

// synced is the result of a sync.
type synced struct {
	// bytes is the size of the whole image, 0 where it was only looked at.
	bytes int64
}

// sync makes sure that the registry at to has the image d under its tag, from the first of the others that gives it.
func (h *Hub) sync(ctx context.Context, md *v1alpha1.ModelDistribution, d digest.Digest, to place, from []place, tell func(progress)) (any, error) {
	target, err := h.access.open(ctx, md.Namespace, to)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	desc, err := target.Resolve(ctx, to.tag)
	switch {
	case err == nil && desc.Digest == d:
		return synced{}, nil
	case err != nil && !errors.Is(err, errdef.ErrNotFound):
		return nil, err
	}
	if _, err := target.Resolve(ctx, d.String()); err == nil { // its tag was taken or moved
		return h.copy(ctx, md, target, target, d, to.tag, tell)
	}
	var failed []error
	for _, p := range from {
		source, err := h.access.open(ctx, md.Namespace, p)
		var result synced
		if err == nil {
			result, err = h.copy(ctx, md, source, target, d, to.tag, tell)
			source.Close()
		}
		if err == nil || ctx.Err() != nil {
			return result, err
		}
		failed = append(failed, err)
	}
	if len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return nil, fmt.Errorf("%s: %w", to.reference(), errLost)
}

// copy copies the image d from one registry to another, with everything that refers to it.
func (h *Hub) copy(ctx context.Context, md *v1alpha1.ModelDistribution, from, to *registry.Repository, d digest.Digest, tag string, tell func(progress)) (synced, error) {
	t := &tally{tell: tell, layers: map[int]model.Progress{}}
	result, err := model.Copy(ctx, model.CopyConfig{
		From: from, To: to, Tag: d.String(), ToTag: tag, StateDir: h.stateDir(md), Progress: t.add, Log: h.cfg.Log,
	})
	if err != nil {
		return synced{}, err
	}
	return synced{bytes: result.Bytes}, nil
}

// deleteImages takes the tags away that were pushed for md. One that is not there is no error.
func (h *Hub) deleteImages(ctx context.Context, md *v1alpha1.ModelDistribution, all []place) error {
	var failed []error
	for _, p := range all {
		repo, err := h.access.open(ctx, md.Namespace, p)
		if err == nil {
			for _, tag := range []string{p.tag, p.tag + model.ModelPackSuffix} {
				if untagged := repo.Untag(ctx, tag); !errors.Is(untagged, errdef.ErrNotFound) {
					err = errors.Join(err, untagged)
				}
			}
			repo.Close()
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}
