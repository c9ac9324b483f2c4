package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
)

// ErrNotShoal means that a reference names an image that Shoal did not pack.
var ErrNotShoal = errors.New("not a Shoal model image (it has no dev.shoal.format annotation); pack it with `shoal push`")

// Image is a resolved model image: everything in it was checked, except for the layers' bytes.
type Image struct {
	// Reference is the one that was resolved.
	Reference string
	// Index is the image index; it is empty when the reference named a single manifest.
	Index ocispec.Descriptor
	// Manifest is the manifest for linux/amd64; the other platforms' have the same layers.
	Manifest ocispec.Descriptor
	// Table is the member table.
	Table ocispec.Descriptor
	// Layers are in the order of the manifest.
	Layers []Layer
}

// Size is the sum of the layers' sizes in bytes.
func (i *Image) Size() int64 {
	var sum int64
	for _, l := range i.Layers {
		sum += l.Size
	}
	return sum
}

// Files is how many files the image holds, and their bytes.
func (i *Image) Files() (n int, size int64) {
	for _, l := range i.Layers {
		n += len(l.Members)
		for _, m := range l.Members {
			size += m.Size
		}
	}
	return n, size
}

// Resolve reads and checks the description of the image that reference names in target: index,
// manifest, config and member table agree, every size is capped, every path is safe, and offsets
// and sizes are those of format 1. Its errors are ErrNotShoal, target's own (errdef.ErrNotFound),
// or say what in the image is wrong.
func Resolve(ctx context.Context, target oras.ReadOnlyTarget, reference string) (*Image, error) {
	desc, err := target.Resolve(ctx, reference)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", reference, err)
	}
	image := &Image{Reference: reference, Manifest: desc}
	if desc.MediaType == ocispec.MediaTypeImageIndex {
		image.Index = desc
		image.Manifest, err = fetchIndex(ctx, target, desc)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
	}
	manifest, err := fetchManifest(ctx, target, image.Manifest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	if err := checkConfig(ctx, target, manifest); err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	if image.Table, err = tableDescriptor(manifest.Annotations); err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	raw, err := content.FetchAll(ctx, target, image.Table)
	if err != nil {
		return nil, fmt.Errorf("image %s: member table %s: %w", reference, image.Table.Digest, err)
	}
	if image.Layers, err = ParseTable(raw); err != nil {
		return nil, fmt.Errorf("image %s: member table %s: %w", reference, image.Table.Digest, err)
	}
	if err := checkLayers(manifest.Layers, image.Layers); err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	return image, nil
}

func fetchJSON(ctx context.Context, target content.Fetcher, desc ocispec.Descriptor, what string, into any) error {
	if err := checkDigest(desc.Digest); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if desc.Size < 0 || desc.Size > MaxManifest {
		return fmt.Errorf("%s %s has %d bytes, the limit is %d", what, desc.Digest, desc.Size, MaxManifest)
	}
	raw, err := content.FetchAll(ctx, target, desc)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, desc.Digest, err)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s %s: %w", what, desc.Digest, err)
	}
	return nil
}

// fetchIndex returns the descriptor of the manifest for linux/amd64.
func fetchIndex(ctx context.Context, target content.Fetcher, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := fetchJSON(ctx, target, desc, "index", &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := checkFormat(index.Annotations); err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, m := range index.Manifests {
		if p := m.Platform; p != nil && p.OS == "linux" && p.Architecture == "amd64" {
			return ocispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("index %s has no manifest for linux/amd64", desc.Digest)
}

func checkFormat(annotations map[string]string) error {
	switch format := annotations[AnnotationFormat]; format {
	case Format:
		return nil
	case "":
		return ErrNotShoal
	default:
		return fmt.Errorf("its format is %q and this Shoal reads %q: use a newer Shoal", format, Format)
	}
}

func fetchManifest(ctx context.Context, target content.Fetcher, desc ocispec.Descriptor) (*ocispec.Manifest, error) {
	if desc.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("%s is a %s: %w", desc.Digest, desc.MediaType, ErrNotShoal)
	}
	var manifest ocispec.Manifest
	if err := fetchJSON(ctx, target, desc, "manifest", &manifest); err != nil {
		return nil, err
	}
	if err := checkFormat(manifest.Annotations); err != nil {
		return nil, err
	}
	if n := len(manifest.Layers); n == 0 || n > MaxLayers {
		return nil, fmt.Errorf("manifest %s has %d layers, it may have 1 to %d", desc.Digest, n, MaxLayers)
	}
	return &manifest, nil
}

// checkConfig makes sure that containerd would mount these layers and no others.
func checkConfig(ctx context.Context, target content.Fetcher, manifest *ocispec.Manifest) error {
	if manifest.Config.MediaType != ocispec.MediaTypeImageConfig {
		return fmt.Errorf("config %s is a %q", manifest.Config.Digest, manifest.Config.MediaType)
	}
	var config ocispec.Image
	if err := fetchJSON(ctx, target, manifest.Config, "config", &config); err != nil {
		return err
	}
	want := make([]digest.Digest, len(manifest.Layers))
	for i, l := range manifest.Layers {
		want[i] = l.Digest
	}
	if !slices.Equal(config.RootFS.DiffIDs, want) {
		return fmt.Errorf("config %s lists other layers than the manifest", manifest.Config.Digest)
	}
	return nil
}

func tableDescriptor(annotations map[string]string) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{
		MediaType: MediaTypeMembers,
		Digest:    digest.Digest(annotations[AnnotationMembers]),
	}
	if err := checkDigest(desc.Digest); err != nil {
		return desc, fmt.Errorf("annotation %s: %w", AnnotationMembers, err)
	}
	size, err := strconv.ParseInt(annotations[AnnotationMembersSize], 10, 64)
	if err != nil || size < 0 {
		return desc, fmt.Errorf("annotation %s: %q is not a size", AnnotationMembersSize, annotations[AnnotationMembersSize])
	}
	if size > MaxTable {
		return desc, fmt.Errorf("its member table has %d bytes, the limit is %d", size, MaxTable)
	}
	desc.Size = size
	return desc, nil
}

// ParseTable reads a member table and checks every layer, and that the paths of all layers can
// stand in one tree.
func ParseTable(raw []byte) ([]Layer, error) {
	if len(raw) > MaxTable {
		return nil, fmt.Errorf("has %d bytes, the limit is %d", len(raw), MaxTable)
	}
	var layers []Layer
	if err := json.Unmarshal(raw, &layers); err != nil {
		return nil, err
	}
	if len(layers) == 0 || len(layers) > MaxLayers {
		return nil, fmt.Errorf("has %d layers, it may have 1 to %d", len(layers), MaxLayers)
	}
	var paths []string
	for _, l := range layers {
		if err := l.Validate(); err != nil {
			return nil, err
		}
		for _, m := range l.Members {
			paths = append(paths, m.Path)
		}
	}
	if err := CheckPaths(paths); err != nil {
		return nil, err
	}
	return layers, nil
}

// checkLayers compares the manifest's layers and their annotations with the member table.
func checkLayers(descs []ocispec.Descriptor, layers []Layer) error {
	if len(descs) != len(layers) {
		return fmt.Errorf("manifest has %d layers, its member table %d", len(descs), len(layers))
	}
	for i, desc := range descs {
		if err := CheckLayerDescriptor(desc, layers[i]); err != nil {
			return &LayerError{desc.Digest, err}
		}
	}
	return nil
}

// CheckLayerDescriptor reports whether a manifest's layer entry, its annotations included, says
// the same as the member table's l.
func CheckLayerDescriptor(desc ocispec.Descriptor, l Layer) error {
	switch {
	case desc.MediaType != ocispec.MediaTypeImageLayer:
		return fmt.Errorf("is a %q, not an uncompressed tar", desc.MediaType)
	case desc.Digest != l.Digest:
		return fmt.Errorf("the member table has %s in its place", l.Digest)
	case desc.Size != l.Size:
		return fmt.Errorf("manifest says %d bytes, the member table %d", desc.Size, l.Size)
	case desc.Annotations[AnnotationRoot] != l.Root.String():
		return fmt.Errorf("annotation %s is %q, the member table has %s", AnnotationRoot, desc.Annotations[AnnotationRoot], l.Root)
	}
	path, hasPath := desc.Annotations[AnnotationFilePath]
	metadata, hasMetadata := desc.Annotations[AnnotationFileMetadata]
	if len(l.Members) > 1 {
		if hasPath || hasMetadata {
			return fmt.Errorf("is annotated as one file and holds %d", len(l.Members))
		}
		return nil
	}
	member := l.Members[0]
	if hasPath && path != member.Path {
		return fmt.Errorf("annotation %s is %q, the member table has %q", AnnotationFilePath, path, member.Path)
	}
	if !hasMetadata {
		return nil
	}
	var got fileMetadata
	if err := json.Unmarshal([]byte(metadata), &got); err != nil {
		return fmt.Errorf("annotation %s: %w", AnnotationFileMetadata, err)
	}
	if want := metadataOf(member); got != want {
		return fmt.Errorf("annotation %s describes another file than the member table", AnnotationFileMetadata)
	}
	return nil
}

// FetchHashLayer reads l's hash layer from target and checks it against l.Hashes and l.Root. Its
// errors are target's own, or wrap ErrRootMismatch.
func FetchHashLayer(ctx context.Context, target content.Fetcher, l Layer) (HashLayer, error) {
	if err := checkDigest(l.Hashes); err != nil {
		return nil, fmt.Errorf("hash layer of %s: %w", l.Digest, err)
	}
	raw, err := content.FetchAll(ctx, target, hashLayerDescriptor(l))
	if err != nil {
		return nil, fmt.Errorf("hash layer of %s: %w", l.Digest, err)
	}
	layer, err := ParseHashLayer(raw, l.Root, l.Size)
	if err != nil {
		return nil, fmt.Errorf("hash layer of %s: %w", l.Digest, err)
	}
	return layer, nil
}

func hashLayerDescriptor(l Layer) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: MediaTypeHashLayer,
		Digest:    l.Hashes,
		Size:      int64(pieces(l.Size, HashLayerPiece)) * sha256.Size,
	}
}

// marshal is json.Marshal without HTML escaping, whose result does not end in a newline. The bytes
// of manifests and tables make digests, so the encoding is part of format 1.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
