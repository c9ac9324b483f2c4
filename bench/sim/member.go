package main

import (
	"encoding/binary"
	"iter"
	"math/bits"
	"slices"

	"github.com/shoal-project/shoal/swarm"
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

// all yields the pieces in order.
func (s set) all() iter.Seq[int] {
	return func(yield func(int) bool) {
		for w, word := range s {
			for ; word != 0; word &^= 1 << (63 - bits.LeadingZeros64(word)) {
				if !yield(64*w + bits.LeadingZeros64(word)) {
					return
				}
			}
		}
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

// allBlocks is the bits of a piece's blocks in progress.
func (l *layer) allBlocks() uint64 { return ^uint64(0) >> (64 - l.blocks) }

// parts is how many parts of a piece share c's supplier's uplink with others.
func (l *layer) parts(c *conn) int {
	if c.peer == l.mirror {
		return l.chunks
	}
	return l.blocks
}

// request is a block that was asked for.
type request struct {
	piece int32
	block uint8
}

// conn is one direction of a connection: what member asks from peer.
type conn struct {
	id, member, peer int32
	origin           bool // HTTP ranges
	open             bool
	ready            bool // in the ring of the supplier's host
	queue            []request
	flying           int           // blocks that are on the way
	peak             int           // requests that the last update added: the library's peakRequests
	window           *swarm.Window // nil for HTTP
	arrived          int           // chunks of a range
	piece            int32         // that the range is of
	pace             swarm.Pace
}

func (c *conn) pending() int { return len(c.queue) + c.flying }

// cell is what a member knows of a piece, in one place: a HAVE of a peer then touches one line of cache.
type cell struct {
	avail uint8 // connected peers that have it
	flags uint8
}

// Flags of a cell. The sets of a member say the same, for those who look for pieces.
const (
	isHeld   = 1 << iota // in have
	isAsked              // in asked
	isWanted             // in wanted
	isLeased
)

// link is a connection as a member sees it.
type link struct {
	out  *conn // what the member asks for
	in   *conn // what the peer asks for
	peer *member
}

// progress is how far the blocks of a piece are.
type progress struct{ asked, got uint64 }

// member is a node's part in a layer's swarm: swarm.Session and the library's Torrent.
type member struct {
	id       int32
	node     *node
	layer    *layer
	have     set
	told     set // what its peers know that it has
	asked    set // pieces of which every block is asked for or there
	wanted   set // pieces that some peer offered, and that are not being leased
	missing  int
	cells    []cell
	blocks   []progress // nil where a piece is one block
	wantedAt []moment
	askedAt  []moment // when a block was asked from a peer last; 0 before that
	orphans  map[int]moment
	latest   moment // when the most lately asked of the pieces that came was asked from a peer
	last     moment // of the last block or piece
	seed     uint64 // of its random order of pieces
	links    []link
	origins  [2 * swarm.Fetchers]int32 // connections to the mirror: an import may end as a fetch from there
	imports  []int32                   // connections to members in other zones
	left     bool                      // it is dead
	talk     talk
}

func (m *member) has(i int) bool { return m.have == nil || m.have.has(i) }
func (m *member) complete() bool { return m.missing == 0 }

// forget frees what only an incomplete member needs.
func (m *member) forget() {
	m.have, m.asked, m.wanted, m.cells, m.blocks, m.orphans, m.imports = nil, nil, nil, nil, nil, nil, nil
	m.wantedAt, m.askedAt = nil, nil
}

// ask, want and hold keep cells and sets the same.
func (m *member) ask(p int)    { m.asked.add(p); m.cells[p].flags |= isAsked }
func (m *member) unask(p int)  { m.asked.remove(p); m.cells[p].flags &^= isAsked }
func (m *member) want(p int)   { m.wanted.add(p); m.cells[p].flags |= isWanted }
func (m *member) unwant(p int) { m.wanted.remove(p); m.cells[p].flags &^= isWanted }
func (m *member) hold(p int)   { m.have.add(p); m.cells[p].flags |= isHeld }

// lease notes that p is being fetched from the mirror, or no longer is.
func (m *member) lease(p int, on bool) {
	if m.cells == nil {
		return
	}
	m.cells[p].flags &^= isLeased
	if on {
		m.cells[p].flags |= isLeased
	}
}

// join makes n a member of l. It connects to nobody yet.
func (w *world) join(n *node, l *layer) *member {
	m := &member{
		id: int32(len(w.members)), node: n, layer: l, missing: l.pieces,
		have: newSet(l.pieces), told: newSet(l.pieces), asked: newSet(l.pieces), wanted: newSet(l.pieces),
		cells: make([]cell, l.pieces), wantedAt: make([]moment, l.pieces), askedAt: make([]moment, l.pieces),
		orphans: map[int]moment{}, seed: w.random.Uint64(), last: w.now,
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
	c := &conn{id: int32(len(w.conns)), member: member, peer: peer, open: true, pace: swarm.NewPace(w.clock())}
	w.conns = append(w.conns, c)
	return c
}

// connect makes a and b peers, unless one of them is gone, full, or has the other already. Both see at
// once what the other holds.
func (w *world) connect(a, b *member) {
	if a.left || b.left || len(a.links) >= maxConns || len(b.links) >= maxConns || a.complete() && b.complete() {
		return
	}
	for _, l := range a.links {
		if l.peer == b {
			return
		}
	}
	x, y := w.newConn(a.id, b.id), w.newConn(b.id, a.id)
	x.window, y.window = swarm.NewWindow(maxRequests), swarm.NewWindow(maxRequests)
	a.links, b.links = append(a.links, link{x, y, b}), append(b.links, link{y, x, a})
	w.greet(x)
	w.greet(y)
}

// greet takes the supplier's bitfield.
func (w *world) greet(c *conn) {
	m, peer := w.members[c.member], w.members[c.peer]
	if m.complete() {
		return
	}
	for p := range peer.told.all() {
		m.cells[p].avail++
		w.offered(m, p)
	}
	w.choose(c)
}

// offered wants piece p if that makes sense: swarm's wantLoop.
func (w *world) offered(m *member, p int) {
	if m.cells[p].flags&(isHeld|isLeased|isWanted) == 0 {
		m.want(p)
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
	for _, l := range m.links {
		if l.peer.complete() {
			continue
		}
		x := &l.peer.cells[p]
		x.avail++
		if x.flags&isHeld != 0 {
			continue
		}
		w.offered(l.peer, p)
		if x.flags&isAsked != 0 {
			l.in.peak = 0 // an update that adds nothing
			continue
		}
		w.choose(l.in)
	}
}

// hangUp ends the connections of a dead member, as its peers see it.
func (w *world) hangUp(dead *member) {
	dead.left = true
	for _, l := range slices.Clone(dead.links) {
		w.part(dead, l)
		o := l.peer
		if o.complete() {
			continue
		}
		for p := range dead.told.all() {
			o.cells[p].avail--
			if o.cells[p].avail == 0 && o.wanted.has(p) && !o.have.has(p) {
				o.unwant(p)
				if _, known := o.orphans[p]; !known {
					o.orphans[p] = w.now
				}
			}
		}
		for _, r := range l.in.queue {
			w.release(o, r)
		}
		l.in.queue = nil
		w.chooseIdle(o)
	}
	for _, id := range slices.Concat(dead.origins[:], dead.imports) {
		w.conns[id].open = false
	}
	for _, id := range dead.layer.members {
		if m := w.members[id]; !m.left && !m.complete() && m.node.zone != dead.node.zone {
			w.importsEnd(m, dead)
		}
	}
}

// part closes a connection of m, both directions.
func (w *world) part(m *member, l link) {
	l.out.open, l.in.open = false, false
	m.links = slices.DeleteFunc(m.links, func(o link) bool { return o.out == l.out })
	l.peer.links = slices.DeleteFunc(l.peer.links, func(o link) bool { return o.in == l.out })
}

// dropComplete ends the connections between m, which has everything, and others who have: they make room
// for those who need something.
func (w *world) dropComplete(m *member) {
	for _, l := range slices.Clone(m.links) {
		if l.peer.complete() {
			w.part(m, l)
		}
	}
}

// release makes a block that was asked for in vain free to be asked for again.
func (w *world) release(m *member, r request) {
	if m.complete() || m.have.has(int(r.piece)) {
		return
	}
	m.unask(int(r.piece))
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
	if c.window != nil {
		c.window.End(w.clock())
	}
	if c.origin {
		w.rangeArrives(c, m, p, n)
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
	m.last = w.now
	c.pace.Give(w.clock())
	whole := true
	if m.blocks != nil {
		m.blocks[p].got |= 1 << r.block
		whole = m.blocks[p].got == m.layer.allBlocks()
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
	m.hold(p)
	m.ask(p)
	m.missing--
	m.last = w.now
	if m.wanted.has(p) {
		m.unwant(p)
		m.latest = max(m.latest, m.askedAt[p])
	}
	delete(m.orphans, p)
	w.at(w.now+w.cfg.Latency+w.thinking(m.node.host), event{kind: pieceTold, a: m.id, b: int32(p)})
	if m.complete() {
		w.finish(m)
	}
}
