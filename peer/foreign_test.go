package peer

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// rawFiles are one below the size of segments, and one above it.
func rawFiles() map[string][]byte {
	large := make([]byte, aloneBelow+12345)
	storetest.Fill(large, 2)
	return map[string][]byte{"config.json": []byte("{}"), "weights/model.gguf": large}
}

// wrongByte spoils one byte of every answer that has bytes of the blob.
func wrongByte(d digest.Digest) func(*http.Request) registryserver.Fault {
	return func(req *http.Request) registryserver.Fault {
		return registryserver.Fault{Flip: blobOf(req) == d.String() && req.Method == http.MethodGet, At: 1}
	}
}

func TestForeignWithoutMirror(t *testing.T) {
	r := newRegion(t)
	files := rawFiles()
	image := r.pushRaw("raw", files)
	r.desire("raw")
	n := r.newNode()
	m := n.reach("raw", StateReady)
	n.checkTree("raw", files)
	var total int64
	for _, l := range image.Layers {
		total += l.Size
		if sent := r.upstream.Sent(l.Digest); sent != l.Size {
			t.Errorf("the registry sent %d bytes of layer %s, it has %d", sent, l.Digest, l.Size)
		}
	}
	if m.Bytes != total || m.Total != total || m.OriginBytes != total || m.PeerBytes != 0 {
		t.Errorf("of %d bytes: %+v", total, m)
	}
	n.stop()
	r.setFault(upstreamDown)
	n.start()
	if m := n.reach("raw", StateReady); m.OriginBytes != 0 {
		t.Errorf("after a restart: %+v", m)
	}
}

// TestForeignCutOff shows that what came before the registry broke off is not fetched again.
func TestForeignCutOff(t *testing.T) {
	r := newRegion(t)
	files := rawFiles()
	layer := r.pushRaw("raw", files).Layers[1]
	var asked atomic.Int32
	r.setFault(func(req *http.Request) registryserver.Fault {
		if blobOf(req) != layer.Digest.String() {
			return registryserver.Fault{}
		}
		if asked.Add(1) == 5 {
			return registryserver.Fault{Status: http.StatusForbidden}
		}
		return registryserver.Fault{}
	})
	r.desire("raw")
	n := r.newNode()
	n.reach("raw", StateReady)
	n.checkTree("raw", files)
	if sent := r.upstream.Sent(layer.Digest); sent < layer.Size || sent > layer.Size+4<<10 { // refusals count
		t.Errorf("the registry sent %d bytes of %d", sent, layer.Size)
	}
}

func TestWrongForeignBytes(t *testing.T) {
	r := newRegion(t)
	files := map[string][]byte{"config.json": []byte(`{"layers": 2}`)}
	layer := r.pushRaw("raw", files).Layers[0]
	r.setFault(wrongByte(layer.Digest))
	n := r.idle()
	spec, open := n.layer("raw")
	p, err := n.seeds.acquire(t.Context(), spec, open)
	if err != nil {
		t.Fatal(err)
	}
	err = p.seed.await(t.Context())
	if e, ok := errors.AsType[*store.CorruptError](err); !ok || e.Key != spec.Key() {
		t.Errorf("got %v, want a CorruptError of %s", err, spec.Digest)
	}
	if sent := r.upstream.Sent(layer.Digest); sent != wrongCopies*layer.Size {
		t.Errorf("the registry sent %d bytes, want %d copies of %d", sent, wrongCopies, layer.Size)
	}
	// One that failed is not handed out any more, and its end does not touch its successor.
	r.setFault(nil)
	next, err := n.seeds.acquire(t.Context(), spec, open)
	if err != nil || next.seed == p.seed {
		t.Fatalf("%v, the same seed: %t", err, next.seed == p.seed)
	}
	n.seeds.release(p.seed)
	if err := next.seed.await(t.Context()); err != nil {
		t.Error(err)
	}
	if again, err := n.seeds.acquire(t.Context(), spec, func() ([]*registry.Repository, error) { return nil, nil }); err != nil || again.seed != next.seed {
		t.Errorf("%v, the same seed: %t", err, again.seed == next.seed)
	}
	n.seeds.release(next.seed)
	n.seeds.release(next.seed)
}

func TestWrongForeignModel(t *testing.T) {
	r := newRegion(t)
	files := rawFiles()
	layer := r.pushRaw("raw", files).Layers[1]
	r.setFault(wrongByte(layer.Digest))
	r.desire("raw")
	n := r.newNode()
	m := n.reach("raw", StateFailed)
	if !strings.Contains(m.Error, layer.Digest.String()) || !strings.Contains(m.Error, "fetch it again from another source") {
		t.Errorf("it fails with %q", m.Error)
	}
	r.setFault(nil)
	n.reach("raw", StateReady)
	n.checkTree("raw", files)
}
