package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// Tracker knows which models the region's nodes should hold. *client.Client is one.
type Tracker interface {
	// Desired returns the whole set for node "". It waits up to wait for another revision than the given one,
	// and then returns the same set again. The error is client.ErrNoDesired where nobody has said yet.
	Desired(ctx context.Context, node, revision string, wait time.Duration) (client.DesiredReply, error)
}

const (
	// pinOwner is in whose name blobs are pinned in the store.
	pinOwner = "desired"
	// trackerPause is how long a tracker that does not answer is left alone.
	trackerPause = 5 * time.Second
	// maxDepth is how many manifests lead to a blob at most: an index of indexes of images.
	maxDepth = 3
)

// followDesired keeps the blobs of the desired models pinned until ctx ends. A tracker that does not answer, or does
// not know, changes nothing: the pins outlive a restart.
func (m *Mirror) followDesired(ctx context.Context) {
	var revision string
	for ctx.Err() == nil {
		// The same set comes again after a while, and its tags may name something else by then.
		reply, err := m.cfg.Tracker.Desired(ctx, "", revision, client.MaxWait)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, client.ErrNoDesired):
			continue // it was waited for
		case err == nil:
			revision = reply.Revision
			err = m.keep(ctx, reply.Models)
		}
		if err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "what is pinned may not be what is desired", slog.Any("error", err))
			select {
			case <-time.After(trackerPause):
			case <-ctx.Done():
			}
		}
	}
}

// keep pins the blobs of the models, and no others. While one of the models cannot be read no pin is taken back:
// nobody knows which are its own.
func (m *Mirror) keep(ctx context.Context, models []client.DesiredModel) error {
	want := map[digest.Digest]bool{}
	var errs []error
	for _, desired := range models {
		if err := m.blobsOf(ctx, desired.Reference, want); err != nil {
			errs = append(errs, fmt.Errorf("model %s: %w", desired.Name, err))
		}
	}
	pinned := map[digest.Digest]bool{}
	for _, d := range m.store.Pinned(pinOwner) {
		if pinned[d] = true; want[d] || len(errs) > 0 {
			continue
		}
		if err := m.store.Unpin(d, pinOwner); err != nil {
			return err
		}
		delete(pinned, d)
	}
	for d := range want {
		if err := m.store.Pin(d, pinOwner); err != nil {
			errs = append(errs, err)
			continue
		}
		pinned[d] = true
	}
	m.metrics.pinned.Set(float64(len(pinned)))
	return errors.Join(errs...)
}

// blobsOf adds the blobs of an image to all, unless it is not this mirror's to serve.
func (m *Mirror) blobsOf(ctx context.Context, reference string, all map[digest.Digest]bool) error {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return err
	}
	src := Source{Upstream: ref.Registry, Repository: ref.Repository}
	if m.upstreams[src.Upstream] == nil {
		return nil
	}
	return m.addBlobs(ctx, src, ref.ReferenceOrDefault(), all, maxDepth)
}

func (m *Mirror) addBlobs(ctx context.Context, src Source, reference string, all map[digest.Digest]bool, depth int) error {
	if depth == 0 {
		return fmt.Errorf("manifest %s: it lies below too many indexes", reference)
	}
	manifest, err := m.Manifest(ctx, src, reference)
	if err != nil {
		return err
	}
	var content struct {
		Manifests   []ocispec.Descriptor `json:"manifests"` // of an index
		Config      ocispec.Descriptor   `json:"config"`
		Layers      []ocispec.Descriptor `json:"layers"`
		Annotations map[string]string    `json:"annotations"`
	}
	if err := json.Unmarshal(manifest.Content, &content); err != nil {
		return fmt.Errorf("manifest %s: %w", reference, err)
	}
	for _, child := range content.Manifests {
		if err := m.addBlobs(ctx, src, child.Digest.String(), all, depth-1); err != nil {
			return err
		}
	}
	blobs := append([]ocispec.Descriptor{content.Config, {Digest: digest.Digest(content.Annotations[model.AnnotationMembers])}}, content.Layers...)
	for _, blob := range blobs {
		if blob.Digest != "" {
			all[blob.Digest] = true
		}
	}
	return nil
}
