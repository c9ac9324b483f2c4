package tracker

import (
	"slices"
	"testing"
	"time"

	"github.com/shoal-project/shoal/model"
)

// inZone returns a node of the given zone.
func inZone(r *region, name, addr, zone string) *node {
	n := newNode(r, name, addr, keyOf(1, model.Hash{}))
	n.a.Zone = zone
	return n
}

// TestZonesAreSwarmsOfTheirOwn: a piece is leased once in each zone, and peers are of the own one.
func TestZonesAreSwarmsOfTheirOwn(t *testing.T) {
	r := newRegion(t, Config{})
	a1, a2 := inZone(r, "a1", "127.0.0.1:1", "a"), inZone(r, "a2", "127.0.0.2:1", "a")
	b1, b2 := inZone(r, "b1", "127.0.0.3:1", "b"), inZone(r, "b2", "127.0.0.4:1", "b")
	for _, n := range []*node{a1, a2, b1, b2} {
		n.ask(0)
	}
	r.clock.advance(time.Second) // the grace of a tracker that has just started
	leased := map[string][]int{}
	for _, n := range []*node{a1, b1, a2, b2} {
		reply := n.ask(1)
		leased[n.a.Zone] = append(leased[n.a.Zone], reply.Leases...)
		for _, p := range reply.Peers {
			if p.Zone != n.a.Zone {
				t.Errorf("%s is told of %s in zone %s", n.a.Node, p.Node, p.Zone)
			}
		}
	}
	for _, zone := range []string{"a", "b"} {
		if want := []int{0, 1}; !slices.Equal(leased[zone], want) {
			t.Errorf("zone %s was leased the pieces %v, want %v", zone, leased[zone], want)
		}
	}
	list, err := r.client().Swarms(t.Context())
	if err != nil || len(list) != 2 || list[0].Zone != "a" || list[1].Zone != "b" || list[0].Key != list[1].Key {
		t.Errorf("swarms %+v, %v; want one a zone", list, err)
	}
}

// TestStarvingZone: a zone that nothing comes to is told of the others, until something comes.
func TestStarvingZone(t *testing.T) {
	r := newRegion(t, Config{})
	seed, late := inZone(r, "seed", "127.0.0.1:1", "a"), inZone(r, "late", "127.0.0.2:1", "b")
	seed.a.Complete = true
	seed.ask(0)
	// Long after the seed's zone was served: a node does not starve from the start.
	for range 30 {
		r.clock.advance(time.Second)
		seed.ask(0)
	}
	step := func() []string {
		r.clock.advance(time.Second)
		seed.ask(0)
		return names(late.ask(0).Peers)
	}
	for range int(starveAfter/time.Second) + 1 {
		if got := step(); len(got) > 0 {
			t.Fatalf("told of %v before it starves", got)
		}
	}
	if got := step(); !slices.Equal(got, []string{"seed"}) {
		t.Fatalf("a starving zone is told of %v", got)
	}
	if got := names(seed.ask(0).Peers); len(got) > 0 {
		t.Errorf("the other zone is told of %v", got)
	}
	late.a.Have[0] = 0x80
	if got := step(); len(got) > 0 {
		t.Errorf("told of %v after it got a piece", got)
	}
}
