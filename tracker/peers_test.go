package tracker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

func names(peers []client.Peer) []string {
	var all []string
	for _, p := range peers {
		all = append(all, p.Node)
	}
	return all
}

func TestPeersAreSentWhenTheyChange(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	at := func(name, addr, zone, rack string) *node {
		n := newNode(r, name, addr, key)
		n.a.Zone, n.a.Rack = zone, rack
		return n
	}
	a := at("a", "127.0.0.1:1", "z1", "r1")
	far, zone, rack := at("far", "127.0.0.2:1", "z2", "r1"), at("zone", "127.0.0.3:1", "z1", "r2"), at("rack", "127.0.0.4:1", "z1", "r1")
	expect := func(what string, n *node, want ...string) {
		t.Helper()
		if got := names(n.ask(0).Peers); !slices.Equal(got, want) {
			t.Fatalf("%s: peers %v, want %v", what, got, want)
		}
	}
	expect("alone", a)
	expect("first reply", far, "a")
	expect("a join", a, "far")
	expect("nothing new", a)
	rack.a.Complete = true
	expect("a near one", rack, "a", "far")
	zone.ask(0)
	got := a.ask(0).Peers
	want := []client.Peer{
		{Node: "rack", Addr: "127.0.0.4:1", Zone: "z1", Rack: "r1", Complete: true},
		{Node: "zone", Addr: "127.0.0.3:1", Zone: "z1", Rack: "r2"},
		{Node: "far", Addr: "127.0.0.2:1", Zone: "z2", Rack: "r1"},
	}
	if !slices.Equal(got, want) {
		t.Fatalf("peers %+v, want near ones first: %+v", got, want)
	}
	far.a.Addr = "127.0.0.2:2"
	far.ask(0)
	expect("a new address", a, "rack", "zone", "far")
	r.clock.advance(time.Second)
	expect("nothing new later", a)
	for range 10 {
		r.clock.advance(time.Second)
		for _, n := range []*node{far, zone, rack} {
			n.ask(0)
		}
	}
	expect("after a reply that may be lost", a, "rack", "zone", "far")
	// A node that was started again knows nobody.
	again := at("a", "127.0.0.1:1", "z1", "r1")
	expect("a fresh process", again, "rack", "zone", "far")
	far.a.Left = true
	far.ask(0)
	expect("a leave", a, "rack", "zone")
}

func TestQuotas(t *testing.T) {
	tests := []struct {
		name       string
		have, want [places]int
	}{
		{"nobody", [places]int{}, [places]int{}},
		{"few", [places]int{3, 2, 1}, [places]int{3, 2, 1}},
		{"a full rack", [places]int{100, 100, 100}, [places]int{30, 10, 10}},
		{"a full rack alone", [places]int{100, 0, 0}, [places]int{50, 0, 0}},
		{"a small zone", [places]int{100, 3, 0}, [places]int{47, 3, 0}},
		{"a small rack", [places]int{2, 100, 100}, [places]int{2, 38, 10}},
		{"no places known", [places]int{0, 0, 100}, [places]int{0, 0, 50}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := quotas(tt.have); got != tt.want {
				t.Errorf("quotas(%v) = %v, want %v", tt.have, got, tt.want)
			}
		})
	}
}

// TestPeersSpread looks at the graph that the lists make: everybody is in reach of everybody, and
// nobody is dialled by all.
func TestPeersSpread(t *testing.T) {
	tests := []struct {
		name                string
		nodes, zones, racks int
	}{
		{"one place", 400, 1, 1},
		{"racks larger than a list", 400, 1, 4},
		{"zones larger than a list", 400, 4, 1},
		{"many racks", 400, 3, 40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := map[string]*member{}
			for i := range tt.nodes {
				p := client.Peer{Node: fmt.Sprint("node-", i), Zone: fmt.Sprint(i % tt.zones), Rack: fmt.Sprint(i / tt.zones % tt.racks)}
				all[p.Node] = &member{peer: p, hash: stringHash(p.Node)}
			}
			dialled := map[string]int{}
			neighbours := map[string][]string{}
			for name, m := range all {
				list := nearest(m, all)
				if len(list) != client.MaxPeers {
					t.Fatalf("%s has %d peers", name, len(list))
				}
				seen := map[string]bool{name: true}
				nearer := sameRack
				for _, p := range list {
					if seen[p.peer.Node] {
						t.Fatalf("%s has %s twice, or itself", name, p.peer.Node)
					}
					seen[p.peer.Node] = true
					if at := place(m.peer, p.peer); at < nearer {
						t.Fatalf("%s has nearer peers behind farther ones", name)
					} else {
						nearer = at
					}
					dialled[p.peer.Node]++
					neighbours[name] = append(neighbours[name], p.peer.Node)
					neighbours[p.peer.Node] = append(neighbours[p.peer.Node], name)
				}
			}
			for name, n := range dialled {
				if n > 2*client.MaxPeers {
					t.Errorf("%s is in %d lists", name, n)
				}
			}
			reached := map[string]bool{"node-0": true}
			for queue := []string{"node-0"}; len(queue) > 0; queue = queue[1:] {
				for _, n := range neighbours[queue[0]] {
					if !reached[n] {
						reached[n] = true
						queue = append(queue, n)
					}
				}
			}
			if len(reached) != tt.nodes {
				t.Errorf("%d of %d nodes are in reach of the first", len(reached), tt.nodes)
			}
		})
	}
}

func BenchmarkNearest(b *testing.B) {
	all := map[string]*member{}
	for i := range 1000 {
		name := fmt.Sprint("node-", i)
		all[name] = &member{peer: client.Peer{Node: name}, hash: stringHash(name)}
	}
	for b.Loop() {
		nearest(all["node-7"], all)
	}
}
