package peer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// damage flips a byte of a published file while the registry holds its blobs back, waits until the
// model is withdrawn, lets the blobs go and waits until it is there again.
func (n *node) damage(name, file string, files map[string][]byte) {
	n.t.Helper()
	gate := make(chan struct{})
	n.region.setFault(func(req *http.Request) registryserver.Fault {
		if req.Header.Get("Range") != "" {
			return registryserver.Fault{Wait: gate}
		}
		return registryserver.Fault{}
	})
	flip(n.t, filepath.Join(n.tree(name), filepath.FromSlash(file)), 1_000_000)
	m := n.reach(name, StateFetching)
	if m.Error != errScrubbed.Error() {
		n.t.Errorf("while it is mended: %+v", m)
	}
	if _, err := os.Stat(n.tree(name) + "/"); !errors.Is(err, fs.ErrNotExist) {
		n.t.Errorf("the damaged model is still there: %v", err)
	}
	if trees := n.trees(); len(trees) != 0 {
		n.t.Errorf("the damaged model is still kept in memory: %v", trees)
	}
	close(gate)
	n.region.setFault(nil)
	if m = n.reach(name, StateReady); m.Error != "" {
		n.t.Errorf("mended: %+v", m)
	}
	n.checkTree(name, files)
}

func scrubOften(c *Config) { c.Scrub = 5 * time.Millisecond }

func TestScrub(t *testing.T) {
	t.Run("a layer of ours", func(t *testing.T) {
		r := newRegion(t)
		files := modelFiles(1)
		image := r.push("v1", files)
		r.desire("v1")
		n := r.newNode(scrubOften)
		n.reach("v1", StateReady)
		for range 2 {
			before := n.model("v1").OriginBytes
			n.damage("v1", "weights/a.safetensors", files)
			if again := n.model("v1").OriginBytes - before; again == 0 || again > 512<<10 {
				t.Errorf("%d bytes of %d were fetched again for a wrong one", again, image.Size())
			}
		}
	})
	t.Run("a raw file", func(t *testing.T) {
		r := newRegion(t)
		files := map[string][]byte{"model.gguf": modelFiles(1)["weights/a.safetensors"]}
		r.pushRaw("raw", files)
		r.desire("raw")
		n := r.newNode(scrubOften)
		n.reach("raw", StateReady)
		n.damage("raw", "model.gguf", files)
	})
}

// TestMendedUnseen shows that damage counts that was mended before anybody looked: the tree may have
// kept a file that the store made anew.
func TestMendedUnseen(t *testing.T) {
	all := newSeeds(Config{Logger: discard()})
	sd := &seed{all: all, ready: make(chan struct{})}
	if sd.isReady() {
		t.Error("it is ready before its end")
	}
	close(sd.ready)
	look := &task{peer: &Peer{seeds: all}}
	parts, whole := []part{{seed: sd}}, []chan struct{}{sd.readiness()}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := look.untilBroken(ctx, parts, whole); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing is broken: %v", err)
	}
	sd.unready()
	if sd.isReady() {
		t.Error("it is ready although damaged")
	}
	close(sd.ready)
	if err := look.untilBroken(t.Context(), parts, whole); err != nil {
		t.Errorf("mended meanwhile: %v", err)
	}
	sd.fail(io.ErrUnexpectedEOF)
	if err := look.untilBroken(t.Context(), parts, []chan struct{}{sd.readiness()}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("it failed: %v", err)
	}
}
