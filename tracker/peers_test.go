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
	expect("first reply", zone, "a")
	expect("a join", a, "zone")
	expect("nothing new", a)
	rack.a.Complete = true
	expect("a near one", rack, "a", "zone")
	expect("a zone of its own", far)
	got := a.ask(0).Peers
	want := []client.Peer{
		{Node: "rack", Addr: "127.0.0.4:1", Zone: "z1", Rack: "r1", Complete: true},
		{Node: "zone", Addr: "127.0.0.3:1", Zone: "z1", Rack: "r2"},
	}
	if !slices.Equal(got, want) {
		t.Fatalf("peers %+v, want near ones first: %+v", got, want)
	}
	far.a.Addr = "127.0.0.2:2"
	far.ask(0)
	expect("a new address in another zone", a)
	zone.a.Addr = "127.0.0.3:2"
	zone.ask(0)
	expect("a new address", a, "rack", "zone")
	r.clock.advance(time.Second)
	expect("nothing new later", a)
	for range 10 {
		r.clock.advance(time.Second)
		for _, n := range []*node{far, zone, rack} {
			n.ask(0)
		}
	}
	expect("after a reply that may be lost", a, "rack", "zone")
	// A node that was started again knows nobody.
	again := at("a", "127.0.0.1:1", "z1", "r1")
	expect("a fresh process", again, "rack", "zone")
	far.a.Zone = "z1"
	far.ask(0)
	moved := names(a.ask(0).Peers) // equally near ones come in an order of the asker's
	if slices.Sort(moved); !slices.Equal(moved, []string{"far", "rack", "zone"}) {
		t.Fatalf("after a move: peers %v", moved)
	}
	far.a.Left = true
	far.ask(0)
	expect("a leave", a, "rack", "zone")
}

// TestImports: what another zone holds is leased with the name and address of one who has it.
func TestImports(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	a, b := newNode(r, "a", "127.0.0.1:1", key), newNode(r, "b", "127.0.0.2:1", key)
	a.a.Zone, b.a.Zone = "z1", "z2"
	a.ask(0)
	r.clock.advance(time.Second)
	a.ask(2)
	r.clock.advance(100 * time.Millisecond)
	a.fetched()
	a.ask(0)
	b.a.WantImports = 3
	reply := b.ask(1)
	want := []client.Lease{{Piece: 0, Node: "a", Addr: "127.0.0.1:1"}, {Piece: 1, Node: "a", Addr: "127.0.0.1:1"}, {Piece: 2}}
	if !slices.Equal(reply.Leases, want) || len(reply.Peers) != 0 {
		t.Fatalf("%+v, want leases %+v and no peers", reply, want)
	}
	list, err := a.c.Swarms(t.Context())
	if err != nil || len(list) != 1 || list[0].Imports != 2 || list[0].Granted != 3 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestNearest(t *testing.T) {
	tests := []struct {
		name             string
		rack, zone, far  int // others that there are
		fromRack, fromZn int // that are chosen
	}{
		{"nobody", 0, 0, 0, 0, 0},
		{"few", 3, 2, 1, 3, 2},
		{"a full rack", 100, 100, 100, 40, 10},
		{"a full rack alone", 100, 0, 100, 50, 0},
		{"a small zone", 100, 3, 0, 47, 3},
		{"a small rack", 2, 100, 100, 2, 48},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asker := &member{peer: client.Peer{Node: "asker", Zone: "z", Rack: "r"}}
			all := map[string]*member{"asker": asker}
			add := func(n int, zone, rack string) {
				for range n {
					p := client.Peer{Node: fmt.Sprint("node-", len(all)), Zone: zone, Rack: rack}
					all[p.Node] = &member{peer: p, hash: stringHash(p.Node)}
				}
			}
			add(tt.rack, "z", "r")
			add(tt.zone, "z", "s")
			add(tt.far, "y", "r")
			got := nearest(asker, all)
			for i, m := range got {
				want := "s"
				if i < tt.fromRack {
					want = "r"
				}
				if m.peer.Zone != "z" || m.peer.Rack != want {
					t.Errorf("peer %d is %+v", i, m.peer)
				}
			}
			if len(got) != tt.fromRack+tt.fromZn {
				t.Errorf("%d peers", len(got))
			}
		})
	}
	same := map[string]*member{}
	for i := range 3 {
		same[fmt.Sprint(i)] = &member{peer: client.Peer{Node: fmt.Sprint(i)}}
	}
	if got := nearest(same["0"], same); len(got) != 2 {
		t.Errorf("nodes without a zone are in one: %d", len(got))
	}
}

// TestPeersSpread looks at the graph that the lists make: everybody is in reach of everybody in the zone, and
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
				otherRack := false
				for _, p := range list {
					if seen[p.peer.Node] {
						t.Fatalf("%s has %s twice, or itself", name, p.peer.Node)
					}
					seen[p.peer.Node] = true
					if p.peer.Zone != m.peer.Zone || otherRack && p.peer.Rack == m.peer.Rack {
						t.Fatalf("%s has %+v behind farther ones, or from another zone", name, p.peer)
					}
					otherRack = p.peer.Rack != m.peer.Rack
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
			if len(reached) < tt.nodes/tt.zones {
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
