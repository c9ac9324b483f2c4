package peer

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"testing"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/peer/store"
)

// layer is an acquire's arguments for a layer of the image that tag names.
func (n *node) layer(tag string) (store.Spec, func() ([]*registry.Repository, error)) {
	n.t.Helper()
	open := func() ([]*registry.Repository, error) {
		repos, _, err := n.cfg.Origins.open(n.region.reference(tag))
		return repos, err
	}
	repos, err := open()
	if err != nil {
		n.t.Fatal(err)
	}
	defer repos[0].Close()
	image, err := resolveContent(n.t.Context(), repos[0], tag)
	if err != nil {
		n.t.Fatal(err)
	}
	spec := image.specs()[0]
	if spec.Layer != nil {
		t := newTask(n.Peer, n.region.desired(tag))
		if spec.Hashes, err = t.hashes(n.t.Context(), repos, *spec.Layer); err != nil {
			n.t.Fatal(err)
		}
	}
	return spec, open
}

// idle makes a node whose agent does not run.
func (r *region) idle(change ...func(*Config)) *node {
	r.t.Helper()
	r.nodes++
	n := &node{t: r.t, region: r, name: "idle", dir: r.t.TempDir(), change: change}
	n.prepare()
	r.t.Cleanup(func() {
		n.seeds.wait()
		n.stop()
	})
	return n
}

// TestOneSessionALayer shows that whoever wants a layer shares its seed, until the last one is gone.
func TestOneSessionALayer(t *testing.T) {
	r := newRegion(t)
	image := r.push("v1", modelFiles(1))
	n := r.idle()
	spec, open := n.layer("v1")
	var group sync.WaitGroup
	parts := make([]part, 8)
	for i := range parts {
		group.Go(func() {
			var err error
			if parts[i], err = n.seeds.acquire(t.Context(), spec, open); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, p := range parts {
		if p.seed != parts[0].seed {
			t.Fatal("two seeds of one layer")
		}
		if err := p.seed.await(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, p := range parts {
		if got := len(n.Inventory()); got != 1 {
			t.Errorf("%d swarms before the last release", got)
		}
		n.seeds.release(p.seed)
	}
	if got := n.Inventory(); len(got) != 0 {
		t.Errorf("after the last release: %v", got)
	}
	if sent := r.upstream.Sent(spec.Digest); sent != spec.Size || n.seeds.total().Origin != sent {
		t.Errorf("the registry sent %d bytes of %d, %d were counted", sent, spec.Size, n.seeds.total().Origin)
	}
	if len(image.Layers) < 2 {
		t.Error("the model has one layer")
	}
}

// TestJoinedWhileLeft shows that a layer can be had again while its last user still leaves: a model's
// next version shares layers with the one that it takes the place of.
func TestJoinedWhileLeft(t *testing.T) {
	r := newRegion(t)
	r.push("v1", modelFiles(1))
	reading, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.wait = func(context.Context, int) error {
		once.Do(func() { close(reading) })
		<-gate // whatever the context says: the session's end is held up
		return nil
	}
	n := r.idle()
	spec, open := n.layer("v1")
	first, err := n.seeds.acquire(t.Context(), spec, open)
	if err != nil {
		t.Fatal(err)
	}
	<-reading
	first.seed.mu.Lock()
	first.seed.past.Origin += 1000 // of an earlier session
	first.seed.mu.Unlock()
	left, joined := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(left)
		n.seeds.release(first.seed)
	}()
	until(t, func() string {
		n.seeds.mu.Lock()
		defer n.seeds.mu.Unlock()
		if n.seeds.byKey[spec.Key()] != nil {
			return "the layer is not being left"
		}
		return ""
	})
	if got := n.seeds.total().Origin; got != 1000 {
		t.Errorf("the count of all bytes is %d while a layer is left, was 1000", got)
	}
	hurry, stop := context.WithCancel(t.Context())
	stop()
	if p, err := n.seeds.acquire(hurry, spec, open); !errors.Is(err, context.Canceled) {
		t.Errorf("who does not wait gets %v, %v", p, err)
	}
	var again part
	go func() {
		var err error
		if again, err = n.seeds.acquire(t.Context(), spec, open); err == nil {
			err = again.seed.await(t.Context())
		}
		joined <- err
	}()
	close(gate)
	<-left
	if err := <-joined; err != nil {
		t.Errorf("the layer cannot be had: %v", err)
	}
	n.seeds.release(again.seed)
}

// TestAcquireFails shows that nothing stays behind, so that the next one tries anew.
func TestAcquireFails(t *testing.T) {
	r := newRegion(t)
	r.push("v1", modelFiles(1))
	n := r.idle()
	spec, open := n.layer("v1")
	if _, err := n.seeds.acquire(t.Context(), spec, func() ([]*registry.Repository, error) { return nil, fs.ErrPermission }); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v", err)
	}
	wrong := spec
	wrong.Hashes = nil
	wrong.Size++
	if _, err := n.seeds.acquire(t.Context(), wrong, open); err == nil {
		t.Error("a wrong spec passes")
	}
	p, err := n.seeds.acquire(t.Context(), spec, open)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.seed.await(t.Context()); err != nil {
		t.Error(err)
	}
	n.seeds.release(p.seed)
}
