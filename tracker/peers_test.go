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
	at := func(name, addr, rack string) *node {
		n := newNode(r, name, addr, key)
		n.a.Zone, n.a.Rack = "z1", rack
		return n
	}
	a := at("a", "127.0.0.1:1", "r1")
	far, rack := at("far", "127.0.0.3:1", "r2"), at("rack", "127.0.0.4:1", "r1")
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
	got := a.ask(0).Peers
	want := []client.Peer{
		{Node: "rack", Addr: "127.0.0.4:1", Zone: "z1", Rack: "r1", Complete: true},
		{Node: "far", Addr: "127.0.0.3:1", Zone: "z1", Rack: "r2"},
	}
	if !slices.Equal(got, want) {
		t.Fatalf("peers %+v, want near ones first: %+v", got, want)
	}
	far.a.Addr = "127.0.0.3:2"
	far.ask(0)
	expect("a new address", a, "rack", "far")
	r.clock.advance(time.Second)
	expect("nothing new later", a)
	for range 10 {
		r.clock.advance(time.Second)
		for _, n := range []*node{far, rack} {
			n.ask(0)
		}
	}
	expect("after a reply that may be lost", a, "rack", "far")
	// A node that was started again knows nobody.
	again := at("a", "127.0.0.1:1", "r1")
	expect("a fresh process", again, "rack", "far")
	far.a.Left = true
	far.ask(0)
	expect("a leave", a, "rack")
}

func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		name                 string
		inRack, others       int
		wantRack, wantOthers int
	}{
		{"nobody", 0, 0, 0, 0},
		{"few", 3, 2, 3, 2},
		{"a full rack", 100, 100, 40, 10},
		{"a full rack alone", 100, 0, 50, 0},
		{"a full rack and few others", 100, 3, 47, 3},
		{"a small rack", 2, 100, 2, 48},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &member{peer: client.Peer{Node: "m", Rack: "r"}}
			all := map[string]*member{"m": m}
			for i := range tt.inRack + tt.others {
				p := client.Peer{Node: fmt.Sprint("node-", i)}
				if i < tt.inRack {
					p.Rack = "r"
				}
				all[p.Node] = &member{peer: p, hash: stringHash(p.Node)}
			}
			var rack, others int
			for _, p := range nearest(m, all) {
				if sameRack(m.peer, p) {
					rack++
				} else {
					others++
				}
			}
			if rack != tt.wantRack || others != tt.wantOthers {
				t.Errorf("%d of the rack and %d others, want %d and %d", rack, others, tt.wantRack, tt.wantOthers)
			}
		})
	}
}

// TestPeersSpread looks at the graph that the lists make: everybody is in reach of everybody, and
// nobody is dialled by all.
func TestPeersSpread(t *testing.T) {
	tests := []struct {
		name         string
		nodes, racks int
	}{
		{"one place", 400, 1},
		{"racks larger than a list", 400, 4},
		{"many racks", 400, 40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := map[string]*member{}
			for i := range tt.nodes {
				p := client.Peer{Node: fmt.Sprint("node-", i), Rack: fmt.Sprint(i % tt.racks)}
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
				near := true
				for _, p := range list {
					if seen[p.Node] {
						t.Fatalf("%s has %s twice, or itself", name, p.Node)
					}
					seen[p.Node] = true
					if same := sameRack(m.peer, p); same && !near {
						t.Fatalf("%s has nearer peers behind farther ones", name)
					} else {
						near = same
					}
					dialled[p.Node]++
					neighbours[name] = append(neighbours[name], p.Node)
					neighbours[p.Node] = append(neighbours[p.Node], name)
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
