package test

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"oras.land/oras-go/v2/registry/remote"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// makeModel writes three shards of 20 MiB and some small files.
func makeModel(t *testing.T) (dir string, files map[string][]byte) {
	t.Helper()
	return makeModelOf(t, 0)
}

// makeModelOf makes another model for each seed.
func makeModelOf(t *testing.T, seed byte) (dir string, files map[string][]byte) {
	t.Helper()
	files = map[string][]byte{"config.json": []byte("{}"), "empty": nil, "子/读 我.md": []byte("hello")}
	for i, name := range []string{"a.safetensors", "b.safetensors", "c.safetensors"} {
		b := make([]byte, 20<<20+i<<20)
		if _, err := rand.NewChaCha8([32]byte{byte(i), seed}).Read(b); err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	dir = t.TempDir()
	for name, b := range files {
		writeFile(t, filepath.Join(dir, name), b)
	}
	return dir, files
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func openRepository(t *testing.T, ref string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(ref)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	return repo
}

func TestColdNodesAndASecondVersion(t *testing.T) {
	r := newRegion(t, 4)
	dir, files := makeModel(t)
	v1 := r.push(dir, "v1")
	r.desire("v1")
	r.ready(v1, files, r.nodes...)
	for _, l := range v1.Layers {
		if sent := r.upstream.Sent(l.Digest); sent != l.Size {
			t.Errorf("the registry sent %d bytes of layer %s, it has %d", sent, l.Digest, l.Size)
		}
	}
	total := imageSize(v1)
	for _, n := range r.nodes {
		m := r.settled(n, "v1")
		if m.WastedBytes > total/100 {
			t.Errorf("%s: %+v", n.name, m)
		}
		if got := diskUse(t, n.dir); got > total*101/100 {
			t.Errorf("%s takes %d bytes for %d", n.name, got, total)
		}
	}

	changed := maps.Clone(files)
	changed["b.safetensors"] = append(bytes.Clone(files["b.safetensors"]), 1)
	writeFile(t, filepath.Join(dir, "b.safetensors"), changed["b.safetensors"])
	fromUpstream, fromMirror := r.mirror.metric("shoal_mirror_upstream_bytes_total"), r.mirror.metric("shoal_mirror_sent_bytes_total")
	v2 := r.push(dir, "v2", "--previous", "v1")
	r.desire("v2")
	r.ready(v2, changed, r.nodes...)
	size := int64(len(changed["b.safetensors"]))
	for what, moved := range map[string]int64{
		"registry": r.mirror.metric("shoal_mirror_upstream_bytes_total") - fromUpstream,
		"mirror":   r.mirror.metric("shoal_mirror_sent_bytes_total") - fromMirror,
	} {
		if moved < size || moved > size*102/100 {
			t.Errorf("version two moved %d bytes from the %s, the changed file has %d", moved, what, size)
		}
	}
	checkTree(t, r.nodes[0].tree(v1), files) // version one is still there, and right
}

func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	seen := map[uint64]bool{}
	var sum int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestTrackerKilled(t *testing.T) {
	for name, back := range map[string]bool{"and started again": true, "for ever": false} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 3)
			dir, files := makeModel(t)
			image := r.push(dir, "v1")
			h := r.hold(image)
			r.desire("v1")
			r.half(image, h, "v1", r.nodes...)
			r.tracker.end(syscall.SIGKILL)
			if back {
				r.tracker.start()
			}
			h.release()
			r.ready(image, files, r.nodes...)
			var sent int64
			for _, l := range image.Layers {
				sent += r.upstream.Sent(l.Digest)
			}
			if total := imageSize(image); sent > total*102/100 {
				t.Errorf("the registry sent %d bytes of %d", sent, total)
			}
		})
	}
}

func TestMirrorKilledAfterThePiecesAreOut(t *testing.T) {
	r := newRegion(t, 2)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	h := r.hold(image)
	r.desire("v1")
	r.half(image, h, "v1", r.nodes...)
	// The second node sleeps while the first gets the rest; then nobody but the first has it.
	r.nodes[1].signal(syscall.SIGSTOP)
	h.release()
	r.ready(image, files, r.nodes[0])
	r.mirror.end(syscall.SIGKILL)
	r.upstream.set(fails(every, 1<<40, status(http.StatusServiceUnavailable)))
	r.nodes[1].signal(syscall.SIGCONT)
	r.ready(image, files, r.nodes[1])
}

func TestNodeKilled(t *testing.T) {
	r := newRegion(t, 3)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	h := r.hold(image)
	r.desire("v1")
	before := r.half(image, h, "v1", r.nodes...)
	victim := r.nodes[2]
	victim.end(syscall.SIGKILL)
	h.release()
	r.ready(image, files, r.nodes[0], r.nodes[1])

	victim.start()
	r.ready(image, files, victim)
	m := r.settled(victim, "v1")
	if got, missing := m.OriginBytes+m.PeerBytes, imageSize(image)-before; got > missing {
		t.Errorf("the node fetched %d bytes after its restart, %d were missing: %+v", got, missing, m)
	}
}

func TestFlippedByte(t *testing.T) {
	cases := map[string]struct {
		keepTime bool
		flags    []string
	}{
		"by a write":    {false, nil},
		"by the disk":   {true, []string{"--scrub", "300ms"}},
		"while it runs": {true, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 0)
			n := r.addNode("--scrub", "300ms")
			dir, files := makeModel(t)
			image := r.push(dir, "v1")
			r.desire("v1")
			r.ready(image, files, n)
			r.settled(n, "v1")
			path := filepath.Join(n.tree(image), "b.safetensors")
			running := name == "while it runs"
			if !running {
				n.end(syscall.SIGTERM)
			}
			before := r.report(n, "v1")
			flip(t, path, 5<<20, c.keepTime)
			if !running {
				before.OriginBytes, before.PeerBytes = 0, 0
				n.start(c.flags...)
			}
			r.until("the byte is mended", func() bool {
				b, err := os.ReadFile(path)
				return err == nil && bytes.Equal(b, files["b.safetensors"])
			})
			piece := model.PieceLength(int64(len(files["b.safetensors"])))
			r.until("one piece was fetched", func() bool {
				m := r.report(n, "v1")
				return m.State == "Ready" && m.OriginBytes+m.PeerBytes-before.OriginBytes-before.PeerBytes == piece
			})
			r.ready(image, files, n)
		})
	}
}

// flip changes a byte of a file, as a broken disk would where keepTime is set.
func flip(t *testing.T, name string, at int64, keepTime bool) {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, info.Mode()); err != nil {
		t.Fatal(err)
	}
	if keepTime {
		if err := os.Chtimes(name, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFaultyRegistryBehindTheMirror(t *testing.T) {
	dir, files := makeModel(t)
	throttled := registryserver.Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}}
	passing := map[string]fault{
		"429 with Retry-After": fails(every, 3, throttled),
		"503":                  fails(reads("/blobs/"), 3, status(http.StatusServiceUnavailable)),
		"500":                  fails(reads("/blobs/"), 2, status(http.StatusInternalServerError)),
		"short bodies":         fails(reads("/blobs/"), 4, registryserver.Fault{At: 100, Cut: true}),
		"wrong bytes":          fails(reads("/blobs/"), 1, registryserver.Fault{At: 10, Flip: true}),
	}
	for name, f := range passing {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 1)
			image := r.push(dir, "v1")
			r.upstream.set(f)
			r.desire("v1")
			r.ready(image, files, r.nodes...)
		})
	}
	for name, code := range map[string]int{"401": http.StatusUnauthorized, "404": http.StatusNotFound} {
		t.Run(name+" for ever", func(t *testing.T) {
			r := newRegion(t, 1)
			r.push(dir, "v1")
			r.upstream.set(fails(every, 1<<40, status(code)))
			r.desire("v1")
			var said string
			r.until("the node says why", func() bool {
				said = r.report(r.nodes[0], "v1").Error
				return said != ""
			})
			if !strings.Contains(said, r.upstream.host) {
				t.Errorf("the error does not name the registry: %s", said)
			}
			t.Log(said)
			// A tree would be a folder with files, and have a link in the folder by-name.
			if found, err := filepath.Glob(filepath.Join(r.nodes[0].dir, "models/*/*")); err != nil || len(found) > 0 {
				t.Errorf("something was published: %v %v", found, err)
			}
		})
	}
}

func TestDaemonsDrain(t *testing.T) {
	r := newRegion(t, 1)
	for _, d := range append(r.nodes, r.mirror, r.tracker) {
		if got := d.get("/healthz"); got != "ok\n" {
			t.Errorf("%s: healthz says %q", d.name, got)
		}
		d.get("/readyz")
		if !strings.Contains(d.get("/metrics"), "shoal_"+map[string]string{"n1": "peer"}[d.name]) {
			t.Errorf("%s has no metrics of its own", d.name)
		}
		if code := d.end(syscall.SIGTERM); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM\n%s", d.name, code, d.logs)
		}
	}
}
