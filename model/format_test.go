package model

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestCheckPath(t *testing.T) {
	for _, good := range []string{"a", "a/b.txt", "分词器 tokenizer.json", "..a/b..", ".hidden", "wh.a", strings.Repeat("x", 255)} {
		if err := CheckPath(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "/", "/a", "..", "a/..", "../a", "a/../b", ".", "./a", "a//b", "a/", "a\x00b", "a\nb", "a\\b",
		"\xff", ".wh.a", "a/.wh..wh..opq", strings.Repeat("x", 256), strings.Repeat("x/", 512) + "x"} {
		var refused *PathError
		if err := CheckPath(bad); !errors.As(err, &refused) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCheckPaths(t *testing.T) {
	for name, tc := range map[string]struct {
		paths []string
		good  bool
	}{
		"siblings":            {[]string{"a", "b", "c/a", "c/b"}, true},
		"duplicate":           {[]string{"a", "a"}, false},
		"case":                {[]string{"a", "A"}, false},
		"case of a directory": {[]string{"d/a", "D/b"}, false},
		"case beyond ASCII":   {[]string{"straße/é", "straße/É"}, false},
		"Kelvin":              {[]string{"k", "\u212a"}, false},
		"file and directory":  {[]string{"a/b", "a"}, false},
		"directory of a file": {[]string{"a", "a/b"}, false},
	} {
		if err := CheckPaths(tc.paths); (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// skeletonReader gives a layer's skeleton and zeros for content, without holding either.
type skeletonReader struct {
	l Layer
}

func (r skeletonReader) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	_ = r.l.Skeleton(func(at int64, b []byte) error {
		if at < off+int64(len(p)) && off < at+int64(len(b)) {
			copy(p[max(at-off, 0):], b[max(off-at, 0):])
		}
		return nil
	})
	if n := r.l.Size - off; int64(len(p)) > n {
		return int(max(n, 0)), io.EOF
	}
	return len(p), nil
}

// TestSkeleton reads our tars with the standard library, at every length of record that matters.
func TestSkeleton(t *testing.T) {
	files := []File{{Path: "huge.bin", Size: 8 << 30}, {Path: "just.bin", Size: 8<<30 - 1}, {Path: "empty"}, {Path: "模型/权重.bin", Size: 4096}}
	for n := range 130 {
		files = append(files, File{Path: fmt.Sprintf("dir%03d/%s", n, strings.Repeat("x/", n)+"f"), Size: int64(n * 37)})
	}
	l, err := NewLayer(files)
	if err != nil {
		t.Fatal(err)
	}
	reader := skeletonReader{l}
	if err := l.VerifySkeleton(reader); err != nil {
		t.Error(err)
	}
	tr := tar.NewReader(io.NewSectionReader(reader, 0, l.Size))
	for _, m := range l.Members {
		if m.Offset%memberAlign != 0 {
			t.Errorf("%s begins at %d", m.Path, m.Offset)
		}
	}
	// archive/tar seeks over content when it can, so that 16 GiB cost nothing.
	for _, m := range l.Members {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("%s: %v", m.Path, err)
		}
		if h.Name != m.Path || h.Size != m.Size || h.Uid != 0 || h.Gid != 0 || h.Mode != 0o444 {
			t.Errorf("archive/tar reads %q of %d bytes for %q of %d", h.Name, h.Size, m.Path, m.Size)
		}
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

func TestExtentsCoverLayer(t *testing.T) {
	l, err := NewLayer([]File{{Path: "a"}, {Path: "b", Size: 1}, {Path: "c"}, {Path: "d"}, {Path: "e", Size: 4096}, {Path: "f"}})
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	last := 0
	for _, e := range l.Extents() {
		if e.Offset != at || e.Size <= 0 || e.Member == last {
			t.Errorf("extent %+v after byte %d of %d", e, at, last)
		}
		if e.Member >= 0 && (e.Offset != l.Members[e.Member].Offset || e.Size != l.Members[e.Member].Size) {
			t.Errorf("extent %+v is not member %+v", e, l.Members[e.Member])
		}
		at += e.Size
		last = e.Member
	}
	if at != l.Size || last != -1 {
		t.Errorf("extents end at %d of %d, in %d", at, l.Size, last)
	}
}

func TestPlanLayers(t *testing.T) {
	many := func(dirs, files int, size int64) []File {
		var out []File
		for d := range dirs {
			for f := range files {
				out = append(out, File{Path: fmt.Sprintf("top/d%04d/x/y/f%04d", d, f), Size: size})
			}
		}
		return out
	}
	for name, tc := range map[string]struct {
		files []File
		want  int
	}{
		"one small":                {[]File{{Path: "a", Size: 1}}, 1},
		"big files stand alone":    {[]File{{Path: "a", Size: ownLayer}, {Path: "b", Size: ownLayer - 1}, {Path: "c", Size: 1}}, 2},
		"directories stand alone":  {[]File{{Path: "a/x", Size: 1}, {Path: "b/x", Size: 1}, {Path: "x", Size: 1}}, 3},
		"a group has a limit":      {many(1, 33, 15<<20), 2},
		"256 layers are allowed":   {many(128, 2, ownLayer), 256},
		"300 directories":          {many(300, 1, 1), 1},
		"300 files of 20 MiB":      {many(1, 300, 20<<20), 12},
		"a thousand files of 1 GB": {many(1, 1000, 1<<30), 32},
	} {
		t.Run(name, func(t *testing.T) {
			layers, groups, err := planLayers(tc.files)
			if err != nil {
				t.Fatal(err)
			}
			if len(layers) != tc.want || len(groups) != tc.want {
				t.Errorf("%d layers, want %d", len(layers), tc.want)
			}
			n := 0
			for i, l := range layers {
				n += len(l.Members)
				for m := range l.Members {
					if l.Members[m].Path != groups[i][m].Path {
						t.Fatalf("layer %d: member %d is %q, file %q", i, m, l.Members[m].Path, groups[i][m].Path)
					}
				}
			}
			if n != len(tc.files) {
				t.Errorf("%d members of %d files", n, len(tc.files))
			}
		})
	}
}

func TestContentHash(t *testing.T) {
	for checksum, good := range map[string]bool{
		"":                                     true,
		"etag:whatever":                        true,
		"crc64-ecma:11051210869376104954":      true, // "123456789", the catalogue's check value of CRC-64/XZ
		"crc64-ecma:1":                         false,
		"md5:25f9e794323b453885f5181f1b624d0b": true,
		"md5:00":                               false,
		"sha256:15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225": true,
		"sha256:00": false,
	} {
		h := newContentHash(checksum)
		h.Write([]byte("123456789"))
		if _, err := h.sum(); (err == nil) != good {
			t.Errorf("%q: %v", checksum, err)
		}
	}
}

func FuzzVerifySkeleton(f *testing.F) {
	f.Add("a", "b/c", uint16(1), uint16(4096), uint32(0), byte(1))
	f.Add("模", strings.Repeat("x", 120), uint16(0), uint16(513), uint32(4096+156), byte(2))
	f.Fuzz(func(t *testing.T, p1, p2 string, s1, s2 uint16, at uint32, flip byte) {
		l, err := NewLayer([]File{{Path: p1, Size: int64(s1)}, {Path: p2, Size: int64(s2)}})
		if err != nil {
			return
		}
		raw := make([]byte, l.Size)
		if n, err := (skeletonReader{l}).ReadAt(raw, 0); n != len(raw) {
			t.Fatal(err)
		}
		if err := l.VerifySkeleton(bytes.NewReader(raw)); err != nil {
			t.Fatal(err)
		}
		tr := tar.NewReader(bytes.NewReader(raw))
		for _, m := range l.Members {
			if h, err := tr.Next(); err != nil || h.Name != m.Path || h.Size != m.Size {
				t.Fatalf("archive/tar reads %+v (%v) for %+v", h, err, m)
			}
		}
		i := int64(at) % l.Size
		raw[i] ^= flip
		var wrong *SkeletonError
		content := false
		for _, m := range l.Members {
			content = content || i >= m.Offset && i < m.Offset+m.Size
		}
		if err := l.VerifySkeleton(bytes.NewReader(raw)); errors.As(err, &wrong) == (content || flip == 0) {
			t.Fatalf("byte %d changed by %d: %v", i, flip, err)
		}
		if l.VerifySkeleton(bytes.NewReader(raw[:l.Size-1])) == nil {
			t.Fatal("a short tar was accepted")
		}
	})
}

func FuzzParseTable(f *testing.F) {
	good := newForgery(f, smallModel)
	raw, err := marshal(good.layers)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`[{"members":[{"path":"a","size":9223372036854775807}]}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		layers, err := ParseTable(raw)
		if err != nil {
			return
		}
		for _, l := range layers {
			at := int64(0)
			for _, e := range l.Extents() {
				if e.Offset != at || e.Size <= 0 {
					t.Fatalf("extent %+v at %d", e, at)
				}
				at += e.Size
			}
			if at != l.Size {
				t.Fatalf("extents end at %d of %d", at, l.Size)
			}
			for _, m := range l.Members {
				if err := CheckPath(m.Path); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func FuzzParseHashLayer(f *testing.F) {
	var hasher PieceHasher
	hasher.Write(make([]byte, 3*HashLayerPiece+1))
	layer, _ := hasher.Sum()
	wire, _ := layer.MarshalBinary()
	f.Add(wire, int64(3*HashLayerPiece+1), byte(0))
	f.Fuzz(func(t *testing.T, wire []byte, size int64, flip byte) {
		if size < 0 || size > 1<<40 {
			return
		}
		var layer HashLayer
		for i := 0; i+32 <= len(wire); i += 32 {
			layer = append(layer, Hash(wire[i:i+32]))
		}
		root := Root(layer, HashLayerPiece, size)
		parsed, err := ParseHashLayer(wire, root, size)
		if err != nil {
			return
		}
		for length := int64(HashLayerPiece); length <= 16<<20; length *= 2 {
			if got := Root(parsed.Pieces(length, size), length, size); got != root {
				t.Fatalf("root at %d is %s", length, got)
			}
		}
		if flip != 0 && len(wire) > 0 {
			wire = bytes.Clone(wire)
			wire[len(wire)-1] ^= flip
			if _, err := ParseHashLayer(wire, root, size); !errors.Is(err, ErrRootMismatch) {
				t.Fatalf("a changed hash layer: %v", err)
			}
		}
	})
}

func FuzzLayerAnnotations(f *testing.F) {
	l := newForgery(f, bytesSource{"a": "x"}).layers[0]
	descs, err := layerDescriptors([]Layer{l})
	if err != nil {
		f.Fatal(err)
	}
	a := descs[0].Annotations
	f.Add(a[AnnotationFilePath], a[AnnotationFileMetadata], a[AnnotationRoot])
	f.Add("../a", `{"size":-1}`, "00")
	f.Fuzz(func(t *testing.T, path, metadata, root string) {
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size, Annotations: map[string]string{
			AnnotationFilePath: path, AnnotationFileMetadata: metadata, AnnotationRoot: root,
		}}
		if CheckLayerDescriptor(desc, l) != nil {
			return
		}
		var got fileMetadata
		if err := json.Unmarshal([]byte(metadata), &got); err != nil || got.Size != 1 || path != "a" || root != l.Root.String() {
			t.Fatalf("accepted %q %q %q", path, metadata, root)
		}
		if digest.Digest(desc.Digest) != l.Digest {
			t.Fatal("digest")
		}
	})
}
