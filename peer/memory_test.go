package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/foreign"
	"github.com/shoal-project/shoal/peer/store/storetest"
	"github.com/shoal-project/shoal/tracker/client"
)

func testContents(tb testing.TB) map[string]*content {
	tb.Helper()
	layer := storetest.NewLayer(tb, 1, map[string]int64{"a": 1000, "b/c": 0})
	manifest := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("manifest"), Size: 100}
	return map[string]*content{
		"ours": {Model: &model.Image{Reference: "v1", Manifest: manifest, Layers: []model.Layer{layer.Layer}}},
		"foreign": {Foreign: &foreign.Image{Kind: foreign.ModelPack, Manifest: manifest, Layers: []foreign.Layer{
			{Digest: layer.Digest, Size: 7, MediaType: "x", Encoding: foreign.Raw, Path: "a"},
			{Digest: layer.Digest, Size: 7, MediaType: "x", Encoding: foreign.Raw, Path: "b"},
		}}},
	}
}

func TestMemory(t *testing.T) {
	m := memory{filepath.Join(t.TempDir(), "node")}
	if models, err := m.desired(); models != nil || err != nil {
		t.Errorf("before the first save: %v, %v", models, err)
	}
	if _, err := m.image("r/m:1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the first save: %v", err)
	}
	for _, models := range [][]client.DesiredModel{{{Name: "a", Reference: "r/a:1", Priority: -3, Tier: client.TierMemory}, {Name: "b", Reference: "r/b:1"}}, {}} {
		if err := m.saveDesired(models); err != nil {
			t.Fatal(err)
		}
		got, err := m.desired()
		if err != nil || !cmp.Equal(got, models) {
			t.Errorf("%v comes back as %v, %v", models, got, err)
		}
	}
	for name, image := range testContents(t) {
		if err := m.saveImage("r/"+name+":1", image); err != nil {
			t.Fatal(err)
		}
	}
	for name, image := range testContents(t) {
		got, err := m.image("r/" + name + ":1")
		if err != nil || !cmp.Equal(got, image) {
			t.Errorf("%s: %s, %v", name, cmp.Diff(image, got), err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(m.dir, "*", ".tmp-*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNoMemory(t *testing.T) {
	m := memory{}
	if err := errors.Join(m.saveDesired([]client.DesiredModel{{Name: "a"}}), m.saveImage("r/m:1", testContents(t)["ours"])); err != nil {
		t.Error(err)
	}
	if models, err := m.desired(); models != nil || err != nil {
		t.Errorf("it remembers %v, %v", models, err)
	}
}

// TestMemoryCannotSave shows that a failed save leaves what was there.
func TestMemoryCannotSave(t *testing.T) {
	m := memory{t.TempDir()}
	if err := m.saveDesired([]client.DesiredModel{{Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "images"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.saveImage("r/m:1", testContents(t)["ours"]); err == nil {
		t.Error("an image is saved into a file's folder")
	}
	if err := m.save(desiredFile, make(chan int)); err == nil {
		t.Error("what is no JSON is saved")
	}
	if got, err := m.desired(); err != nil || len(got) != 1 {
		t.Errorf("left: %v, %v", got, err)
	}
}

func TestHostileMemory(t *testing.T) {
	good := testContents(t)
	raw := func(c *content) string {
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	ours, other := raw(good["ours"]), raw(good["foreign"])
	sum := good["ours"].manifest().String()
	for name, text := range map[string]string{
		"empty":           "",
		"cut off":         ours[:len(ours)/2],
		"null":            "null",
		"another kind":    "[]",
		"nothing":         "{}",
		"both":            ours[:len(ours)-1] + "," + other[1:],
		"no manifest":     strings.Replace(ours, sum, "", 1),
		"odd manifest":    strings.Replace(ours, sum, "sha256:../../x", 1),
		"another hash":    strings.Replace(other, sum, "sha512:"+strings.Repeat("0", 128), 1),
		"no layers":       `{"foreign":{"manifest":{"digest":"` + sum + `"}}}`,
		"no layers of us": `{"model":{"Manifest":{"digest":"` + sum + `"}}}`,
		"null layers":     `{"foreign":{"manifest":{"digest":"` + sum + `"},"layers":[null]}}`,
		"a path outside":  strings.Replace(ours, `"b/c"`, `"../c"`, 1),
		"a negative size": strings.Replace(other, `"size":7`, `"size":-7`, 1),
		"an endless size": strings.ReplaceAll(other, `"size":7`, `"size":9223372036854775807`),
		"an odd layer":    strings.Replace(other, good["foreign"].Foreign.Layers[1].Digest.String(), "md5:0", 1),
	} {
		if text == ours || text == other {
			t.Fatalf("%s: nothing was changed", name)
		}
		m := memory{t.TempDir()}
		at := filepath.Join(m.dir, imageFile("r/m:1"))
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.image("r/m:1"); err == nil {
			t.Errorf("%s: %s passes", name, text)
		}
		p := &Peer{log: discard(), memory: m}
		if image := newTask(p, client.DesiredModel{Reference: "r/m:1"}).known(); image != nil {
			t.Errorf("%s: the task takes it for %+v", name, image)
		}
	}
}

// FuzzContent reads files that the node left for itself. Whatever is in them, it is an error or can
// be used.
func FuzzContent(f *testing.F) {
	for _, c := range testContents(f) {
		raw, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	for _, text := range []string{
		"", "null", "{}", `{"model":{},"foreign":{}}`, `{"foreign":{"layers":[null]}}`, `{"model":{"Layers":[{}]}}`,
		`[{"name":"a","reference":"r/a:1","priority":-9223372036854775808},{"priority":9223372036854775807}]`, `[null]`,
	} {
		f.Add([]byte(text))
	}
	dir := f.TempDir()
	m := memory{dir}
	if err := os.Mkdir(filepath.Join(dir, "images"), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, name := range []string{imageFile("r/m:1"), desiredFile} {
			if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if models, err := m.desired(); err == nil {
			for _, d := range models {
				if repos, _, err := (Origins{Mirrors: []string{"mirror:1"}}).open(d.Reference); err == nil {
					repos[0].Close()
				}
			}
		}
		image, err := m.image("r/m:1")
		if err != nil {
			return
		}
		if image.manifest() == "" || image.size() < 0 || len(image.specs()) == 0 {
			t.Fatalf("image %s of %d bytes, %d layers", image.manifest(), image.size(), len(image.specs()))
		}
		for _, spec := range image.specs() {
			if spec.Key().String() == "" || spec.Size < 0 {
				t.Fatalf("layer %+v", spec)
			}
		}
		if err := m.saveImage("r/m:1", image); err != nil {
			t.Fatal(err)
		}
		first, err := os.ReadFile(filepath.Join(dir, imageFile("r/m:1")))
		if err != nil {
			t.Fatal(err)
		}
		again, err := m.image("r/m:1")
		if err != nil {
			t.Fatalf("what was saved is refused: %v", err)
		}
		second, err := json.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%s comes back as %s, %v", first, second, err)
		}
	})
}
