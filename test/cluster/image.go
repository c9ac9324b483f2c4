package cluster

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
)

// Image is a container image, made without a daemon and in memory.
type Image struct {
	Entrypoint []string
	Layers     []Files
	Gzip       bool   // the layers
	Arch       string // this machine's where empty
}

// Files are the files of a layer: by path in the image, the file here.
type Files map[string]string

// blob is a part of an image.
type blob struct {
	ocispec.Descriptor
	content []byte
}

func newBlob(mediaType string, content []byte) blob {
	return blob{ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}, content}
}

// blobs returns the parts of the image, the manifest last.
func (im Image) blobs() ([]blob, error) {
	var all []blob
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: cmp.Or(im.Arch, runtime.GOARCH), OS: "linux"},
		Config:   ocispec.ImageConfig{Entrypoint: im.Entrypoint},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, files := range im.Layers {
		tarred, err := files.tar()
		if err != nil {
			return nil, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(tarred))
		layer := newBlob(ocispec.MediaTypeImageLayer, tarred)
		if im.Gzip {
			var packed bytes.Buffer
			z := gzip.NewWriter(&packed)
			if _, err := z.Write(tarred); err != nil {
				return nil, err
			}
			if err := z.Close(); err != nil {
				return nil, err
			}
			layer = newBlob(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
		}
		all = append(all, layer)
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	described := newBlob(ocispec.MediaTypeImageConfig, raw)
	manifest.Config = described.Descriptor
	if raw, err = json.Marshal(manifest); err != nil {
		return nil, err
	}
	return append(all, described, newBlob(ocispec.MediaTypeImageManifest, raw)), nil
}

// tar is the tar of the files, and of the folders that they are in.
func (f Files) tar() ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	made := map[string]bool{".": true}
	var folders func(dir string) error
	folders = func(dir string) error {
		if made[dir] {
			return nil
		}
		made[dir] = true
		if err := folders(path.Dir(dir)); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755})
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		content, err := os.ReadFile(f[name])
		if err != nil {
			return nil, err
		}
		inside := path.Clean("/" + name)[1:]
		if err := folders(path.Dir(inside)); err != nil {
			return nil, err
		}
		if err := writeTar(w, inside, content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func writeTar(w *tar.Writer, name string, content []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// WriteTar writes the image as a tar of an OCI layout, for Node.Import. There it has the given reference.
func (im Image) WriteTar(out io.Writer, reference string) error {
	blobs, err := im.blobs()
	if err != nil {
		return err
	}
	root := blobs[len(blobs)-1].Descriptor
	root.Annotations = map[string]string{"io.containerd.image.name": reference, ocispec.AnnotationRefName: reference}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{root},
	})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	if err := writeTar(w, ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := writeTar(w, ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	for _, b := range blobs {
		name := path.Join(ocispec.ImageBlobsDir, b.Digest.Algorithm().String(), b.Digest.Encoded())
		if err := writeTar(w, name, b.content); err != nil {
			return err
		}
	}
	return w.Close()
}

// Push pushes the image to a repository, under the repository's reference. It returns the manifest and the
// size of everything.
func (im Image) Push(ctx context.Context, to *remote.Repository) (root ocispec.Descriptor, size int64, err error) {
	blobs, err := im.blobs()
	if err != nil {
		return root, 0, err
	}
	store := memory.New()
	for _, b := range blobs {
		size += b.Size
		if err := store.Push(ctx, b.Descriptor, bytes.NewReader(b.content)); err != nil && !errors.Is(err, errdef.ErrAlreadyExists) {
			return root, 0, err
		}
	}
	root = blobs[len(blobs)-1].Descriptor
	if err := store.Tag(ctx, root, to.Reference.Reference); err != nil {
		return root, 0, err
	}
	_, err = oras.Copy(ctx, store, to.Reference.Reference, to, to.Reference.Reference, oras.DefaultCopyOptions)
	return root, size, err
}

// PushIndex pushes an image that is one for each of some architectures.
func PushIndex(ctx context.Context, to *remote.Repository, images ...Image) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, im := range images {
		root, _, err := im.Push(ctx, to)
		if err != nil {
			return err
		}
		root.Platform = &ocispec.Platform{Architecture: cmp.Or(im.Arch, runtime.GOARCH), OS: "linux"}
		index.Manifests = append(index.Manifests, root)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	b := newBlob(index.MediaType, raw)
	return to.PushReference(ctx, b.Descriptor, bytes.NewReader(raw), to.Reference.Reference)
}

// pauseReference is what containerd knows the image of a pod's first container by.
const pauseReference = "shoal.test/pause:1"

// writePause writes the image of a pod's first container.
func (w *World) writePause() error {
	f, err := os.Create(w.pauseTar())
	if err != nil {
		return err
	}
	im := Image{Entrypoint: []string{"/pause"}, Layers: []Files{{"pause": w.tool("pause")}}}
	if err := im.WriteTar(f, pauseReference); err != nil {
		f.Close()
		return fmt.Errorf("image %s: %w", pauseReference, err)
	}
	return f.Close()
}
