package main

import (
	"cmp"
	"math/bits"
	"slices"
)

// What the library does; file and line of github.com/anacrolix/torrent v1.62.0.
const (
	// maxConns is how many connections a torrent has (config.go:319).
	maxConns = 50
	// maxRequests is how many requests a peer takes at once (client.go:1373).
	maxRequests = 1024
)

// candidate is a piece of which a peer could be asked for blocks.
type candidate struct {
	piece int
	avail uint8
	rank  uint32 // the member's random order of pieces (torrent.go:574)
}

// chooser holds what choose needs again and again.
type chooser struct {
	count [2 * (maxConns + 1)]int
	open  []int32 // pieces of which the peer could be asked for something
	found []candidate
}

// choose asks c's supplier for blocks: the library's updateRequests. It fills the pipeline to twice of
// what the last update added (peerconn.go:1731), within the swarm's window; so an update that finds it full,
// as those by HAVE often do, halts it until it is empty (peerconn.go:2046).
func (w *world) choose(c *conn) {
	m, peer := w.members[c.member], w.members[c.peer]
	if !c.open || m.complete() || m.left {
		return
	}
	room := max(1, min(c.window.Limit(), 2*c.peak)) - c.pending()
	c.peak = 0
	if room <= 0 {
		return
	}
	limit := max(2*m.layer.blocks, 4*(room+c.pending()))
	w.chooser.gather(m, peer.told, limit)
	for _, x := range w.chooser.found {
		if room == 0 {
			break
		}
		taken := askFor(m, c, x.piece, room)
		room -= taken
		c.peak += taken
		for range taken {
			m.askedAt[x.piece] = w.now
			c.window.Ask(w.clock())
		}
	}
	if c.peak > 0 {
		w.ready(c)
	}
}

// chooseIdle lets the connections of m that wait for nothing look again.
func (w *world) chooseIdle(m *member) {
	if m.complete() || m.left {
		return
	}
	for _, l := range m.links {
		if l.out.pending() == 0 {
			w.choose(l.out)
		}
	}
}

// askFor requests at most room blocks of piece p and returns how many.
func askFor(m *member, c *conn, p, room int) int {
	if m.blocks == nil {
		m.ask(p)
		c.queue = append(c.queue, request{piece: int32(p)})
		return 1
	}
	state := &m.blocks[p]
	all := m.layer.allBlocks()
	n := 0
	for free := all &^ state.asked; free != 0 && n < room; n++ {
		b := bits.TrailingZeros64(free)
		free &^= 1 << b
		state.asked |= 1 << b
		c.queue = append(c.queue, request{piece: int32(p), block: uint8(b)})
	}
	if state.asked == all {
		m.ask(p)
	}
	return n
}

// gather finds the pieces that hold the first limit blocks, by the order in which the library looks
// (internal/request-strategy/order.go:22: partial ones first, then by availability, then by index), and
// sorts them as it then prefers them (requesting.go:200: by availability, then by the random order).
func (h *chooser) gather(m *member, told set, limit int) {
	h.found = h.found[:0]
	h.count = [len(h.count)]int{}
	least, most := len(h.count), -1
	class := func(p int) int {
		k := int(m.cells[p].avail)
		if m.blocks == nil || m.blocks[p].got == 0 {
			k += maxConns + 1
		}
		return k
	}
	size := func(p int) int {
		if m.blocks == nil {
			return 1
		}
		return m.layer.blocks - bits.OnesCount64(m.blocks[p].asked)
	}
	h.open = h.open[:0]
	for i, word := range told {
		for word = word & m.wanted[i] &^ m.asked[i]; word != 0; {
			bit := bits.LeadingZeros64(word)
			word &^= 1 << (63 - bit)
			p := 64*i + bit
			h.open = append(h.open, int32(p))
			k := class(p)
			h.count[k] += size(p)
			least, most = min(least, k), max(most, k)
		}
	}
	last, room := len(h.count), limit // classes before last are looked at whole, of last itself room blocks
	for k := least; k <= most; k++ {
		if h.count[k] >= room {
			last = k
			break
		}
		room -= h.count[k]
	}
	for _, piece := range h.open {
		p := int(piece)
		k := class(p)
		if k > last || k == last && room <= 0 {
			continue
		}
		if k == last {
			room -= size(p)
		}
		h.found = append(h.found, candidate{p, m.cells[p].avail, uint32(mix(m.seed, uint64(p)))})
	}
	slices.SortFunc(h.found, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.avail, b.avail), cmp.Compare(a.rank, b.rank))
	})
}

// mix makes a random-looking number of two (the finalizer of splitmix64).
func mix(a, b uint64) uint64 {
	x := a*0x9e3779b97f4a7c15 ^ b
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
