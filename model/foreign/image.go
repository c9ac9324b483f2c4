package foreign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/shoal-project/shoal/model"
)

// Encoding is how a layer holds its files.
type Encoding string

// Encodings of layers.
const (
	Raw     Encoding = "raw" // the layer is a file
	Tar     Encoding = "tar"
	TarGzip Encoding = "tar+gzip"
	TarZstd Encoding = "tar+zstd"
)

// Kind is whose convention an image follows.
type Kind string

// Kinds of images.
const (
	Plain       Kind = "image"        // OCI or Docker image: later layers change earlier ones
	ModelPack   Kind = "modelpack"    // github.com/modelpack/model-spec
	KitOps      Kind = "kitops"       // github.com/kitops-ml/kitops
	ModelRunner Kind = "model-runner" // github.com/docker/model-runner
)

// Layer is one blob of an image.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"` // bytes
	MediaType string        `json:"mediaType"`
	Encoding  Encoding      `json:"encoding"`
	// Path is the file's path in the tree, for Raw.
	Path string `json:"path,omitempty"`
}

// Image is what a reference names.
type Image struct {
	Kind     Kind               `json:"kind"`
	Manifest ocispec.Descriptor `json:"manifest"`
	Layers   []Layer            `json:"layers"`
}

// Size is the sum of the layers' sizes in bytes.
func (i *Image) Size() int64 {
	var sum int64
	for _, l := range i.Layers {
		sum += l.Size
	}
	return sum
}

// Limits of what is read.
const (
	// MaxLayers is more than any runtime mounts, and than tools that make a layer of each file reach.
	MaxLayers = 1024
	// maxSize bounds a layer, in bytes, so that sums of sizes cannot overflow.
	maxSize = 1 << 50
)

// Media types of Docker's registry, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// LayerError says what is wrong with a layer.
type LayerError struct {
	Layer  digest.Digest
	Reason error
}

// Error implements error.
func (e *LayerError) Error() string { return fmt.Sprintf("layer %s: %v", e.Layer, e.Reason) }

// Unwrap returns the reason.
func (e *LayerError) Unwrap() error { return e.Reason }

// ErrUnsupported means that an image cannot be unpacked into a folder.
var ErrUnsupported = errors.New("Shoal cannot unpack this kind of image") //nolint:staticcheck // a name

// Resolve reads the description of the image that reference names in target. Of an index it takes
// linux and this machine's architecture, else amd64, else the first. Its errors are target's own,
// ErrUnsupported, a *LayerError, a *model.PathError, or say what in the image is wrong.
func Resolve(ctx context.Context, target oras.ReadOnlyTarget, reference string) (*Image, error) {
	desc, err := target.Resolve(ctx, reference)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", reference, err)
	}
	if desc.MediaType == ocispec.MediaTypeImageIndex || desc.MediaType == dockerList {
		raw, err := fetch(ctx, target, desc)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", reference, err)
		}
		if desc, err = choose(raw); err != nil {
			return nil, fmt.Errorf("image %s: index: %w", reference, err)
		}
	}
	if desc.MediaType != ocispec.MediaTypeImageManifest && desc.MediaType != dockerManifest {
		return nil, fmt.Errorf("image %s: is a %q: %w", reference, desc.MediaType, ErrUnsupported)
	}
	raw, err := fetch(ctx, target, desc)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	image, err := ParseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", reference, err)
	}
	image.Manifest = ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return image, nil
}

func fetch(ctx context.Context, target content.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size < 0 || desc.Size > model.MaxManifest {
		return nil, fmt.Errorf("%s %s has %d bytes, the limit is %d", desc.MediaType, desc.Digest, desc.Size, model.MaxManifest)
	}
	raw, err := content.FetchAll(ctx, target, desc)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return raw, nil
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%.100q is not a sha256 digest", d.String())
	}
	return nil
}

// choose picks the manifest for this machine.
func choose(raw []byte) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	best, rank := ocispec.Descriptor{}, 0
	for _, m := range index.Manifests {
		r := 1
		switch p := m.Platform; {
		case p == nil:
		case p.OS == "unknown": // attestations
			continue
		case p.OS == "linux" && p.Architecture == runtime.GOARCH:
			r = 3
		case p.OS == "linux" && p.Architecture == "amd64":
			r = 2
		}
		if r > rank {
			best, rank = m, r
		}
	}
	if rank == 0 {
		return best, errors.New("has no manifest")
	}
	return best, nil
}

// ParseManifest reads an image or artifact manifest and checks everything that it says by itself.
func ParseManifest(raw []byte) (*Image, error) {
	if len(raw) > model.MaxManifest {
		return nil, fmt.Errorf("manifest of %d bytes, the limit is %d", len(raw), model.MaxManifest)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(m.Layers) == 0 || len(m.Layers) > MaxLayers {
		return nil, fmt.Errorf("manifest has %d layers, it may have 1 to %d", len(m.Layers), MaxLayers)
	}
	image := &Image{Kind: kindOf(m)}
	if image.Kind == "" {
		return nil, fmt.Errorf("its config is a %.100q: %w", m.Config.MediaType, ErrUnsupported)
	}
	var paths []string
	var sum int64
	for _, desc := range m.Layers {
		l, err := image.layer(desc)
		if err != nil {
			return nil, &LayerError{desc.Digest, err}
		}
		if sum += l.Size; sum > maxSize {
			return nil, fmt.Errorf("its layers have more than %d bytes together", int64(maxSize))
		}
		if l.Encoding == Raw {
			paths = append(paths, l.Path)
		}
		image.Layers = append(image.Layers, l)
	}
	if len(paths) > 0 {
		if err := model.CheckPaths(paths); err != nil {
			return nil, err
		}
	}
	return image, nil
}

// kindOf tells by the config's and the artifact's media types; cnai is ModelPack's former name.
func kindOf(m ocispec.Manifest) Kind {
	for _, t := range []string{m.ArtifactType, m.Config.MediaType} {
		switch {
		case strings.HasPrefix(t, "application/vnd.cncf.model."), strings.HasPrefix(t, "application/vnd.cnai.model."):
			return ModelPack
		case strings.HasPrefix(t, "application/vnd.kitops."):
			return KitOps
		case strings.HasPrefix(t, "application/vnd.docker.ai."):
			return ModelRunner
		case t == ocispec.MediaTypeImageConfig, t == "application/vnd.docker.container.image.v1+json":
			return Plain
		}
	}
	return ""
}

func (i *Image) layer(desc ocispec.Descriptor) (Layer, error) {
	l := Layer{Digest: desc.Digest, Size: desc.Size, MediaType: desc.MediaType}
	if err := checkDigest(desc.Digest); err != nil {
		return l, err
	}
	if desc.Size < 0 || desc.Size > maxSize {
		return l, fmt.Errorf("size %d is out of range", desc.Size)
	}
	var err error
	if l.Encoding, err = encodingOf(i.Kind, desc.MediaType); err != nil {
		return l, err
	}
	if l.Encoding == Raw {
		if l.Path = pathOf(desc); l.Path == "" {
			return l, errors.New("is a file without a name: it has no annotation org.cncf.model.filepath or org.opencontainers.image.title")
		}
	}
	return l, nil
}

// encodingOf reads the end of a media type.
func encodingOf(kind Kind, mediaType string) (Encoding, error) {
	base, _, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return "", fmt.Errorf("media type %.100q: %w", mediaType, err)
	}
	switch {
	case strings.Contains(base, "nondistributable"), strings.Contains(base, ".foreign."):
		return "", fmt.Errorf("is a %q, which registries do not hold: %w", base, ErrUnsupported)
	case strings.HasSuffix(base, ".tar+gzip"), strings.HasSuffix(base, ".tar.gzip"), strings.HasSuffix(base, ".tar.gz"):
		return TarGzip, nil
	case strings.HasSuffix(base, ".tar+zstd"), strings.HasSuffix(base, ".tar.zstd"):
		return TarZstd, nil
	case strings.HasSuffix(base, ".tar"):
		return Tar, nil
	case kind == ModelRunner, kind == ModelPack && (strings.HasSuffix(base, ".raw") || strings.Contains(base, ".weight.v1.")):
		return Raw, nil
	}
	return "", fmt.Errorf("is a %.100q: %w", base, ErrUnsupported)
}

// pathOf is the path of a raw layer's file, by the annotations of the tools, the own one first.
func pathOf(desc ocispec.Descriptor) string {
	keys := []string{"org.cncf.model.filepath", "org.cnai.model.filepath", ocispec.AnnotationTitle}
	for _, key := range keys {
		if p := desc.Annotations[key]; p != "" {
			return p
		}
	}
	if slices.Contains([]string{"application/vnd.docker.ai.gguf.v3", "application/vnd.docker.ai.gguf.v3+lora"}, desc.MediaType) {
		return "model.gguf" // as Docker Model Runner itself calls it
	}
	return ""
}
