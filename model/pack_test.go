package model_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

// bytesOf makes n bytes that look random and depend on seed alone.
func bytesOf(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	if _, err := rand.NewChaCha8(key).Read(b); err != nil {
		panic(err) // ChaCha8 never fails
	}
	return b
}

// goldenTree covers the edges of format 1. Its digests are in testdata; it must never change.
func goldenTree() map[string][]byte {
	return map[string][]byte{
		"config.json":                            []byte(`{"architectures":["Qwen3ForCausalLM"]}` + "\n"),
		"empty":                                  {},
		"分词器 tokenizer.json":                     bytesOf(1, 5000),
		"nested/dir/model.py":                    []byte("print('model')\n"),
		"nested/pieces.bin":                      bytesOf(2, 512<<10+1),
		"model-00001.safetensors":                bytesOf(3, 16<<20),
		"model-00002.safetensors":                bytesOf(4, 17<<20+12345),
		strings.Repeat("long/", 25) + "name.txt": []byte("a path of more than 100 bytes\n"),
	}
}

func writeTree(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	old := time.Now().Add(-time.Hour)
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readTree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if info, err := entry.Info(); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files[filepath.ToSlash(rel)], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func newDir(t *testing.T, root, state string) *source.Dir {
	t.Helper()
	dir, err := source.NewDir(root, state, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPackPullRoundTrip(t *testing.T) {
	reg := newRegistry(t)
	repo := reg.open("models/golden")
	tree := goldenTree()
	dir := newDir(t, writeTree(t, tree), t.TempDir())

	var seen atomic.Int64
	result, err := model.Pack(t.Context(), model.PackConfig{Source: dir, Target: repo, Tag: "v1", Progress: func(p model.Progress) {
		if p.Done == p.Size {
			seen.Add(p.Size)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, size := result.Image.Files()
	if dir.BytesRead() != size || result.BytesRead != size {
		t.Errorf("read %d (source) and %d (pack) bytes of a model of %d", dir.BytesRead(), result.BytesRead, size)
	}
	if seen.Load() != result.Image.Size() {
		t.Errorf("progress ended at %d of %d bytes", seen.Load(), result.Image.Size())
	}

	out := filepath.Join(t.TempDir(), "out")
	image, err := model.Pull(t.Context(), repo, "v1", out, model.PullConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(result.Image, image); diff != "" {
		t.Errorf("Pack and Resolve differ: %s", diff)
	}
	if !maps.EqualFunc(tree, readTree(t, out), bytes.Equal) {
		t.Error("the pulled tree is not the packed one")
	}
	if _, err := model.Pull(t.Context(), repo, "v1", out, model.PullConfig{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("pull over a directory: %v", err)
	}

	t.Run("golden digests", func(t *testing.T) { checkGolden(t, result) })
	t.Run("hash layers", func(t *testing.T) {
		for _, l := range image.Layers {
			hashes, err := model.FetchHashLayer(t.Context(), repo, l)
			if err != nil {
				t.Fatal(err)
			}
			tarBytes := fetch(t, repo, ocispec.Descriptor{Digest: l.Digest, Size: l.Size})
			for i, h := range hashes {
				end := min((i+1)*model.HashLayerPiece, len(tarBytes))
				if got := model.PieceHash(tarBytes[i*model.HashLayerPiece:end], model.HashLayerPiece, l.Size); got != h {
					t.Fatalf("piece %d of %s is %s, hash layer says %s", i, l.Digest, got, h)
				}
			}
			checkTar(t, tarBytes, l)
		}
	})
	t.Run("referrer", func(t *testing.T) {
		var found []ocispec.Descriptor
		err := repo.Referrers(t.Context(), image.Index, model.ArtifactTypePieces, func(r []ocispec.Descriptor) error {
			found = append(found, r...)
			return nil
		})
		if err != nil || len(found) != 1 {
			t.Fatalf("referrers %v, %v", found, err)
		}
	})
	t.Run("modelpack", func(t *testing.T) {
		desc, err := repo.Resolve(t.Context(), "v1"+model.ModelPackSuffix)
		if err != nil || desc.Digest != result.ModelPack.Digest {
			t.Fatalf("%v, %v", desc, err)
		}
		if _, err := model.Resolve(t.Context(), repo, "v1"+model.ModelPackSuffix); !errors.Is(err, model.ErrNotShoal) {
			t.Errorf("resolving the ModelPack manifest: %v", err)
		}
	})
}

func fetch(t *testing.T, repo *registry.Repository, desc ocispec.Descriptor) []byte {
	t.Helper()
	rc, err := repo.Fetch(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkTar reads a layer with the standard library.
func checkTar(t *testing.T, raw []byte, l model.Layer) {
	t.Helper()
	if err := l.VerifySkeleton(bytes.NewReader(raw)); err != nil {
		t.Error(err)
	}
	r := tar.NewReader(bytes.NewReader(raw))
	for _, m := range l.Members {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != m.Path || h.Size != m.Size || h.Mode != 0o444 || h.Typeflag != tar.TypeReg || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("archive/tar reads %+v for %+v", h, m)
		}
		content, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(content, raw[m.Offset:m.Offset+m.Size]) {
			t.Errorf("%s: content differs (%v)", m.Path, err)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("after the last member: %v", err)
	}
}

func checkGolden(t *testing.T, result *model.PackResult) {
	t.Helper()
	var b strings.Builder
	for _, l := range result.Image.Layers {
		fmt.Fprintf(&b, "layer %s %d root %s hashes %s\n", l.Digest, l.Size, l.Root, l.Hashes)
		for _, m := range l.Members {
			fmt.Fprintf(&b, "  %q at %d size %d\n", m.Path, m.Offset, m.Size)
		}
	}
	fmt.Fprintf(&b, "table %s\nmanifest %s\nindex %s\nmodelpack %s\n", result.Image.Table.Digest,
		result.Image.Manifest.Digest, result.Image.Index.Digest, result.ModelPack.Digest)
	golden := filepath.Join("testdata", "golden.txt")
	if os.Getenv("SHOAL_TEST_UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("%v; the digests are\n%s", err, b.String())
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("format 1 is permanent, yet the digests changed:\n%s", diff)
	}
}

func TestPackSecondVersion(t *testing.T) {
	reg := newRegistry(t)
	repo := reg.open("models/two")
	tree, state := goldenTree(), t.TempDir()
	root := writeTree(t, tree)
	first, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, root, state), Target: repo, Tag: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	changed := bytesOf(9, 16<<20)
	if err := os.WriteFile(filepath.Join(root, "model-00001.safetensors"), changed, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := newDir(t, root, state)
	second, err := model.Pack(t.Context(), model.PackConfig{Source: dir, Target: repo, Tag: "v2", Previous: []string{"v1", "none"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := len(first.Image.Layers) - 1; second.LayersReused != want {
		t.Errorf("%d layers reused, want %d", second.LayersReused, want)
	}
	if dir.BytesRead() != int64(len(changed)) {
		t.Errorf("%d bytes read for one changed file of %d", dir.BytesRead(), len(changed))
	}
	if extra := second.BytesSent - int64(len(changed)); extra < 0 || extra > 100<<10 {
		t.Errorf("%d bytes sent beyond the changed file", extra)
	}
	tree["model-00001.safetensors"] = changed
	out := filepath.Join(t.TempDir(), "out")
	if _, err := model.Pull(t.Context(), repo, "v2", out, model.PullConfig{Parallel: 1}); err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(tree, readTree(t, out), bytes.Equal) {
		t.Error("the second version's tree is wrong")
	}
}

// TestPackResumes stops a pack in mid-layer, as a kill does: nothing of the first call's memory is
// used by the second.
func TestPackResumes(t *testing.T) {
	const size = 100 << 20
	for name, forget := range map[string]bool{"registry keeps the upload": false, "registry forgot it": true} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			repo := reg.open("models/resume")
			tree := map[string][]byte{"big.safetensors": bytesOf(5, size), "small": bytesOf(6, 1000)}
			root, state := writeTree(t, tree), t.TempDir()

			ctx, cancel := context.WithCancel(t.Context())
			_, err := model.Pack(ctx, model.PackConfig{Source: newDir(t, root, ""), Target: repo, Tag: "v1", StateDir: state, Parallel: 2,
				Progress: func(p model.Progress) {
					if p.Name == "big.safetensors" && p.Done > size/2 {
						cancel()
					}
				}})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("canceled pack: %v", err)
			}
			if forget {
				reg.setFault(func(w http.ResponseWriter, r *http.Request) bool {
					if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/uploads/") {
						http.NotFound(w, r)
						return true
					}
					return false
				})
			}
			dir := newDir(t, root, "")
			result, err := model.Pack(t.Context(), model.PackConfig{Source: dir, Target: repo, Tag: "v1", StateDir: state, Parallel: 2})
			if err != nil {
				t.Fatal(err)
			}
			if read := dir.BytesRead(); forget != (read >= size) || !forget && read > size*6/10 {
				t.Errorf("%d bytes read after the resume", read)
			}
			fresh := newDir(t, root, "")
			again, err := model.Pack(t.Context(), model.PackConfig{Source: fresh, Target: reg.open("models/fresh"), Tag: "v1"})
			if err != nil || again.Image.Index.Digest != result.Image.Index.Digest {
				t.Errorf("resumed and whole pack differ: %v", err)
			}
			out := filepath.Join(t.TempDir(), "out")
			if _, err := model.Pull(t.Context(), repo, "v1", out, model.PullConfig{}); err != nil {
				t.Fatal(err)
			}
			if left, err := filepath.Glob(filepath.Join(state, "pack", "*", "*")); err != nil || len(left) > 0 {
				t.Errorf("state left behind: %v %v", left, err)
			}
		})
	}
}

// zeroSource is a model of one file that takes no disk, and counts.
type zeroSource struct {
	size int64
	read atomic.Int64
}

func (z *zeroSource) List(context.Context) ([]model.File, error) {
	return []model.File{{Path: "weights.bin", Size: z.size, Revision: "1"}}, nil
}

func (z *zeroSource) Open(_ context.Context, _ string, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{z}, z.size-offset)), nil
}

type zeroReader struct{ z *zeroSource }

func (r zeroReader) Read(p []byte) (int, error) {
	clear(p)
	r.z.read.Add(int64(len(p)))
	return len(p), nil
}

// TestPackMemory packs a file and looks at the live heap on the way: it must not grow with the
// file. SHOAL_TEST_PACK_GIB sets another size; at 20 the process stays far below 200 MiB RSS.
func TestPackMemory(t *testing.T) {
	size := int64(64 << 20)
	if gib := os.Getenv("SHOAL_TEST_PACK_GIB"); gib != "" {
		var n int64
		if _, err := fmt.Sscan(gib, &n); err != nil {
			t.Fatal(err)
		}
		size = n << 30
	}
	reg := newRegistry(t)
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	src := &zeroSource{size: size}
	_, err := model.Pack(t.Context(), model.PackConfig{Source: src, Target: reg.open("models/zero"), Tag: "v1", StateDir: t.TempDir(),
		Progress: func(model.Progress) {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse))
		}})
	if err != nil {
		t.Fatal(err)
	}
	if src.read.Load() != size {
		t.Errorf("read %d of %d bytes", src.read.Load(), size)
	}
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > 100<<20 {
		t.Errorf("heap grew by %d MiB", grown>>20)
	}
}

func TestPackRefuses(t *testing.T) {
	repo := newRegistry(t).open("models/bad")
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		prepare func(root string) error
		want    string
	}{
		"link out":   {func(root string) error { return os.Symlink(outside, filepath.Join(root, "link")) }, "link out of"},
		"whiteout":   {func(root string) error { return os.WriteFile(filepath.Join(root, ".wh.a"), nil, 0o644) }, "whiteout"},
		"case clash": {func(root string) error { return os.WriteFile(filepath.Join(root, "A"), nil, 0o644) }, "only by case"},
		"empty":      {func(root string) error { return os.Remove(filepath.Join(root, "a")) }, "no files"},
	} {
		t.Run(name, func(t *testing.T) {
			root := writeTree(t, map[string][]byte{"a": []byte("a")})
			if err := tc.prepare(root); err != nil {
				t.Fatal(err)
			}
			_, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, root, ""), Target: repo, Tag: "bad"})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := repo.Resolve(t.Context(), "bad"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a refused model left a tag: %v", err)
	}
}

func TestPackNoticesChange(t *testing.T) {
	repo := newRegistry(t).open("models/change")
	root := writeTree(t, map[string][]byte{"big": bytesOf(1, 64<<20)})
	var once atomic.Bool
	_, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, root, ""), Target: repo, Tag: "v1", Progress: func(model.Progress) {
		if once.CompareAndSwap(false, true) {
			f, err := os.OpenFile(filepath.Join(root, "big"), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("new"), 0)
				err = errors.Join(err, f.Close())
			}
			if err != nil {
				t.Error(err)
			}
		}
	}})
	if !errors.Is(err, source.ErrChanged) {
		t.Errorf("a file that changed meanwhile: %v", err)
	}
}
