package peer

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/tracker/client"
)

// pins waits until the desired set pins these published models and no others.
func (n *node) pins(want ...digest.Digest) {
	n.t.Helper()
	until(n.t, func() string {
		var got []digest.Digest
		for _, m := range n.store.Models() {
			if slices.Contains(m.Owners, pinOwner) {
				got = append(got, m.Digest)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%s pins %v, want %v", n.name, got, want)
		}
		return ""
	})
}

func TestPinsFollowTheDesiredSet(t *testing.T) {
	r := newRegion(t)
	v1, v2 := r.push("v1", modelFiles(1)).Manifest.Digest, r.push("v2", modelFiles(2)).Manifest.Digest
	if same := r.push("same", modelFiles(2)).Manifest.Digest; same != v2 {
		t.Fatal("the same files make two images: the test shows nothing")
	}
	r.desire("v1", "v2", "same")
	n := r.newNode()
	for _, name := range []string{"v1", "v2", "same"} {
		n.reach(name, StateReady)
	}
	n.pins(v1, v2)
	r.desire("v2", "same")
	n.pins(v2)
	if got := n.model("v1"); got.State != "" {
		t.Errorf("it still reports %+v", got)
	}

	// Of two names of one image, one goes. That its unpin is over shows when v1 is gone after it.
	r.desire("v1", "v2")
	n.reach("v1", StateReady)
	n.pins(v1, v2)
	r.desire("v2")
	n.pins(v2)
	r.desire()
	n.pins()
}

// TestNotDesiredAfterRestart shows that a pin does not outlive the wish because the node was down.
func TestNotDesiredAfterRestart(t *testing.T) {
	r := newRegion(t)
	v1 := r.push("v1", modelFiles(1)).Manifest.Digest
	r.desire("v1")
	n := r.newNode()
	n.reach("v1", StateReady)
	n.pins(v1)
	n.stop()
	r.desire()
	r.setFault(upstreamDown) // so that the model's task ends before it knows its image
	n.start()
	n.pins()
}

// TestMovedTag shows that a node that was down while a tag moved lets the old image go.
func TestMovedTag(t *testing.T) {
	r := newRegion(t)
	before := r.push("v1", modelFiles(1)).Manifest.Digest
	r.desire("v1")
	n := r.newNode()
	n.reach("v1", StateReady)
	n.pins(before)
	n.stop()
	after := r.push("v1", modelFiles(2)).Manifest.Digest
	n.start()
	n.reach("v1", StateReady)
	n.pins(after)
	n.checkTree("v1", modelFiles(2))
}

// TestUnwantedBeforeTheEnd shows that a task knows why it ends, or it would not unpin.
func TestUnwantedBeforeTheEnd(t *testing.T) {
	p := &Peer{log: discard(), changed: make(chan struct{}, 1), tasks: map[string]*task{}}
	gone := newTask(p, client.DesiredModel{Name: "m", Reference: "r/m:1"})
	var knew bool
	gone.cancel = context.CancelFunc(func() { knew = gone.unwanted.Load() })
	p.tasks["m r/m:1"] = gone
	p.follow(t.Context(), nil, nil)
	if !knew || len(p.tasks) != 0 {
		t.Errorf("it knew: %t; %d tasks are left", knew, len(p.tasks))
	}
}
