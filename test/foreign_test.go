package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// foreignImage pushes a manifest over layers of other tools' making.
func (r *region) foreignImage(tag, config string, layers ...foreignLayer) ocispec.Descriptor {
	t := r.t
	t.Helper()
	repo := openRepository(t, r.reference(tag))
	push := func(desc ocispec.Descriptor, content io.Reader) ocispec.Descriptor {
		t.Helper()
		if err := repo.Push(t.Context(), desc, content); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	empty := []byte("{}")
	m.Config = push(ocispec.Descriptor{MediaType: config, Digest: digest.FromBytes(empty), Size: int64(len(empty))}, bytes.NewReader(empty))
	for _, l := range layers {
		f, err := os.Open(l.file)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := digest.FromReader(f)
		if err != nil {
			t.Fatal(err)
		}
		size, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, push(ocispec.Descriptor{
			MediaType: l.mediaType, Digest: sum, Size: size, Annotations: l.annotations,
		}, f))
		f.Close()
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.PushReference(t.Context(), desc, bytes.NewReader(raw), tag); err != nil {
		t.Fatal(err)
	}
	return desc
}

type foreignLayer struct {
	mediaType, file string
	annotations     map[string]string
}

// gzipLayer writes a gzip of a tar with one file of size random bytes, and returns that file's digest.
func gzipLayer(t *testing.T, at string, size int64) digest.Digest {
	t.Helper()
	f, err := os.Create(at)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.NoCompression) // weights do not compress
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "weights/model.bin", Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	sum := digest.SHA256.Digester()
	if _, err := io.CopyN(io.MultiWriter(w, sum.Hash()), rand.NewChaCha8([32]byte{1}), size); err != nil {
		t.Fatal(err)
	}
	for _, c := range []io.Closer{w, z, f} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return sum.Digest()
}

// A gzip layer that docker pushed, over a slow upstream: SHOAL_TEST_FOREIGN_MIB and
// SHOAL_TEST_UPLINK_MIB set its size and the uplink's rate a second.
func TestForeignLayerOverASlowUpstream(t *testing.T) {
	mib, uplink := int64(320), int64(64)
	for name, v := range map[string]*int64{"SHOAL_TEST_FOREIGN_MIB": &mib, "SHOAL_TEST_UPLINK_MIB": &uplink} {
		if s := os.Getenv(name); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			*v = n
		}
	}
	r := newRegion(t, 3, func(c *registryserver.Config) { c.UplinkBytesPerSecond = uplink << 20 })
	layer := filepath.Join(t.TempDir(), "layer")
	want := gzipLayer(t, layer, mib<<20)
	info, err := os.Stat(layer)
	if err != nil {
		t.Fatal(err)
	}
	desc := r.foreignImage("docker", "application/vnd.docker.container.image.v1+json",
		foreignLayer{mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", file: layer})
	began := time.Now()
	r.desire("docker")
	for _, n := range r.nodes {
		r.until(n.name+" holds the layer", func() bool { return r.report(n, "docker").Bytes >= info.Size() })
	}
	moved := time.Since(began)
	for _, n := range r.nodes {
		m := r.settled(n, "docker")
		if m.Bytes != info.Size() {
			t.Errorf("%s holds %d bytes of %d", n.name, m.Bytes, info.Size())
		}
	}
	took := time.Since(began)
	bound := time.Duration(float64(info.Size()) / float64(uplink<<20) * float64(time.Second))
	sent := r.mirror.metric("shoal_mirror_sent_bytes_total")
	t.Logf("%d bytes over %d MiB/s, size/uplink is %.1f s: the last of 3 nodes holds the layer after %.1f s (%.2f), and the unpacked tree after %.1f s; the mirror sent %.3f copies",
		info.Size(), uplink, bound.Seconds(), moved.Seconds(), moved.Seconds()/bound.Seconds(), took.Seconds(), float64(sent)/float64(info.Size()))
	if sent > info.Size()*105/100 {
		t.Errorf("the mirror sent %d bytes of %d", sent, info.Size())
	}
	for _, n := range r.nodes {
		f, err := os.Open(filepath.Join(n.dir, "models", desc.Digest.Encoded(), "weights", "model.bin"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := digest.FromReader(f)
		f.Close()
		if err != nil || got != want {
			t.Errorf("%s: the file is %s, %v; want %s", n.name, got, err, want)
		}
	}
}

// A raw layer of a ModelPack artifact is a file of the tree itself: one copy on disk.
func TestModelPackArtifact(t *testing.T) {
	r := newRegion(t, 2)
	dir := t.TempDir()
	files := map[string][]byte{"weights/a.bin": make([]byte, 9<<20), "config.json": []byte("{}")}
	_, _ = rand.NewChaCha8([32]byte{2}).Read(files["weights/a.bin"]) // never fails
	var layers []foreignLayer
	for name, b := range files {
		at := filepath.Join(dir, filepath.Base(name))
		writeFile(t, at, b)
		layers = append(layers, foreignLayer{
			"application/vnd.cncf.model.weight.v1.raw", at, map[string]string{"org.cncf.model.filepath": name},
		})
	}
	desc := r.foreignImage("modctl", "application/vnd.cncf.model.config.v1+json", layers...)
	r.desire("modctl")
	for _, n := range r.nodes {
		m := r.settled(n, "modctl")
		checkTree(t, filepath.Join(n.dir, "models", desc.Digest.Encoded()), files)
		if got := diskUse(t, n.dir); got > m.Total*101/100+256<<10 {
			t.Errorf("%s takes %d bytes for %d", n.name, got, m.Total)
		}
	}
}
