package peer

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// modelFiles are those of a model of two layers.
func modelFiles(seed uint64) map[string][]byte {
	weights := make([]byte, 3<<20+12345)
	storetest.Fill(weights, seed)
	return map[string][]byte{
		"config.json": []byte(`{"layers": 2}`), "empty": {}, "weights/a.safetensors": weights,
		"weights/b.safetensors": bytes.Repeat([]byte{byte(seed)}, 700_001),
	}
}

func writeFiles(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *region) open(tag string) *registry.Repository {
	r.t.Helper()
	repo, err := registry.Open(r.reference(tag), registry.Config{
		PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential),
		Retry: registry.Retry{Tries: 2, Base: time.Millisecond, Max: 2 * time.Millisecond},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(repo.Close)
	return repo
}

// push makes a Shoal image of files.
func (r *region) push(tag string, files map[string][]byte) *model.Image {
	r.t.Helper()
	dir := r.t.TempDir()
	writeFiles(r.t, dir, files)
	from, err := source.NewDir(dir, "", nil)
	if err != nil {
		r.t.Fatal(err)
	}
	repo := r.open(tag)
	result, err := model.Pack(r.t.Context(), model.PackConfig{Source: from, Target: repo, Tag: tag})
	if err != nil {
		r.t.Fatal(err)
	}
	return result.Image
}

// pushRaw makes a ModelPack image whose layers are the files themselves.
func (r *region) pushRaw(tag string, files map[string][]byte) ocispec.Manifest {
	r.t.Helper()
	repo := r.open(tag)
	push := func(mediaType string, content []byte, annotations map[string]string) ocispec.Descriptor {
		r.t.Helper()
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content)), Annotations: annotations}
		if err := repo.Push(r.t.Context(), desc, bytes.NewReader(content)); err != nil {
			r.t.Fatal(err)
		}
		return desc
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = push("application/vnd.cncf.model.config.v1+json", []byte("{}"), nil)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		m.Layers = append(m.Layers, push("application/vnd.cncf.model.weight.v1.raw", files[name], map[string]string{"org.cncf.model.filepath": name}))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.PushReference(r.t.Context(), desc, bytes.NewReader(raw), tag); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// tree is where the node publishes the model called name.
func (n *node) tree(name string) string {
	return filepath.Join(n.dir, "store", "models", "by-name", name)
}

// checkTree compares a published model with its files.
func (n *node) checkTree(name string, files map[string][]byte) {
	n.t.Helper()
	root := os.DirFS(n.tree(name) + "/")
	got := map[string]bool{}
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, path)
		if want, ok := files[path]; err == nil && (!ok || !bytes.Equal(content, want)) {
			n.t.Errorf("%s: file %s of %s has other bytes", n.name, path, name)
		}
		got[path] = true
		return err
	})
	if err != nil || len(got) != len(files) {
		n.t.Errorf("%s: %s has %d files of %d, %v", n.name, name, len(got), len(files), err)
	}
}

// unlockTree lets t.TempDir remove read-only folders where the tests do not run as root.
func unlockTree(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o755)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// flip inverts a byte of a file, read-only or not.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, info.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
}

// read returns what the repository of tag has for desc.
func (r *region) read(tag string, desc ocispec.Descriptor) []byte {
	r.t.Helper()
	body, err := r.open(tag).Fetch(r.t.Context(), desc)
	if err != nil {
		r.t.Fatal(err)
	}
	defer body.Close()
	raw, err := io.ReadAll(body)
	if err != nil {
		r.t.Fatal(err)
	}
	return raw
}
