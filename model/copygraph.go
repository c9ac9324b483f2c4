package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
)

// Bounds of what is copied as one image. Whoever may push referrers could make the graph as large
// as they like.
const (
	// maxGraph is how many manifests an image may have, referrers included.
	maxGraph = 1024
	// maxGraphDepth is how deep manifests may refer to each other. An index of images with a signed
	// SBOM has 4.
	maxGraphDepth = 16
	// maxGraphBytes bounds the manifests together: they are held in memory.
	maxGraphBytes = 64 << 20
)

// imageGraph is everything of an image.
type imageGraph struct {
	root      document
	modelPack document // empty: none
	// manifests come after what they refer to; root and modelPack are among them.
	manifests []document
	blobs     []ocispec.Descriptor // each once
}

// graphReader collects an imageGraph.
type graphReader struct {
	from  *registry.Repository
	log   *slog.Logger
	graph imageGraph

	manifests map[digest.Digest]bool // those in graph, or under way
	blobs     map[digest.Digest]int64
	read      int   // manifests
	bytes     int64 // of manifests
}

// readGraph reads all manifests of the image that reference names, and of what refers to them. The
// manifest that modelPackTag names belongs to it if it is over the image's own layers: the two tags
// cannot be read at once, and another's may have been pushed in between. Errors are From's, or say
// what in the image is wrong.
func readGraph(ctx context.Context, from *registry.Repository, reference, modelPackTag string, log *slog.Logger) (*imageGraph, error) {
	g := &graphReader{from: from, log: log, manifests: map[digest.Digest]bool{}, blobs: map[digest.Digest]int64{}}
	if err := g.addRoot(ctx, reference); err != nil {
		return nil, fmt.Errorf("image %s of %s: %w", reference, from.Name(), err)
	}
	if err := g.addModelPack(ctx, modelPackTag); err != nil {
		return nil, fmt.Errorf("image %s of %s: %w", modelPackTag, from.Name(), err)
	}
	return &g.graph, nil
}

func (g *graphReader) addRoot(ctx context.Context, reference string) error {
	desc, err := g.from.Resolve(ctx, reference)
	if err != nil {
		return err
	}
	if !registry.IsManifest(desc.MediaType) {
		return fmt.Errorf("it is a %q, and only OCI and docker schema 2 images can be copied: push it again with a newer client", desc.MediaType)
	}
	if g.graph.root, err = g.fetch(ctx, desc); err != nil {
		return err
	}
	if err := g.add(ctx, g.graph.root, 1); err != nil {
		return err
	}
	return g.checkMembers()
}

// checkMembers makes sure that a Shoal image's member table was found. Only the referrer leads to it
// and to the hash layers, and tools that copy without referrers, or a killed pack, leave an image
// that no node can read.
func (g *graphReader) checkMembers() error {
	var manifest struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(g.graph.root.raw, &manifest); err != nil {
		return err
	}
	table := manifest.Annotations[AnnotationMembers]
	if _, known := g.blobs[digest.Digest(table)]; table != "" && !known {
		return fmt.Errorf("it is a Shoal model whose member table %.100q and hash layers no referrer lists: push it there again", table)
	}
	return nil
}

// fetch reads a manifest. The descriptor's size and digest are checked.
func (g *graphReader) fetch(ctx context.Context, desc ocispec.Descriptor) (document, error) {
	g.read++
	g.bytes += desc.Size
	if g.read > maxGraph || g.bytes > maxGraphBytes {
		return document{}, fmt.Errorf("it has more than %d manifests or %d bytes of them, referrers included: delete those that nobody needs", maxGraph, maxGraphBytes)
	}
	raw, err := g.from.ReadManifest(ctx, desc)
	if err != nil {
		return document{}, err
	}
	return document{desc: ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}, raw: raw}, nil
}

// add puts what m refers to, m itself, and what refers to m into the graph.
func (g *graphReader) add(ctx context.Context, m document, depth int) error {
	if g.manifests[m.desc.Digest] {
		return nil
	}
	if depth > maxGraphDepth {
		return fmt.Errorf("its manifests refer to each other more than %d deep, at %s: delete referrers that nobody needs", maxGraphDepth, m.desc.Digest)
	}
	g.manifests[m.desc.Digest] = true
	children, err := successors(ctx, m)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", m.desc.Digest, err)
	}
	for _, child := range children {
		if err := g.addChild(ctx, child, depth+1); err != nil {
			return err
		}
	}
	g.graph.manifests = append(g.graph.manifests, m)
	return g.addReferrers(ctx, m.desc, depth+1)
}

func (g *graphReader) addChild(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	if !registry.IsManifest(desc.MediaType) {
		return g.addBlob(desc)
	}
	if g.manifests[desc.Digest] {
		return nil
	}
	child, err := g.fetch(ctx, desc)
	if err != nil {
		return err
	}
	return g.add(ctx, child, depth)
}

func (g *graphReader) addBlob(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("blob %.100q: %w", desc.Digest, err)
	}
	if desc.Size < 0 {
		return fmt.Errorf("blob %s has %d bytes", desc.Digest, desc.Size)
	}
	if len(desc.URLs) > 0 && (strings.Contains(desc.MediaType, "nondistributable") || strings.Contains(desc.MediaType, ".foreign.")) {
		return nil // it lies elsewhere, and its licence wants it to
	}
	size, known := g.blobs[desc.Digest]
	switch {
	case known && size != desc.Size:
		return fmt.Errorf("blob %s has %d bytes in one place and %d in another", desc.Digest, size, desc.Size)
	case !known:
		g.blobs[desc.Digest] = desc.Size
		g.graph.blobs = append(g.graph.blobs, desc)
	}
	return nil
}

// addReferrers follows those who say that desc is their subject, if it is.
func (g *graphReader) addReferrers(ctx context.Context, desc ocispec.Descriptor, depth int) error {
	referrers, err := g.from.ListReferrers(ctx, desc, maxGraph)
	if err != nil {
		return err
	}
	for _, r := range referrers {
		if g.manifests[r.Digest] {
			continue
		}
		if !registry.IsManifest(r.MediaType) {
			g.log.Info("a referrer is no manifest and stays behind", "digest", r.Digest, "type", r.MediaType)
			continue
		}
		manifest, err := g.fetch(ctx, r)
		if errors.Is(err, errdef.ErrNotFound) {
			g.log.Info("a referrer is listed and not there", "digest", r.Digest)
			continue
		}
		if err != nil {
			return err
		}
		if subject, err := subjectOf(manifest); err != nil || subject.Digest != desc.Digest {
			g.log.Info("a listed referrer is none and stays behind", "digest", r.Digest, "listed", desc.Digest)
			continue
		}
		if err := g.add(ctx, manifest, depth); err != nil {
			return err
		}
	}
	return nil
}

// addModelPack adds the manifest that tag names, if all of its layers are the image's.
func (g *graphReader) addModelPack(ctx context.Context, tag string) error {
	desc, err := g.from.Resolve(ctx, tag)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if desc.MediaType != ocispec.MediaTypeImageManifest {
		return nil
	}
	modelPack, err := g.fetch(ctx, desc)
	if err != nil {
		return err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(modelPack.raw, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	foreign := func(l ocispec.Descriptor) bool { _, known := g.blobs[l.Digest]; return !known }
	if slices.ContainsFunc(manifest.Layers, foreign) {
		g.log.Info("the ModelPack manifest is over other layers and stays behind", "tag", tag, "digest", desc.Digest)
		return nil
	}
	g.graph.modelPack = modelPack
	return g.add(ctx, modelPack, 1)
}

// successors are what a manifest or index is made of; its subject is not.
func successors(ctx context.Context, m document) ([]ocispec.Descriptor, error) {
	subject, err := subjectOf(m)
	if err != nil {
		return nil, err
	}
	held := content.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(m.raw)), nil
	})
	all, err := content.Successors(ctx, held, m.desc)
	if err == nil && subject.Digest != "" {
		all = all[1:] // oras-go puts it first
	}
	return all, err
}

// subjectOf is empty where the manifest has no subject, or its type knows none.
func subjectOf(m document) (ocispec.Descriptor, error) {
	if strings.HasPrefix(m.desc.MediaType, "application/vnd.docker.") {
		return ocispec.Descriptor{}, nil
	}
	var refers struct {
		Subject *ocispec.Descriptor `json:"subject"`
	}
	if err := json.Unmarshal(m.raw, &refers); err != nil || refers.Subject == nil {
		return ocispec.Descriptor{}, err
	}
	return *refers.Subject, refers.Subject.Digest.Validate()
}
