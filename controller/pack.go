package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

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

// packer packs, in the controller or in a Job.
type packer struct {
	access  *access
	sources OpenSource
	log     *slog.Logger
}

// packTask is one model to be packed. Its Secrets are in namespace.
type packTask struct {
	namespace string
	source    *v1alpha1.ModelSource
	to        place
	// previous are tags of other versions, whose layers need not be sent again.
	previous []string
	// state is the folder of what a killed packing goes on from.
	state string
}

// pack packs a model into the registry at t.to, or copies the image that is its source there.
func (p *packer) pack(ctx context.Context, t packTask, tell func(progress)) (packed, error) {
	target, err := p.access.open(ctx, t.namespace, t.to)
	if err != nil {
		return packed{}, err
	}
	defer target.Close()
	if t.source.Registry != nil {
		return p.takeOver(ctx, t, target, tell)
	}
	source, err := p.sources(ctx, t.source, p.access.rereading(t.namespace, sourceSecret(t.source)))
	if err != nil {
		return packed{}, &sourceError{err}
	}
	if c, ok := source.(interface{ Close() }); ok { // its idle connections
		defer c.Close()
	}
	files, err := source.List(ctx)
	if err != nil {
		return packed{}, &sourceError{err}
	}
	done := &tally{tell: tell, layers: map[int]model.Progress{}}
	for _, f := range files {
		done.sum.Total += f.Size
	}
	done.sum.Note = revisionOf(files)
	tell(done.sum)
	result, err := model.Pack(ctx, model.PackConfig{
		Source: &listed{source, files}, Target: target, Tag: t.to.tag, Previous: t.previous,
		StateDir: t.state, Progress: done.add, Log: p.log,
	})
	if err != nil {
		var told *registry.Error
		if !errors.As(err, &told) && ctx.Err() == nil {
			err = &sourceError{err} // Pack's errors are the source's, the registry's, or the disk's
		}
		return packed{}, err
	}
	size, err := p.copy(ctx, t.state, target, target, result.Image.Index.Digest, t.to.tag, func(progress) {})
	if err != nil {
		return packed{}, err
	}
	return packed{digest: result.Image.Index.Digest, revision: done.sum.Note, bytes: size.bytes}, nil
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

// takeOver copies the image that is the source to the registry.
func (p *packer) takeOver(ctx context.Context, t packTask, target *registry.Repository, tell func(progress)) (packed, error) {
	from, reference, err := sourcePlace(t.source.Registry)
	if err != nil {
		return packed{}, &sourceError{err}
	}
	repo, err := p.access.open(ctx, t.namespace, from)
	if err != nil {
		return packed{}, &sourceError{err}
	}
	defer repo.Close()
	desc, err := repo.Resolve(ctx, reference)
	if err != nil {
		return packed{}, &sourceError{err}
	}
	tell(progress{Note: desc.Digest.String()})
	size, err := p.copy(ctx, t.state, repo, target, desc.Digest, t.to.tag, tell)
	if err != nil {
		return packed{}, err
	}
	return packed{digest: desc.Digest, revision: desc.Digest.String(), bytes: size.bytes}, nil
}

// synced is the result of a copy.
type synced struct {
	// bytes is the size of the whole image, 0 where it was only looked at.
	bytes int64
}

// copy copies the image d from one registry to another, with everything that refers to it.
func (p *packer) copy(ctx context.Context, state string, from, to *registry.Repository, d digest.Digest, tag string, tell func(progress)) (synced, error) {
	t := &tally{tell: tell, layers: map[int]model.Progress{}}
	result, err := model.Copy(ctx, model.CopyConfig{
		From: from, To: to, Tag: d.String(), ToTag: tag, StateDir: state, Progress: t.add, Log: p.log,
	})
	if err != nil {
		return synced{}, err
	}
	return synced{bytes: result.Bytes}, nil
}
