package foreign

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/content/memory"

	"github.com/shoal-project/shoal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// entry is a member of a tar.
type entry struct {
	name string
	body string // of a file; the target of a link
	kind byte   // 0: a file
	mode int64
}

func file(name, body string) entry { return entry{name: name, body: body} }
func dir(name string) entry        { return entry{name: name, kind: tar.TypeDir} }
func sym(name, to string) entry    { return entry{name: name, body: to, kind: tar.TypeSymlink} }
func hard(name, to string) entry   { return entry{name: name, body: to, kind: tar.TypeLink} }

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644 | e.mode}
		switch e.kind {
		case 0:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.body))
		case tar.TypeLink, tar.TypeSymlink:
			h.Linkname = e.body
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(e.body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// fake is an image whose blobs are at hand.
type fake struct {
	Image
	blobs map[digest.Digest][]byte
}

func newFake(kind Kind) *fake {
	return &fake{Image: Image{Kind: kind}, blobs: map[digest.Digest][]byte{}}
}

func (f *fake) add(e Encoding, path string, blob []byte) *fake {
	d := digest.FromBytes(blob)
	f.blobs[d] = blob
	f.Layers = append(f.Layers, Layer{Digest: d, Size: int64(len(blob)), Encoding: e, Path: path})
	return f
}

func (f *fake) open(l Layer) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.blobs[l.Digest])), nil
}

// tree lists a folder: files by content, links by "-> target", folders by "/".
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == root {
			return err
		}
		name := strings.TrimPrefix(at, root+"/")
		switch {
		case d.IsDir():
			out[name] = "/"
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(at)
			out[name] = "-> " + to
			return err
		default:
			b, err := os.ReadFile(at)
			out[name] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unlock(root string) {
	_ = filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(at, 0o755)
		}
		return err
	})
}

func TestUnpack(t *testing.T) {
	for name, c := range map[string]struct {
		image *fake
		want  map[string]string
	}{
		"modelpack: raw and tar": {
			newFake(ModelPack).add(Raw, "weights/a.bin", []byte("aaa")).add(Tar, "", makeTar(t, file("config.json", "{}"), dir("sub/"), file("sub/x", "x"))),
			map[string]string{"weights": "/", "weights/a.bin": "aaa", "config.json": "{}", "sub": "/", "sub/x": "x"},
		},
		"kitops: gzip": {
			newFake(KitOps).add(TarGzip, "", gzipped(t, makeTar(t, file("./model.gguf", "gguf")))),
			map[string]string{"model.gguf": "gguf"},
		},
		"image: later layers win": {
			newFake(Plain).
				add(TarGzip, "", gzipped(t, makeTar(t, dir("m"), file("m/a", "1"), file("m/b", "1"), file("m/c", "1"), file("f", "file")))).
				add(TarZstd, "", zstded(t, makeTar(t, file("m/a", "22"), file("m/.wh.b", ""), dir("f"), file("f/g", "g")))),
			map[string]string{"m": "/", "m/a": "22", "m/c": "1", "f": "/", "f/g": "g"},
		},
		"image: opaque folder": {
			newFake(Plain).
				add(Tar, "", makeTar(t, file("m/a", "1"), file("m/s/b", "1"))).
				add(Tar, "", makeTar(t, file("m/new", "2"), file("m/.wh..wh..opq", ""))),
			map[string]string{"m": "/", "m/new": "2"},
		},
		"image: links": {
			newFake(Plain).add(Tar, "", makeTar(t, file("/data/x", "x"), hard("data/y", "data/x"), sym("data/z", "x"), sym("data/abs", "/data/x"), sym("up", "data/../data"))),
			map[string]string{"data": "/", "data/x": "x", "data/y": "x", "data/z": "-> x", "data/abs": "-> ../data/x", "up": "-> data"},
		},
		"image: devices and pipes are left out": {
			newFake(Plain).add(Tar, "", makeTar(t, file("a", "a"), entry{name: "dev/null", kind: tar.TypeChar}, entry{name: "pipe", kind: tar.TypeFifo})),
			map[string]string{"a": "a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			t.Cleanup(func() { unlock(at) })
			if err := Unpack(t.Context(), at, &c.image.Image, c.image.open, Options{}); err != nil {
				t.Fatal(err)
			}
			got := tree(t, at)
			if !maps.Equal(got, c.want) {
				t.Errorf("%v\nwant %v", got, c.want)
			}
			for name := range got {
				info, err := os.Lstat(filepath.Join(at, name))
				if err != nil {
					t.Fatal(err)
				}
				if m := info.Mode(); m&(fs.ModeSetuid|fs.ModeSetgid) != 0 || m&fs.ModeSymlink == 0 && m.Perm()&0o222 != 0 {
					t.Errorf("%s has mode %s", name, m)
				}
			}
		})
	}
}

func TestHostile(t *testing.T) {
	long := strings.Repeat("d/", maxDepth+1) + "f"
	for name, c := range map[string]struct {
		image *fake
		opts  Options
		want  string
	}{
		"out of the tree":             {image: newFake(Plain).add(Tar, "", makeTar(t, file("../evil", "x"))), want: "out of the tree"},
		"out in the middle":           {image: newFake(Plain).add(Tar, "", makeTar(t, file("a/../../evil", "x"))), want: "out of the tree"},
		"absolute in an artifact":     {image: newFake(ModelPack).add(Tar, "", makeTar(t, file("/evil", "x"))), want: "absolute"},
		"raw path out":                {image: newFake(ModelPack).add(Raw, "../evil", []byte("x")), want: "out of the tree"},
		"link out, absolute":          {image: newFake(KitOps).add(Tar, "", makeTar(t, sym("l", "/etc"))), want: "out of the tree"},
		"link out, relative":          {image: newFake(Plain).add(Tar, "", makeTar(t, sym("a/l", "../../evil"))), want: "out of the tree"},
		"write through a link":        {image: newFake(Plain).add(Tar, "", makeTar(t, sym("l", "."), file("l/evil", "x"))), want: "no folder"},
		"remove through a link":       {image: newFake(Plain).add(Tar, "", makeTar(t, dir("d"), file("d/f", ""), sym("l", "d"), file("l/.wh.f", ""))), want: "no folder"},
		"whiteout of the folder":      {image: newFake(Plain).add(Tar, "", makeTar(t, file("d/.wh..", ""))), want: "no proper name"},
		"whiteout of the one above":   {image: newFake(Plain).add(Tar, "", makeTar(t, file("d/.wh...", ""))), want: "no proper name"},
		"whiteout in an artifact":     {image: newFake(ModelPack).add(Tar, "", makeTar(t, file(".wh.x", ""))), want: ".wh."},
		"hard link out":               {image: newFake(Plain).add(Tar, "", makeTar(t, hard("l", "../../etc/passwd"))), want: "out of the tree"},
		"hard link to nothing":        {image: newFake(Plain).add(Tar, "", makeTar(t, hard("l", "none"))), want: "no file of the tree"},
		"hard link to a link":         {image: newFake(Plain).add(Tar, "", makeTar(t, sym("s", "x"), hard("l", "s"))), want: "no file of the tree"},
		"twice in an artifact":        {image: newFake(ModelPack).add(Tar, "", makeTar(t, file("a", "1"))).add(Raw, "a", []byte("2")), want: "exists"},
		"twice in one tar":            {image: newFake(KitOps).add(Tar, "", makeTar(t, file("a", "1"), file("a", "2"))), want: "is there already"},
		"too deep":                    {image: newFake(Plain).add(Tar, "", makeTar(t, file(long, "x"))), want: "folders deep"},
		"a file as the tree":          {image: newFake(Plain).add(Tar, "", makeTar(t, file(".", "x"))), want: "the tree itself"},
		"a bomb":                      {image: newFake(Plain).add(TarGzip, "", gzipped(t, makeTar(t, file("zeros", strings.Repeat("0", 1<<20))))), opts: Options{MaxBytes: 1 << 19}, want: "may have 524288 in all"},
		"many members":                {image: newFake(Plain).add(Tar, "", makeTar(t, file("a", ""), file("b", ""))), opts: Options{MaxEntries: 1}, want: "more than 1 members"},
		"gzip cut off":                {image: newFake(Plain).add(TarGzip, "", gzipped(t, makeTar(t, file("a", strings.Repeat("a", 4096))))[:40]), want: "unexpected EOF"},
		"gzip that is none":           {image: newFake(Plain).add(TarGzip, "", []byte("hello")), want: "gzip"},
		"zstd that is none":           {image: newFake(Plain).add(TarZstd, "", []byte("hello, world")), want: "magic"},
		"tar that is none":            {image: newFake(Plain).add(Tar, "", bytes.Repeat([]byte("x"), 1024)), want: "tar"},
		"a raw layer that is shorter": {image: func() *fake { f := newFake(ModelPack).add(Raw, "a", []byte("abc")); f.Layers[0].Size = 4; return f }(), want: "ends after 3 of 4"},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			at := filepath.Join(above, "deep", "tree")
			if err := os.MkdirAll(at, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unlock(above) })
			err := Unpack(t.Context(), at, &c.image.Image, c.image.open, c.opts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
			if _, ok := errors.AsType[*LayerError](err); !ok {
				t.Errorf("the error does not name the layer: %v", err)
			}
			if outside := slices.DeleteFunc(slices.Collect(maps.Keys(tree(t, above))), func(s string) bool {
				return s == "deep" || strings.HasPrefix(s, "deep/tree")
			}); len(outside) > 0 {
				t.Errorf("written outside the tree: %v", outside)
			}
		})
	}
}

func TestUnpackLinksRawLayers(t *testing.T) {
	f := newFake(ModelPack).add(Raw, "w/a.bin", []byte("weights"))
	blob := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(blob, []byte("weights"), 0o444); err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	t.Cleanup(func() { unlock(at) })
	if err := Unpack(t.Context(), at, &f.Image, f.open, Options{Link: func(Layer) string { return blob }}); err != nil {
		t.Fatal(err)
	}
	a, errA := os.Stat(blob)
	b, errB := os.Stat(filepath.Join(at, "w/a.bin"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("a copy: %v, %v", errA, errB)
	}
}

func TestUnpackCancelled(t *testing.T) {
	f := newFake(Plain).add(Tar, "", makeTar(t, file("a", "a")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Unpack(ctx, t.TempDir(), &f.Image, f.open, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

const size3 = 3

func descriptor(mediaType string, annotations ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(mediaType + strings.Join(annotations, "")), Size: size3}
	for i := 0; i+1 < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func manifest(t testing.TB, artifact, config string, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	raw, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifact,
		Config: descriptor(config), Layers: layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParseManifest(t *testing.T) {
	const pack = "application/vnd.cncf.model.config.v1+json"
	for name, c := range map[string]struct {
		raw  []byte
		kind Kind
		want []string // encoding and path of the layers
	}{
		"modelpack": {manifest(t, "application/vnd.cncf.model.manifest.v1+json", pack,
			descriptor("application/vnd.cncf.model.weight.v1.raw", "org.cncf.model.filepath", "a/b.safetensors"),
			descriptor("application/vnd.cncf.model.doc.v1.tar"), descriptor("application/vnd.cncf.model.code.v1.tar+zstd")),
			ModelPack, []string{"raw a/b.safetensors", "tar ", "tar+zstd "}},
		"modelpack by its former name": {manifest(t, "", "application/vnd.cnai.model.config.v1+json",
			descriptor("application/vnd.cnai.model.weight.v1.raw", "org.cnai.model.filepath", "w")), ModelPack, []string{"raw w"}},
		"kitops": {manifest(t, "", "application/vnd.kitops.modelkit.config.v1+json",
			descriptor("application/vnd.kitops.modelkit.model.v1.tar"), descriptor("application/vnd.kitops.modelkit.docs.v1.tar+gzip")),
			KitOps, []string{"tar ", "tar+gzip "}},
		"model runner": {manifest(t, "", "application/vnd.docker.ai.model.config.v0.1+json",
			descriptor("application/vnd.docker.ai.gguf.v3"), descriptor("application/vnd.docker.ai.license", ocispec.AnnotationTitle, "LICENSE"),
			descriptor("application/vnd.docker.ai.vllm.config.tar")),
			ModelRunner, []string{"raw model.gguf", "raw LICENSE", "tar "}},
		"docker": {manifest(t, "", "application/vnd.docker.container.image.v1+json",
			descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip")), Plain, []string{"tar+gzip "}},
		"buildkit": {manifest(t, "", ocispec.MediaTypeImageConfig, descriptor(ocispec.MediaTypeImageLayerZstd)), Plain, []string{"tar+zstd "}},
	} {
		image, err := ParseManifest(c.raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, l := range image.Layers {
			got = append(got, fmt.Sprintf("%s %s", l.Encoding, l.Path))
		}
		if image.Kind != c.kind || !slices.Equal(got, c.want) || image.Size() != size3*int64(len(c.want)) {
			t.Errorf("%s: %s %q of %d bytes", name, image.Kind, got, image.Size())
		}
	}
	negative := descriptor(ocispec.MediaTypeImageLayer)
	negative.Size = -1
	huge := descriptor(ocispec.MediaTypeImageLayer)
	huge.Size = maxSize
	odd := descriptor(ocispec.MediaTypeImageLayer)
	odd.Digest = "sha512:00"
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"helm chart":      {manifest(t, "", "application/vnd.cncf.helm.config.v1+json", descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip")), "helm"},
		"no layers":       {manifest(t, "", pack), "0 layers"},
		"many layers":     {manifest(t, "", pack, slices.Repeat([]ocispec.Descriptor{descriptor("application/vnd.cncf.model.doc.v1.tar")}, MaxLayers+1)...), "1025 layers"},
		"foreign layer":   {manifest(t, "", ocispec.MediaTypeImageConfig, descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), "registries do not hold"},
		"odd layer":       {manifest(t, "", ocispec.MediaTypeImageConfig, descriptor("application/vnd.erofs.layer.v1")), "erofs"},
		"raw, no name":    {manifest(t, "", pack, descriptor("application/vnd.cncf.model.weight.v1.raw")), "without a name"},
		"raw, bad name":   {manifest(t, "", pack, descriptor("application/vnd.cncf.model.weight.v1.raw", "org.cncf.model.filepath", "../x")), ".."},
		"raw, same names": {manifest(t, "", pack, descriptor("application/vnd.cncf.model.weight.v1.raw", "org.cncf.model.filepath", "x"), descriptor("application/vnd.cncf.model.doc.v1.raw", "org.cncf.model.filepath", "x")), "x"},
		"negative size":   {manifest(t, "", ocispec.MediaTypeImageConfig, negative), "out of range"},
		"huge sum":        {manifest(t, "", ocispec.MediaTypeImageConfig, huge, huge), "together"},
		"another digest":  {manifest(t, "", ocispec.MediaTypeImageConfig, odd), "sha256"},
		"no JSON":         {[]byte("{"), "manifest"},
	} {
		if _, err := ParseManifest(c.raw); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", name, err, c.want)
		}
	}
}

func TestResolve(t *testing.T) {
	ctx := t.Context()
	target := memory.New()
	push := func(mediaType string, raw []byte, tags ...string) ocispec.Descriptor {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if err := target.Push(ctx, desc, bytes.NewReader(raw)); err != nil {
			t.Fatal(err)
		}
		for _, tag := range tags {
			if err := target.Tag(ctx, desc, tag); err != nil {
				t.Fatal(err)
			}
		}
		return desc
	}
	image := push(ocispec.MediaTypeImageManifest, manifest(t, "", ocispec.MediaTypeImageConfig, descriptor(ocispec.MediaTypeImageLayerGzip)), "plain")
	attestation := push(ocispec.MediaTypeImageManifest, manifest(t, "", ocispec.MediaTypeImageConfig, descriptor("application/vnd.in-toto+json")))
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	image.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{attestation, image}})
	if err != nil {
		t.Fatal(err)
	}
	push(ocispec.MediaTypeImageIndex, index, "index")
	push(ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[]}`), "empty")
	push("text/plain", []byte("hello"), "text")
	for _, tag := range []string{"plain", "index"} {
		got, err := Resolve(ctx, target, tag)
		if err != nil || got.Manifest.Digest != image.Digest {
			t.Errorf("%s: %+v, %v", tag, got, err)
		}
	}
	if _, err := Resolve(ctx, target, "text"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("text: %v", err)
	}
	for _, tag := range []string{"empty", "none"} {
		if _, err := Resolve(ctx, target, tag); err == nil {
			t.Errorf("%s is resolved", tag)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(manifest(f, "", ocispec.MediaTypeImageConfig, descriptor(ocispec.MediaTypeImageLayer)))
	f.Add(manifest(f, "", "application/vnd.cncf.model.config.v1+json", descriptor("application/vnd.cncf.model.weight.v1.raw", "org.cncf.model.filepath", "a/b")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		image, err := ParseManifest(raw)
		if err != nil {
			return
		}
		for _, l := range image.Layers {
			if l.Encoding == Raw {
				if err := model.CheckPaths([]string{l.Path}); err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add(makeTar(f, file("a/b", "x"), sym("l", "a"), hard("h", "a/b"), file("a/.wh.b", "")), true)
	f.Add(makeTar(f, file("../x", "x")), false)
	f.Fuzz(func(t *testing.T, raw []byte, plain bool) {
		kind := KitOps
		if plain {
			kind = Plain
		}
		above := t.TempDir()
		at := filepath.Join(above, "tree")
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		defer unlock(above)
		image := newFake(kind).add(Tar, "", raw)
		_ = Unpack(t.Context(), at, &image.Image, image.open, Options{MaxBytes: 1 << 20, MaxEntries: 64}) // only its effects matter
		entries, err := os.ReadDir(above)
		if err != nil || len(entries) != 1 {
			t.Errorf("outside the tree: %v, %v", entries, err)
		}
		_ = filepath.WalkDir(at, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type()&fs.ModeSymlink != 0 {
				if to, err := filepath.EvalSymlinks(name); err == nil && to != at && !strings.HasPrefix(to, at+"/") {
					t.Errorf("%s leads to %s", name, to)
				}
			}
			return nil
		})
	})
}
