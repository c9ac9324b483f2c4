package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
)

// CopyConfig says which image is copied, and where to.
type CopyConfig struct {
	From, To *registry.Repository
	// Tag is the image's tag or digest in From. A tag is resolved once: what it names later is
	// another image.
	Tag string
	// ToTag names the image in To; it is written last. Empty means Tag, where that is no digest.
	ToTag string
	// MountFrom are repositories of To's registry that may have some of the blobs: these are mounted.
	// From need not be among them where it lies in the same registry.
	MountFrom []string
	// StateDir keeps what a killed copy needs to go on; empty means that nothing is kept.
	StateDir string
	// Parallel is how many blobs are copied at once; 0 means 4. Each takes 16 MiB of memory.
	Parallel int
	// Progress, if any, is called by several goroutines and must not block. Its layers are all blobs
	// of the image.
	Progress func(Progress)
	// Log may be nil.
	Log *slog.Logger
}

// CopyResult is what Copy did. BytesSent, BytesMounted and BytesPresent add up to Bytes.
type CopyResult struct {
	// Root is the index or manifest that ToTag names now.
	Root ocispec.Descriptor
	// ModelPack is the ModelPack manifest, tagged ToTag + ModelPackSuffix; it is empty where From has
	// none over the image's layers.
	ModelPack ocispec.Descriptor
	// Manifests counts manifests and indexes, referrers included; Blobs all else.
	Manifests, Blobs int
	// Bytes is the size of all manifests and blobs, each counted once.
	Bytes int64
	// BytesSent went from From to To: neither what was sent again after a failure, nor the tags.
	BytesSent int64
	// BytesMounted came from other repositories of To's registry.
	BytesMounted int64
	// BytesPresent were in To already, those of a killed copy's uploads included.
	BytesPresent int64
}

// copier is one call of Copy.
type copier struct {
	from, to  *registry.Repository
	mountFrom []string
	log       *slog.Logger
	tell      func(Progress)
	state     *stateFolder

	blobs                  []ocispec.Descriptor
	size                   int64 // of all blobs, in bytes
	sent, mounted, present atomic.Int64
}

// Copy brings an image from one repository into another: the index or manifest that Tag names, all
// that it refers to, and the manifests that refer to any of it (hash layers, signatures), theirs
// included. Any OCI or docker (schema 2) image will do. Of a Shoal image the ModelPack manifest comes
// along too. Only what To lacks is sent, or mounted where another repository of its registry has it.
//
// Every blob's digest is checked before To commits it. A copy that was killed goes on from StateDir
// when it is called again. An error is a *registry.Error, which names the registry that failed (see
// registry.Unavailable for whether to try again), or says what is wrong with the image; then ToTag
// is what it was.
func Copy(ctx context.Context, cfg CopyConfig) (*CopyResult, error) {
	if cfg.From == nil || cfg.To == nil || cfg.Tag == "" {
		return nil, errors.New("copy: from, to and tag are needed")
	}
	if cfg.ToTag == "" {
		cfg.ToTag = cfg.Tag
	}
	if isDigest(cfg.ToTag) {
		return nil, fmt.Errorf("copy %s: it needs a tag to be found by in %s", cfg.Tag, cfg.To.Name())
	}
	c := &copier{from: cfg.From, to: cfg.To, mountFrom: mountable(cfg), log: cfg.Log, tell: cfg.Progress}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.state, err = openStateFolder(cfg.StateDir, "copy", c.to.Name()+":"+cfg.ToTag); err != nil {
		return nil, err
	}
	result, err := c.copy(ctx, cfg)
	if closeErr := c.state.close(err == nil); err == nil && closeErr != nil {
		c.log.Warn("state of the copy is left behind", "error", closeErr)
	}
	return result, err
}

func isDigest(reference string) bool { return strings.Contains(reference, ":") }

// mountable are the repositories to mount from, in the order in which they are tried.
func mountable(cfg CopyConfig) []string {
	var names []string
	if cfg.From.Reference.Host() == cfg.To.Reference.Host() {
		names = append(names, cfg.From.Reference.Repository)
	}
	names = append(names, cfg.MountFrom...)
	return slices.DeleteFunc(names, func(name string) bool { return name == cfg.To.Reference.Repository })
}

func (c *copier) copy(ctx context.Context, cfg CopyConfig) (*CopyResult, error) {
	name := cfg.Tag
	if isDigest(name) {
		name = cfg.ToTag // the ModelPack manifest has no name but one
	}
	graph, err := readGraph(ctx, c.from, cfg.Tag, name+ModelPackSuffix, c.log)
	if err != nil {
		return nil, err
	}
	result := &CopyResult{
		Root: graph.root.desc, ModelPack: graph.modelPack.desc,
		Manifests: len(graph.manifests), Blobs: len(graph.blobs),
	}
	c.blobs = graph.blobs
	for _, desc := range c.blobs {
		c.size += desc.Size
	}
	result.Bytes = c.size
	for _, m := range graph.manifests {
		result.Bytes += m.desc.Size
	}
	if err := c.copyBlobs(ctx, cfg.Parallel); err != nil {
		return nil, err
	}
	if err := c.publish(ctx, graph, cfg.ToTag); err != nil {
		return nil, err
	}
	result.BytesSent, result.BytesMounted, result.BytesPresent = c.sent.Load(), c.mounted.Load(), c.present.Load()
	return result, nil
}

func (c *copier) copyBlobs(ctx context.Context, parallel int) error {
	if parallel <= 0 {
		parallel = 4
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i := range c.blobs {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err // another blob failed
			}
			return c.copyBlob(ctx, i)
		})
	}
	return group.Wait()
}

// publish pushes the manifests, each after what it refers to, and the tags last: whoever sees one
// sees a whole image.
func (c *copier) publish(ctx context.Context, graph *imageGraph, tag string) error {
	listed := make(map[digest.Digest][]ocispec.Descriptor) // To's referrers, by subject
	for _, m := range graph.manifests {
		there, err := c.to.Exists(ctx, m.desc)
		if err == nil && there {
			there, err = c.listed(ctx, m, listed)
		}
		if err != nil {
			return err
		}
		if there {
			c.present.Add(m.desc.Size)
			continue
		}
		if err := c.to.Push(ctx, m.desc, bytes.NewReader(m.raw)); err != nil {
			return err
		}
		c.sent.Add(m.desc.Size)
	}
	if graph.modelPack.raw != nil {
		if err := c.tag(ctx, graph.modelPack, tag+ModelPackSuffix); err != nil {
			return err
		}
	}
	return c.tag(ctx, graph.root, tag)
}

// listed reports whether To lists m under its subject, if it has one. A registry without the referrers
// API learns about a referrer only by the fallback tag, which oras-go writes after the manifest: a
// killed copy may not have come so far. known holds the lists that were asked for.
func (c *copier) listed(ctx context.Context, m document, known map[digest.Digest][]ocispec.Descriptor) (bool, error) {
	subject, err := subjectOf(m)
	if err != nil || subject.Digest == "" {
		return true, err
	}
	list, asked := known[subject.Digest]
	if !asked {
		if list, err = c.to.ListReferrers(ctx, subject, maxGraph); err != nil {
			return false, err
		}
		known[subject.Digest] = list
	}
	return slices.ContainsFunc(list, func(r ocispec.Descriptor) bool { return r.Digest == m.desc.Digest }), nil
}

// tag names a manifest unless it has the name already: a registry may hold tags to be immutable.
func (c *copier) tag(ctx context.Context, manifest document, tag string) error {
	switch desc, err := c.to.Resolve(ctx, tag); {
	case err == nil && desc.Digest == manifest.desc.Digest:
		return nil
	case err != nil && !errors.Is(err, errdef.ErrNotFound):
		return err
	}
	return c.to.PushReference(ctx, manifest.desc, bytes.NewReader(manifest.raw), tag)
}

func (c *copier) progress(i int, done int64, reused bool) {
	if c.tell == nil {
		return
	}
	desc := c.blobs[i]
	c.tell(Progress{Layer: i, Layers: len(c.blobs), Name: blobName(desc), Done: done, Size: desc.Size, Total: c.size, Reused: reused})
}

// blobName names a blob for people.
func blobName(desc ocispec.Descriptor) string {
	for _, key := range []string{AnnotationFilePath, ocispec.AnnotationTitle} {
		if name := desc.Annotations[key]; name != "" {
			return name
		}
	}
	return fmt.Sprintf("%s:%.12s", desc.Digest.Algorithm(), desc.Digest.Encoded())
}
