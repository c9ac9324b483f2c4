package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/model"
)

// errLost means that a registry lacks the image, and that no other has it.
var errLost = errors.New("the registry lacks the image, and no other registry of this object has it")

// sync makes sure that the registry at to has the image d under its tag, from the first of the others that gives it.
func (h *Hub) sync(ctx context.Context, md *v1alpha1.ModelDistribution, d digest.Digest, to place, from []place, tell func(progress)) (any, error) {
	target, err := h.packer.access.open(ctx, md.Namespace, to)
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
		return h.packer.copy(ctx, h.stateDir(md), target, target, d, to.tag, tell)
	}
	// First from where the bytes need not leave the registry: its other repositories' blobs are mounted.
	slices.SortStableFunc(from, func(a, b place) int { return cmp.Compare(elsewhere(a, to), elsewhere(b, to)) })
	var failed []error
	for _, p := range from {
		source, err := h.packer.access.open(ctx, md.Namespace, p)
		var result synced
		if err == nil {
			result, err = h.packer.copy(ctx, h.stateDir(md), source, target, d, to.tag, tell)
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

// stateDir keeps what a killed packing or copy of md goes on from.
func (h *Hub) stateDir(md *v1alpha1.ModelDistribution) string {
	return filepath.Join(h.cfg.StateDir, string(md.UID))
}

// deleteImages takes the tags away that were pushed for md. One that is not there is no error.
func (h *Hub) deleteImages(ctx context.Context, md *v1alpha1.ModelDistribution, all []place) error {
	var failed []error
	for _, p := range all {
		repo, err := h.packer.access.open(ctx, md.Namespace, p)
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

// elsewhere is 0 where two places are in one registry, and 1 where they are not.
func elsewhere(a, b place) int {
	if a.host == b.host {
		return 0
	}
	return 1
}
