package peer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// adopting makes a node that wants tag and takes over what dirs have.
func (r *region) adopting(tag string, dirs ...string) *node {
	r.t.Helper()
	r.desire(tag)
	return r.newNode(func(c *Config) { c.Adopt = dirs })
}

func TestAdoptModelDirectory(t *testing.T) {
	r := newRegion(t)
	files := modelFiles(1)
	image := r.push("v1", files)
	dir := t.TempDir()
	writeFiles(t, dir, files)
	// A hub's cache has links to its files.
	link, target := filepath.Join(dir, "config.json"), filepath.Join(dir, "blob-of-config")
	if err := os.Rename(link, target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	n := r.adopting("v1", filepath.Join(t.TempDir(), "gone"), dir)
	if m := n.reach("v1", StateReady); m.OriginBytes != 0 || m.Bytes != image.Size() {
		t.Errorf("it took %+v", m)
	}
	n.checkTree("v1", files)
	a, errA := os.Stat(filepath.Join(dir, "weights", "a.safetensors"))
	b, errB := os.Stat(filepath.Join(n.tree("v1"), "weights", "a.safetensors"))
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		t.Errorf("the file was copied: %v, %v", errA, errB)
	}
}

// TestAdoptWhatIsRight shows that files which are missing or other than the model's are fetched, and
// left alone where they lie.
func TestAdoptWhatIsRight(t *testing.T) {
	r := newRegion(t)
	files := modelFiles(1)
	image := r.push("v1", files)
	dir := t.TempDir()
	writeFiles(t, dir, files)
	other := bytes.Clone(files["weights/b.safetensors"])
	other[100] ^= 1
	writeFiles(t, dir, map[string][]byte{"weights/b.safetensors": other, "empty": []byte("not")})
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "config.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := r.adopting("v1", dir)
	m := n.reach("v1", StateReady)
	n.checkTree("v1", files)
	if m.OriginBytes == 0 || m.OriginBytes > image.Size()/2 {
		t.Errorf("%d bytes of %d were fetched", m.OriginBytes, image.Size())
	}
	if got, err := os.ReadFile(filepath.Join(dir, "weights", "b.safetensors")); err != nil || !bytes.Equal(got, other) {
		t.Errorf("the other file changed, %v", err)
	}
}

// layout writes blobs as an OCI image layout has them.
func layout(t *testing.T, blobs ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	for _, b := range blobs {
		writeFiles(t, dir, map[string][]byte{"blobs/sha256/" + digest.FromBytes(b).Encoded(): b})
	}
	return dir
}

func TestAdoptImageLayout(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		r := newRegion(t)
		files := modelFiles(1)
		image := r.push("v1", files)
		var blobs [][]byte
		for _, l := range image.Layers {
			blobs = append(blobs, r.read("v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size}))
		}
		n := r.adopting("v1", layout(t, blobs...))
		if m := n.reach("v1", StateReady); m.OriginBytes != 0 || m.Bytes != image.Size() {
			t.Errorf("it took %+v", m)
		}
		n.checkTree("v1", files)
	})
	t.Run("foreign", func(t *testing.T) {
		r := newRegion(t)
		files := rawFiles()
		r.pushRaw("raw", files)
		n := r.adopting("raw", layout(t, files["config.json"], files["weights/model.gguf"]))
		if m := n.reach("raw", StateReady); m.OriginBytes != 0 {
			t.Errorf("it took %+v", m)
		}
		n.checkTree("raw", files)
	})
	t.Run("damaged", func(t *testing.T) {
		r := newRegion(t)
		files := modelFiles(1)
		image := r.push("v1", files)
		var dir string
		for _, l := range image.Layers {
			if l.Size < 1<<20 {
				continue
			}
			dir = layout(t, r.read("v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.Digest, Size: l.Size}))
			flip(t, filepath.Join(dir, "blobs", "sha256", l.Digest.Encoded()), l.Size/2)
		}
		n := r.adopting("v1", dir)
		m := n.reach("v1", StateReady)
		n.checkTree("v1", files)
		if m.OriginBytes == 0 || m.OriginBytes > image.Size()/2 {
			t.Errorf("%d bytes of %d were fetched", m.OriginBytes, image.Size())
		}
	})
}
