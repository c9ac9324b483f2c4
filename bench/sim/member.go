package main

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// set holds pieces. Piece i is bit 63-i%64 of word i/64, so that its bytes are a bitfield of BEP 3.
type set []uint64

func newSet(n int) set       { return make(set, (n+63)/64) }
func (s set) has(i int) bool { return s[i/64]&(1<<(63-i%64)) != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (63 - i%64) }
func (s set) remove(i int)   { s[i/64] &^= 1 << (63 - i%64) }
func (s set) bitfield(n int) []byte {
	wire := make([]byte, 8*len(s))
	for w, word := range s {
		binary.BigEndian.PutUint64(wire[8*w:], word)
	}
	return wire[:(n+7)/8]
}

// each calls f with the pieces of a word, in order.
func eachOf(w int, word uint64, f func(i int)) {
	for word != 0 {
		bit := bits.LeadingZeros64(word)
		word &^= 1 << (63 - bit)
		f(64*w + bit)
	}
}

// layer is one blob with its swarm.
type layer struct {
	size    int64
	pieces  int
	length  int64 // of a piece
	blocks  int   // of a piece, as peers ask for them
	chunks  int   // of a piece, as the mirror's uplink shares them out
	path    string
	mirror  int32 // the member that is the mirror
	fill    int32 // the connection by which the mirror reads upstream, -1 before the first read
	filled  int   // pieces that the mirror has
	parked  []int32
	members []int32
	done    []moment // of the members that finished, in order
}

// request is a block that was asked for.
type request struct {
	piece int32
	block uint8
}

// conn is one direction of a connection: what member asks from peer.
type conn struct {
	id, member, peer int32
	back             int32 // the other direction, -1 for that to the mirror
	origin           bool  // HTTP ranges
	open             bool
	ready            bool // in the ring of the supplier's host
	queue            []request
	flying           int    // blocks that are on the way
	peak             int    // requests that the last update added: the library's peakRequests
	arrived          int    // chunks of a range
	gave             moment // when the last block came
}

func (c *conn) pending() int { return len(c.queue) + c.flying }

// progress is how far the blocks of a piece are.
type progress struct{ asked, got uint16 }

// member is a node's part in a layer's swarm: swarm.Session and the library's Torrent.
type member struct {
	id       int32
	node     *node
	layer    *layer
	have     set
	told     set // what its peers know that it has
	asked    set // pieces of which every block is asked for or there
	wanted   set // pieces that some peer offered, and that are not being leased
	leased   map[int]bool
	missing  int
	avail    []uint8    // connected peers that have a piece
	blocks   []progress // nil where a piece is one block
	wantedAt []moment
	orphans  map[int]moment
	latest   moment // when the most lately wanted of the pieces that came was wanted
	last     moment // of the last block or piece
	seed     uint64 // of its random order of pieces
	conns    []int32
	origins  [2]int32 // connections to the mirror, one a fetcher
	left     bool     // it is dead
	talk     talk
}

func (m *member) has(i int) bool { return m.have == nil || m.have.has(i) }
func (m *member) complete() bool { return m.missing == 0 }

// forget frees what only an incomplete member needs.
func (m *member) forget() {
	m.have, m.asked, m.wanted, m.avail, m.blocks, m.wantedAt, m.orphans = nil, nil, nil, nil, nil, nil, nil
}

// join makes n a member of l. It connects to nobody yet.
func (w *world) join(n *node, l *layer) *member {
	m := &member{
		id: int32(len(w.members)), node: n, layer: l, missing: l.pieces,
		have: newSet(l.pieces), told: newSet(l.pieces), asked: newSet(l.pieces), wanted: newSet(l.pieces),
		avail: make([]uint8, l.pieces), wantedAt: make([]moment, l.pieces),
		leased: map[int]bool{}, orphans: map[int]moment{}, seed: w.random.Uint64(), last: w.now,
	}
	if l.blocks > 1 {
		m.blocks = make([]progress, l.pieces)
	}
	w.members = append(w.members, m)
	l.members = append(l.members, m.id)
	n.members = append(n.members, m.id)
	return m
}

func (w *world) newConn(member, peer int32) *conn {
	c := &conn{id: int32(len(w.conns)), member: member, peer: peer, back: -1, open: true, gave: w.now}
	w.conns = append(w.conns, c)
	return c
}

// connect makes a and b peers, unless one of them is gone, full, or has the other already. Both see at
// once what the other holds.
func (w *world) connect(a, b *member) {
	if a.left || b.left || len(a.conns) >= maxConns || len(b.conns) >= maxConns || a.complete() && b.complete() {
		return
	}
	for _, id := range a.conns {
		if w.conns[id].peer == b.id {
			return
		}
	}
	x, y := w.newConn(a.id, b.id), w.newConn(b.id, a.id)
	x.back, y.back = y.id, x.id
	a.conns, b.conns = append(a.conns, x.id), append(b.conns, y.id)
	w.greet(x)
	w.greet(y)
}

// greet takes the supplier's bitfield.
func (w *world) greet(c *conn) {
	m, peer := w.members[c.member], w.members[c.peer]
	if m.complete() {
		return
	}
	for i, word := range peer.told {
		eachOf(i, word, func(p int) {
			m.avail[p]++
			w.offered(m, p)
		})
	}
	w.choose(c)
}

// offered wants piece p if that makes sense: swarm's wantLoop.
func (w *world) offered(m *member, p int) {
	if !m.have.has(p) && !m.leased[p] && !m.wanted.has(p) {
		m.wanted.add(p)
		m.wantedAt[p] = w.now
		delete(m.orphans, p)
	}
}

// tell lets all peers of m know that it has p.
func (w *world) tell(m *member, p int) {
	if m.left {
		return
	}
	m.told.add(p)
	for _, id := range m.conns {
		c := w.conns[w.conns[id].back]
		o := w.members[c.member]
		if o.complete() {
			continue
		}
		o.avail[p]++
		if o.have.has(p) {
			continue
		}
		w.offered(o, p)
		if o.asked.has(p) {
			c.peak = 0 // an update that adds nothing
			continue
		}
		w.choose(c)
	}
}

// hangUp ends the connections of a dead member, as its peers see it.
func (w *world) hangUp(dead *member) {
	dead.left = true
	for _, id := range dead.conns {
		c := w.conns[w.conns[id].back]
		w.part(c)
		o := w.members[c.member]
		if o.complete() {
			continue
		}
		for i, word := range dead.told {
			eachOf(i, word, func(p int) {
				o.avail[p]--
				if o.avail[p] == 0 && o.wanted.has(p) && !o.have.has(p) {
					o.wanted.remove(p)
					if _, known := o.orphans[p]; !known {
						o.orphans[p] = w.now
					}
				}
			})
		}
		for _, r := range c.queue {
			w.release(o, r)
		}
		c.queue = nil
		w.chooseIdle(o)
	}
	for _, id := range dead.origins {
		w.conns[id].open = false
	}
}

// part closes both directions of a connection and takes it from the member that c is of.
func (w *world) part(c *conn) {
	m := w.members[c.member]
	m.conns = slices.DeleteFunc(m.conns, func(id int32) bool { return id == c.id })
	c.open, w.conns[c.back].open = false, false
}

// dropComplete ends the connections between m, which has everything, and others who have: the library's
// DropMutuallyCompletePeers, which makes room for those who need something.
func (w *world) dropComplete(m *member) {
	for _, id := range slices.Clone(m.conns) {
		c := w.conns[id]
		if w.members[c.peer].complete() {
			w.part(c)
			w.part(w.conns[c.back])
		}
	}
}

// release makes a block that was asked for in vain free to be asked for again.
func (w *world) release(m *member, r request) {
	if m.complete() || m.have.has(int(r.piece)) {
		return
	}
	m.asked.remove(int(r.piece))
	if m.blocks != nil {
		m.blocks[r.piece].asked &^= 1 << r.block
	}
}

// arrive takes a block that came over c.
func (w *world) arrive(c *conn, r request) {
	c.flying--
	m, p := w.members[c.member], int(r.piece)
	if m.id == m.layer.mirror {
		w.filled(m.layer, p)
		return
	}
	n := w.blockBytes(c, r)
	if c.origin {
		w.rangeArrives(c, m, p)
		return
	}
	if !c.open {
		w.release(m, r) // it was under way when its sender died
		w.chooseIdle(m)
		return
	}
	if m.complete() || m.have.has(p) {
		w.wasted += n
		return
	}
	w.received += n
	m.last, c.gave = w.now, w.now
	whole := true
	if m.blocks != nil {
		m.blocks[p].got |= 1 << r.block
		whole = m.blocks[p].got == 1<<m.layer.blocks-1
	}
	if whole {
		w.gain(m, p)
	}
	if c.pending() == 0 {
		w.choose(c)
	}
}

// gain marks piece p of m as there.
func (w *world) gain(m *member, p int) {
	m.have.add(p)
	m.asked.add(p)
	m.missing--
	m.last = w.now
	if m.wanted.has(p) {
		m.wanted.remove(p)
		m.latest = max(m.latest, m.wantedAt[p])
	}
	delete(m.orphans, p)
	w.at(w.now+w.cfg.Latency+w.thinking(m.node.host), event{kind: pieceTold, a: m.id, b: int32(p)})
	if m.complete() {
		w.finish(m)
	}
}
