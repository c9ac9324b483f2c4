package model

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/memory"
)

// bytesSource is a model in memory.
type bytesSource map[string]string

func (s bytesSource) List(context.Context) ([]File, error) {
	var files []File
	for p, c := range s {
		files = append(files, File{Path: p, Size: int64(len(c))})
	}
	return files, nil
}

func (s bytesSource) Open(_ context.Context, p string, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(s[p][offset:])), nil
}

// forgery is a model image whose parts a test makes wrong before it is published.
type forgery struct {
	layers   []Layer
	tars     [][]byte
	config   func(*ocispec.Image)
	manifest func(*ocispec.Manifest)
	index    func(*ocispec.Index)
	table    func([]byte) []byte
}

func newForgery(t testing.TB, files bytesSource) *forgery {
	t.Helper()
	list, err := files.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	layers, groups, err := planLayers(list)
	if err != nil {
		t.Fatal(err)
	}
	f := &forgery{}
	for i := range layers {
		var read atomic.Int64
		stream := newLayerStream(files, layers[i], groups[i], &read)
		raw := make([]byte, layers[i].Size)
		if _, err := stream.fill(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
		layer, _ := stream.finish()
		f.layers = append(f.layers, layer)
		f.tars = append(f.tars, raw)
	}
	return f
}

// replaceTar swaps a layer's bytes and makes digest and root agree, as a real forger would.
func (f *forgery) replaceTar(i int, raw []byte) {
	var hasher PieceHasher
	hasher.Write(raw)
	hashes, root := hasher.Sum()
	wire, _ := hashes.MarshalBinary()
	f.tars[i] = raw
	f.layers[i].Digest, f.layers[i].Root, f.layers[i].Hashes = digest.FromBytes(raw), root, digest.FromBytes(wire)
}

// publish writes the image under the tag "t" of a new store.
func (f *forgery) publish(t testing.TB) *memory.Store {
	t.Helper()
	store := memory.New()
	push := func(d document) ocispec.Descriptor {
		t.Helper()
		if ok, err := store.Exists(t.Context(), d.desc); err != nil || ok {
			return d.desc
		}
		if err := store.Push(t.Context(), d.desc, bytes.NewReader(d.raw)); err != nil {
			t.Fatal(err)
		}
		return d.desc
	}
	docs, err := buildDocuments(f.layers)
	if err != nil {
		t.Fatal(err)
	}
	var config ocispec.Image
	var manifest ocispec.Manifest
	var index ocispec.Index
	for raw, into := range map[*document]any{&docs.blobs[0]: &config, &docs.manifests[0]: &manifest, &docs.index: &index} {
		if err := json.Unmarshal(raw.raw, into); err != nil {
			t.Fatal(err)
		}
	}
	if f.table != nil {
		table := push(rawDocument(MediaTypeMembers, f.table(docs.table.raw)))
		manifest.Annotations[AnnotationMembers] = table.Digest.String()
		manifest.Annotations[AnnotationMembersSize] = strconv.FormatInt(table.Size, 10)
	}
	push(docs.table)
	for i, raw := range f.tars {
		push(document{ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: f.layers[i].Digest, Size: int64(len(raw))}, raw})
	}
	if f.config != nil {
		f.config(&config)
	}
	d, err := newDocument(ocispec.MediaTypeImageConfig, config)
	if err != nil {
		t.Fatal(err)
	}
	manifest.Config = push(d)
	if f.manifest != nil {
		f.manifest(&manifest)
	}
	if d, err = newDocument(ocispec.MediaTypeImageManifest, manifest); err != nil {
		t.Fatal(err)
	}
	platform := index.Manifests[0].Platform
	index.Manifests[0] = push(d)
	index.Manifests[0].Platform = platform
	if f.index != nil {
		f.index(&index)
	}
	if d, err = newDocument(ocispec.MediaTypeImageIndex, index); err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(t.Context(), push(d), "t"); err != nil {
		t.Fatal(err)
	}
	return store
}

var smallModel = bytesSource{"a.json": "{}", "sub/b.txt": "hello", "sub/c.txt": ""}

func TestPullRefusesHostileImages(t *testing.T) {
	tests := map[string]struct {
		forge func(f *forgery)
		want  string
	}{
		"untouched": {func(*forgery) {}, ""},
		"path leaves the tree": {func(f *forgery) {
			f.layers[0].Members[0].Path = "../a.json"
		}, "leaves the tree"},
		"absolute path": {func(f *forgery) {
			f.layers[0].Members[0].Path = "/etc/passwd"
		}, "is absolute"},
		"whiteout": {func(f *forgery) {
			f.layers[0].Members[0].Path = ".wh.a"
		}, "whiteout"},
		"duplicate": {func(f *forgery) {
			f.layers[1].Members[1].Path = f.layers[1].Members[0].Path
		}, "appears twice"},
		"duplicate over layers": {func(f *forgery) {
			f.layers = append(f.layers, f.layers[0])
			f.tars = append(f.tars, f.tars[0])
		}, "appears twice"},
		"case clash": {func(f *forgery) {
			f.layers[1].Members[1].Path = "sub/B.txt"
			slices.Reverse(f.layers[1].Members)
		}, "only by case"},
		"file is a directory": {func(f *forgery) {
			f.layers[0].Members[0].Path = "sub"
		}, "both a file and a directory"},
		"not sorted": {func(f *forgery) { slices.Reverse(f.layers[1].Members) }, "not sorted"},
		"wrong member size": {func(f *forgery) {
			f.layers[0].Members[0].Size = 1 << 20
		}, "its members make"},
		"negative size": {func(f *forgery) { f.layers[0].Members[0].Size = -1 }, "out of range"},
		"huge size":     {func(f *forgery) { f.layers[0].Members[0].Size = 1<<63 - 1 }, "out of range"},
		"wrong offset":  {func(f *forgery) { f.layers[0].Members[0].Offset = 8192 }, "format 1 puts it"},
		"no members": {func(f *forgery) {
			f.table = func(raw []byte) []byte {
				return bytes.Replace(raw, []byte(`"members":[{`), []byte(`"members":[],"x":[{`), 1)
			}
		}, "no members"},
		"no root":          {func(f *forgery) { f.layers[0].Root = Hash{} }, "no pieces root"},
		"digest of sha512": {func(f *forgery) { f.layers[0].Hashes = digest.SHA512.FromString("") }, "not a sha256"},
		"wrong member digest": {func(f *forgery) {
			f.layers[1].Members[0].SHA256 = digest.FromString("other")
		}, "the member table says"},
		"tar with other content": {func(f *forgery) {
			f.replaceTar(0, bytes.Replace(f.tars[0], []byte("{}"), []byte("[]"), 1))
		}, "the member table says"},
		"tar with another name": {func(f *forgery) {
			f.replaceTar(0, bytes.Replace(f.tars[0], []byte("a.json"), []byte("b.json"), 1))
		}, "contradicts the member table"},
		"tar with a link": {func(f *forgery) {
			raw := bytes.Clone(f.tars[0])
			raw[4096-tarBlock+156] = tar.TypeSymlink
			f.replaceTar(0, raw)
		}, "contradicts the member table"},
		"tar with bytes in the padding": {func(f *forgery) {
			raw := bytes.Clone(f.tars[0])
			raw[4096+2] = 'x'
			f.replaceTar(0, raw)
		}, "contradicts the member table"},
		"annotation names another file": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers[0].Annotations[AnnotationFilePath] = "b.json" }
		}, AnnotationFilePath},
		"annotation has another size": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) {
				m.Layers[0].Annotations[AnnotationFileMetadata] = `{"name":"a.json","mode":292,"size":3,"mtime":"1970-01-01T00:00:00Z","typeflag":48}`
			}
		}, "describes another file"},
		"annotation is no JSON": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers[0].Annotations[AnnotationFileMetadata] = `{` }
		}, AnnotationFileMetadata},
		"annotation has another root": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers[0].Annotations[AnnotationRoot] = f.layers[1].Root.String() }
		}, AnnotationRoot},
		"compressed layer": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip }
		}, "not an uncompressed tar"},
		"manifest has another size": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers[0].Size++ }
		}, "manifest says"},
		"too many layers": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, MaxLayers) }
		}, "it may have 1 to 256"},
		"table has more layers": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] }
			f.config = func(c *ocispec.Image) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] }
		}, "its member table 2"},
		"config lists other layers": {func(f *forgery) {
			f.config = func(c *ocispec.Image) { slices.Reverse(c.RootFS.DiffIDs) }
		}, "other layers than the manifest"},
		"huge config": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }
		}, "the limit is"},
		"huge manifest": {func(f *forgery) {
			f.index = func(i *ocispec.Index) { i.Manifests[0].Size = MaxManifest + 1 }
		}, "the limit is"},
		"huge table": {func(f *forgery) {
			f.manifest = func(m *ocispec.Manifest) { m.Annotations[AnnotationMembersSize] = fmt.Sprint(MaxTable + 1) }
		}, "the limit is"},
		"table is no JSON": {func(f *forgery) {
			f.table = func([]byte) []byte { return []byte("[{]") }
		}, "invalid character"},
		"another format": {func(f *forgery) {
			f.index = func(i *ocispec.Index) { i.Annotations[AnnotationFormat] = "2" }
		}, "use a newer Shoal"},
		"no format": {func(f *forgery) {
			f.index = func(i *ocispec.Index) { i.Annotations = nil }
		}, ErrNotShoal.Error()},
		"no linux/amd64": {func(f *forgery) {
			f.index = func(i *ocispec.Index) { i.Manifests = nil }
		}, "linux/amd64"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newForgery(t, smallModel)
			tc.forge(f)
			store := f.publish(t)
			parent := t.TempDir()
			_, err := Pull(t.Context(), store, "t", filepath.Join(parent, "out"), PullConfig{})
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func TestFetchHashLayerRefusesWrongRoot(t *testing.T) {
	f := newForgery(t, smallModel)
	store := memory.New()
	l := f.layers[0]
	other := f.layers[1].Root
	l.Hashes = digest.FromBytes(other[:])
	d := document{hashLayerDescriptor(l), other[:]}
	if err := store.Push(t.Context(), d.desc, bytes.NewReader(d.raw)); err != nil {
		t.Fatal(err)
	}
	if _, err := FetchHashLayer(t.Context(), store, l); !errors.Is(err, ErrRootMismatch) {
		t.Errorf("hash layer of other bytes: %v", err)
	}
}
