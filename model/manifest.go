package model

import (
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fileMetadata is the value of AnnotationFileMetadata (CNCF ModelPack spec, FileMetadata).
type fileMetadata struct {
	Name     string `json:"name"`
	Mode     uint32 `json:"mode"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Size     int64  `json:"size"`
	ModTime  string `json:"mtime"`
	Typeflag byte   `json:"typeflag"`
}

func metadataOf(m Member) fileMetadata {
	return fileMetadata{Name: path.Base(m.Path), Mode: 0o444, Size: m.Size, ModTime: "1970-01-01T00:00:00Z", Typeflag: '0'}
}

// document is a blob or manifest that is small enough to be held in memory.
type document struct {
	desc ocispec.Descriptor
	raw  []byte
}

func newDocument(mediaType string, v any) (document, error) {
	raw, err := marshal(v)
	if err != nil {
		return document{}, err
	}
	return rawDocument(mediaType, raw), nil
}

func rawDocument(mediaType string, raw []byte) document {
	return document{
		desc: ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))},
		raw:  raw,
	}
}

// documents are all of an image but its layers and hash layers, in the order in which they are
// pushed: what refers comes after what it refers to.
type documents struct {
	table     document
	blobs     []document // configs
	manifests []document // linux/amd64, linux/arm64
	index     document
	pieces    document // the referrer
	modelPack document
}

// buildDocuments describes layers. The result depends on layers alone, so that an image packed
// again, anywhere, has the same digests.
func buildDocuments(layers []Layer) (*documents, error) {
	var d documents
	var err error
	if d.table, err = newDocument(MediaTypeMembers, layers); err != nil {
		return nil, err
	}
	annotations := map[string]string{
		AnnotationFormat:      Format,
		AnnotationMembers:     d.table.desc.Digest.String(),
		AnnotationMembersSize: strconv.FormatInt(d.table.desc.Size, 10),
	}
	descs, err := layerDescriptors(layers)
	if err != nil {
		return nil, err
	}
	index := ocispec.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageIndex,
		Annotations: annotations,
	}
	for _, arch := range []string{"amd64", "arm64"} {
		platform := ocispec.Platform{OS: "linux", Architecture: arch}
		config, manifest, err := platformManifest(platform, descs, annotations)
		if err != nil {
			return nil, err
		}
		d.blobs = append(d.blobs, config)
		d.manifests = append(d.manifests, manifest)
		desc := manifest.desc
		desc.Platform = &platform
		index.Manifests = append(index.Manifests, desc)
	}
	if d.index, err = newDocument(ocispec.MediaTypeImageIndex, index); err != nil {
		return nil, err
	}
	if d.pieces, err = piecesManifest(layers, d.table.desc, d.index.desc); err != nil {
		return nil, err
	}
	d.blobs = append(d.blobs, rawDocument(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data))
	var config document
	config, d.modelPack, err = modelPackManifest(layers, descs)
	d.blobs = append(d.blobs, config)
	return &d, err
}

func layerDescriptors(layers []Layer) ([]ocispec.Descriptor, error) {
	descs := make([]ocispec.Descriptor, len(layers))
	for i, l := range layers {
		annotations := map[string]string{AnnotationRoot: l.Root.String()}
		if len(l.Members) == 1 {
			metadata, err := marshal(metadataOf(l.Members[0]))
			if err != nil {
				return nil, err
			}
			annotations[AnnotationFilePath] = l.Members[0].Path
			annotations[AnnotationFileMetadata] = string(metadata)
		}
		descs[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size, Annotations: annotations}
	}
	return descs, nil
}

func platformManifest(platform ocispec.Platform, layers []ocispec.Descriptor, annotations map[string]string) (config, manifest document, err error) {
	image := ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, l.Digest)
	}
	if config, err = newDocument(ocispec.MediaTypeImageConfig, image); err != nil {
		return config, manifest, err
	}
	manifest, err = newDocument(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageManifest,
		Config:      config.desc,
		Layers:      layers,
		Annotations: annotations,
	})
	return config, manifest, err
}

// piecesManifest is the referrer of the index: the member table, then each layer's hash layer.
func piecesManifest(layers []Layer, table, index ocispec.Descriptor) (document, error) {
	blobs := []ocispec.Descriptor{table}
	for _, l := range layers {
		blobs = append(blobs, hashLayerDescriptor(l))
	}
	empty := ocispec.DescriptorEmptyJSON
	empty.Data = nil
	return newDocument(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactTypePieces,
		Config:       empty,
		Layers:       blobs,
		Subject:      &index,
	})
}

// modelPackConfig is the smallest config of the CNCF ModelPack spec (v0.0.7 spelling, diffIds). It
// names neither model nor date: the same bytes give the same digest everywhere.
type modelPackConfig struct {
	Descriptor struct{} `json:"descriptor"`
	Config     struct {
		Format string `json:"format,omitempty"`
	} `json:"config"`
	ModelFS struct {
		Type    string          `json:"type"`
		DiffIDs []digest.Digest `json:"diffIds"`
	} `json:"modelfs"`
}

func modelPackManifest(layers []Layer, descs []ocispec.Descriptor) (config, manifest document, err error) {
	var c modelPackConfig
	c.ModelFS.Type = "layers"
	blobs := make([]ocispec.Descriptor, len(descs))
	for i, desc := range descs {
		c.ModelFS.DiffIDs = append(c.ModelFS.DiffIDs, desc.Digest)
		kind, format := modelPackKind(layers[i])
		if c.Config.Format == "" {
			c.Config.Format = format
		}
		desc.MediaType = "application/vnd.cncf.model." + kind + ".v1.tar"
		blobs[i] = desc
	}
	if config, err = newDocument(mediaTypeModelPackConfig, c); err != nil {
		return config, manifest, err
	}
	manifest, err = newDocument(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: mediaTypeModelPackManifest,
		Config:       config.desc,
		Layers:       blobs,
	})
	return config, manifest, err
}

// modelPackKind is the ModelPack kind of a layer, and the weights' format where a file tells it.
func modelPackKind(l Layer) (kind, format string) {
	if len(l.Members) > 1 {
		return "weight.config", ""
	}
	switch ext := strings.ToLower(path.Ext(l.Members[0].Path)); ext {
	case ".safetensors", ".gguf", ".onnx":
		return "weight", ext[1:]
	case ".md", ".txt", ".pdf":
		return "doc", ""
	case ".py", ".sh", ".ipynb":
		return "code", ""
	case ".json", ".yaml", ".yml", ".jinja", ".model":
		return "weight.config", ""
	default:
		return "weight", ""
	}
}
