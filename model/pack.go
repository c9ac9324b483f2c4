package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2"
)

// Uploader takes a blob whose digest is known only at its end, in chunks. An upload is its location,
// a string that changes with every call and may be kept over a restart.
type Uploader interface {
	// StartUpload begins an upload.
	StartUpload(ctx context.Context) (location string, err error)
	// UploadStatus says how many bytes the registry has; errdef.ErrNotFound if it knows no such
	// upload (any more).
	UploadStatus(ctx context.Context, location string) (next string, offset int64, err error)
	// UploadChunk adds the bytes from offset on; errdef.ErrNotFound as above.
	UploadChunk(ctx context.Context, location string, offset int64, chunk []byte) (next string, err error)
	// CommitUpload makes the upload, of size bytes, the blob d; errdef.ErrNotFound as above, or
	// where the registry computed another digest.
	CommitUpload(ctx context.Context, location string, d digest.Digest, size int64) error
}

// Registry is the repository that Pack writes to: oras-go's target for what is small, and uploads in
// chunks for layers.
type Registry interface {
	oras.Target
	Uploader
	// Name is "host/repository"; it tells apart what is kept in the state folder.
	Name() string
}

// PackConfig says what is packed, and where to.
type PackConfig struct {
	Source Source
	Target Registry
	// Tag names the image in the repository; it is written last.
	Tag string
	// Previous are tags or digests of the same repository whose unchanged layers are reused, beside
	// those of Tag itself. One that does not exist, or is not Shoal's, is passed over.
	Previous []string
	// StateDir keeps what a killed pack needs to go on; empty means that nothing is kept.
	StateDir string
	// Parallel is how many layers are packed at once; 0 means 4. Each takes 16 MiB of memory.
	Parallel int
	// Progress, if any, is called by several goroutines and must not block.
	Progress func(Progress)
	// Log may be nil.
	Log *slog.Logger
}

// PackResult is what Pack did.
type PackResult struct {
	Image *Image
	// ModelPack is the ModelPack manifest, tagged Tag + ModelPackSuffix.
	ModelPack ocispec.Descriptor
	// LayersReused were neither read nor sent.
	LayersReused int
	// BytesRead were read from the source; BytesSent went to the registry, bodies only.
	BytesRead, BytesSent int64
}

// packer is one call of Pack.
type packer struct {
	source Source
	target Registry
	log    *slog.Logger
	tell   func(Progress)
	state  packState
	size   int64 // of all layers, in bytes

	layers   []Layer
	groups   [][]File
	previous *earlier

	reused     atomic.Int64
	read, sent atomic.Int64
	learnMu    sync.Mutex
}

// Pack brings a source's files into a repository as a model image of format 1. Each byte of the
// source is read once and hashed while it is sent; layers that an earlier image has are neither read
// nor sent. A pack that was killed goes on from StateDir when it is called again. Errors are the
// source's (a file that changed meanwhile, a wrong checksum), the registry's, or a *PathError for a
// file that cannot be in an image.
func Pack(ctx context.Context, cfg PackConfig) (*PackResult, error) {
	if cfg.Source == nil || cfg.Target == nil || cfg.Tag == "" {
		return nil, errors.New("pack: source, target and tag are needed")
	}
	p := &packer{source: cfg.Source, target: cfg.Target, log: cfg.Log, tell: cfg.Progress}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	folder, err := openStateFolder(cfg.StateDir, "pack", p.target.Name()+":"+cfg.Tag)
	if err != nil {
		return nil, err
	}
	p.state = packState{folder}
	result, err := p.pack(ctx, cfg)
	if closeErr := p.state.close(err == nil); err == nil && closeErr != nil {
		p.log.Warn("state of the pack is left behind", "error", closeErr)
	}
	return result, err
}

func (p *packer) pack(ctx context.Context, cfg PackConfig) (*PackResult, error) {
	files, err := p.source.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the source: %w", err)
	}
	if p.layers, p.groups, err = planLayers(files); err != nil {
		return nil, err
	}
	for _, l := range p.layers {
		p.size += l.Size
	}
	// Failing to read an earlier image costs an upload, not the pack.
	p.previous, err = readEarlier(ctx, p.target, append([]string{cfg.Tag}, cfg.Previous...), func(reference string, err error) error {
		p.log.Debug("no layers reused", "reference", reference, "error", err)
		return nil
	})
	if err != nil {
		return nil, err
	}
	layers, err := p.packLayers(ctx, cfg.Parallel)
	if err != nil {
		return nil, err
	}
	docs, err := buildDocuments(layers)
	if err != nil {
		return nil, err
	}
	if err := p.publish(ctx, docs, cfg.Tag); err != nil {
		return nil, err
	}
	return &PackResult{
		Image: &Image{
			Reference: cfg.Tag,
			Index:     docs.index.desc,
			Manifest:  docs.manifests[0].desc,
			Table:     docs.table.desc,
			Layers:    layers,
		},
		ModelPack:    docs.modelPack.desc,
		LayersReused: int(p.reused.Load()),
		BytesRead:    p.read.Load(),
		BytesSent:    p.sent.Load(),
	}, nil
}

func (p *packer) packLayers(ctx context.Context, parallel int) ([]Layer, error) {
	if parallel <= 0 {
		parallel = 4
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	layers := make([]Layer, len(p.layers))
	for i := range p.layers {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err // another layer failed
			}
			layer, err := p.packLayer(ctx, i)
			layers[i] = layer
			return err
		})
	}
	return layers, group.Wait()
}

// publish pushes what describes the layers, each after what it refers to, and the tag last: whoever
// sees it sees a whole image.
func (p *packer) publish(ctx context.Context, docs *documents, tag string) error {
	if n := docs.table.desc.Size; n > MaxTable {
		return fmt.Errorf("the model has too many files: its member table would have %d bytes, the limit is %d", n, MaxTable)
	}
	for _, manifest := range append([]document{docs.index, docs.pieces, docs.modelPack}, docs.manifests...) {
		if n := manifest.desc.Size; n > MaxManifest {
			return fmt.Errorf("a manifest would have %d bytes, registries take %d", n, MaxManifest)
		}
	}
	for _, blob := range append([]document{docs.table}, docs.blobs...) {
		if err := p.push(ctx, blob); err != nil {
			return err
		}
	}
	// Manifests are pushed even if they are there: a registry without the referrers API learns about
	// the referrer only by oras-go's fallback tag, which a killed pack may not have written.
	for _, manifest := range append(docs.manifests, docs.index, docs.pieces, docs.modelPack) {
		p.sent.Add(manifest.desc.Size)
		if err := p.target.Push(ctx, manifest.desc, bytes.NewReader(manifest.raw)); err != nil {
			return err
		}
	}
	if err := p.target.Tag(ctx, docs.modelPack.desc, tag+ModelPackSuffix); err != nil {
		return err
	}
	return p.target.Tag(ctx, docs.index.desc, tag)
}

// learn hands the checksums of a packed layer to a source that keeps them.
func (p *packer) learn(l Layer) {
	learner, ok := p.source.(Learner)
	if !ok {
		return
	}
	sums := make(map[string]digest.Digest, len(l.Members))
	for _, m := range l.Members {
		sums[m.Path] = m.SHA256
	}
	p.learnMu.Lock()
	defer p.learnMu.Unlock()
	learner.Learn(sums)
}

func (p *packer) progress(i int, done int64, reused bool) {
	if p.tell == nil {
		return
	}
	l := p.layers[i]
	p.tell(Progress{Layer: i, Layers: len(p.layers), Name: layerName(l), Done: done, Size: l.Size, Total: p.size, Reused: reused})
}
