package main

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// talk is a member's side of the announces: swarm's coordinator.
type talk struct {
	timer    int32 // number of the timer that counts
	waiting  bool  // for an answer
	ended    bool  // a lease or the layer ended while it waited
	origin   []int // leases under way
	imports  []int
	body     client.Announce
	reply    client.AnnounceReply
	interval time.Duration
	near     []int32              // the nodes of the last reply that named any
	heard    map[int32]swarm.Pace // how those give
	known    []int32              // nodes that were ever named
	meetAt   moment               // known peers are offered to the library again
	dialled  []int32              // nodes that the library was told of, without those that were not connected at meetAt
}

// lane returns the leases that are of l's kind.
func (t *talk) lane(l client.Lease) *[]int {
	if l.Node != "" {
		return &t.imports
	}
	return &t.origin
}

// announce sends what m has to say: coordinator.step until the answer.
func (w *world) announce(m *member) {
	t := &m.talk
	if m.left || t.waiting {
		return
	}
	t.waiting, t.ended = true, false
	t.timer++
	a := client.Announce{Node: m.node.name, Addr: m.node.addr, Zone: m.node.zone, Rack: m.node.rack, Size: m.layer.size, Epoch: m.node.epoch}
	if a.Complete = m.complete(); !a.Complete {
		a.Want, a.WantImports = swarm.Fetchers-len(t.origin), swarm.Fetchers-len(t.imports)
		a.Open = slices.Concat(t.origin, t.imports)
		a.Have = m.have.bitfield(m.layer.pieces)
		a.Stuck = w.stuck(m)
		a.Doubts = w.doubts(m)
	}
	t.body = a
	w.at(w.now+w.cfg.Latency+w.thinking(m.node.host), event{kind: announceHeard, a: m.id})
}

// heard is the tracker's part.
func (w *world) heard(m *member) (err error) {
	if m.left {
		return nil
	}
	before := w.tracker.cpu
	if m.talk.reply, err = w.tracker.announce(m.layer.path, m.talk.body); err != nil {
		return err
	}
	w.load.add(w.now, w.tracker.cpu-before)
	w.at(w.now+w.cfg.Latency+w.thinking(m.node.host), event{kind: replyHeard, a: m.id})
	return nil
}

// answered is coordinator.step from the answer on.
func (w *world) answered(m *member) {
	t := &m.talk
	if m.left {
		return
	}
	t.waiting = false
	reply := t.reply
	m.node.epoch = reply.Epoch
	t.interval = reply.Interval()
	w.meet(m, reply.Peers)
	for _, l := range reply.Leases {
		if lane := t.lane(l); !m.complete() && !m.have.has(l.Piece) && len(*lane) < swarm.Fetchers &&
			!slices.Contains(t.origin, l.Piece) && !slices.Contains(t.imports, l.Piece) {
			*lane = append(*lane, l.Piece)
			w.begin(m, l)
		}
	}
	if t.ended {
		w.announce(m)
		return
	}
	wait := t.interval
	if !m.complete() && len(t.origin)+len(t.imports) < 2*swarm.Fetchers && reply.RetryMS > 0 {
		wait = min(wait, max(swarm.MinRetry, reply.Retry()))
	}
	w.at(w.now+wait, event{kind: announceDue, a: m.id, b: t.timer})
}

// importsEnd has m fetch from the mirror what a member that died was sending it.
func (w *world) importsEnd(m, dead *member) {
	for _, id := range m.imports {
		c := w.conns[id]
		if c.peer != dead.id || !c.open {
			continue
		}
		c.open = false
		for _, p := range m.talk.imports {
			if c.piece == int32(p) && c.arrived < m.layer.parts(c) {
				w.fetchOrigin(m, p)
			}
		}
	}
}

// endLease ends the lease of piece p.
func (w *world) endLease(m *member, p int) {
	t := &m.talk
	ended := func(i int) bool { return i == p }
	t.origin, t.imports = slices.DeleteFunc(t.origin, ended), slices.DeleteFunc(t.imports, ended)
	m.lease(p, false)
	t.ended = true
	w.announce(m)
}

// begin fetches a leased piece, from another zone or the mirror.
func (w *world) begin(m *member, l client.Lease) {
	m.lease(l.Piece, true)
	if l.Node != "" {
		from := m.layer.memberOf(w, w.byName[l.Node])
		if from != nil && from.has(l.Piece) {
			w.fetch(m, w.importFrom(m, from), l.Piece)
			return
		}
	}
	w.fetchOrigin(m, l.Piece)
}

// fetchOrigin fetches a piece from the mirror.
func (w *world) fetchOrigin(m *member, p int) {
	for _, id := range m.origins {
		if c := w.conns[id]; c.pending() == 0 {
			w.beginFill(m.layer)
			w.fetch(m, c, p)
			return
		}
	}
}

// importFrom returns a connection of m to a member in another zone on which nothing is under way.
func (w *world) importFrom(m, from *member) *conn {
	for _, id := range m.imports {
		if c := w.conns[id]; c.peer == from.id && c.open && c.pending() == 0 {
			return c
		}
	}
	c := w.newConn(m.id, from.id)
	c.origin = true
	m.imports = append(m.imports, c.id)
	return c
}

// fetch asks for a whole piece by HTTP.
func (w *world) fetch(m *member, c *conn, p int) {
	c.arrived, c.piece = 0, int32(p)
	for b := range m.layer.parts(c) {
		c.queue = append(c.queue, request{piece: int32(p), block: uint8(b)})
	}
	w.ready(c)
}

// rangeArrives takes a chunk of a range that the mirror, or a node of another zone, sends.
func (w *world) rangeArrives(c *conn, m *member, p int, n int64) {
	if m.left || !c.open {
		return
	}
	if c.peer != m.layer.mirror {
		w.received += n
		w.imported += n
	}
	c.arrived++
	m.last = w.now
	if c.arrived < m.layer.parts(c) {
		return
	}
	if m.complete() || m.have.has(p) {
		w.wasted += m.layer.length
	} else {
		w.gain(m, p)
	}
	w.endLease(m, p)
}

// meet takes the peers of a reply, and dials all known ones that are not connected now and then.
func (w *world) meet(m *member, peers []client.Peer) {
	t := &m.talk
	if len(peers) > 0 {
		near := make([]int32, 0, len(peers))
		heard := make(map[int32]swarm.Pace, len(peers))
		for _, p := range peers {
			id := w.byName[p.Node]
			near = append(near, id)
			pace, known := t.heard[id]
			if !known {
				pace = swarm.NewPace(w.clock())
			}
			heard[id] = pace
			if !slices.Contains(t.known, id) {
				t.known = append(t.known, id)
			}
		}
		t.near, t.heard = near, heard
	}
	again := w.now >= t.meetAt
	if !again && len(peers) == 0 {
		return
	}
	linked := map[int32]bool{}
	for _, l := range m.links {
		linked[l.peer.node.id] = true
	}
	if again {
		t.meetAt = w.now + swarm.Reconnect
		t.dialled = slices.DeleteFunc(t.dialled, func(id int32) bool { return !linked[id] })
	}
	if m.complete() {
		return // what complete nodes dial is not modelled: others who lack something dial them
	}
	known := slices.Clone(t.known)
	w.random.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
	for _, id := range known {
		if len(t.dialled) >= swarm.MaxDialled || linked[id] || slices.Contains(t.dialled, id) {
			continue
		}
		t.dialled = append(t.dialled, id)
		if other := m.layer.memberOf(w, id); other != nil {
			wait := 3*w.cfg.Latency + w.thinking(m.node.host) + moment(w.random.Int64N(int64(dialTime)))
			w.at(w.now+wait, event{kind: peersMeet, a: m.id, b: other.id})
		}
	}
}

// dialTime is how long dials spread: a TLS handshake takes some milliseconds of both processors, and
// the library has 25 dials on the way at once.
const dialTime = 20 * time.Millisecond

// stuck lists what swarm's offers would.
func (w *world) stuck(m *member) []int {
	var out []int
	for p, since := range m.orphans {
		if m.cells[p].avail == 0 && w.now-since > swarm.OrphanAfter {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	out = out[:min(len(out), swarm.MaxStuck)]
	silent := w.now-m.last > swarm.SilentAfter
	if !silent && m.latest <= swarm.OvertakenAfter {
		return out
	}
	for p := range m.wanted.all() {
		asked := m.askedAt[p]
		late := silent && w.now-m.wantedAt[p] > swarm.SilentAfter || asked > 0 && m.latest-asked > swarm.OvertakenAfter
		if late && len(out) < swarm.MaxStuck {
			out = append(out, p)
		}
	}
	return out
}

// doubts names what swarm's trust would.
func (w *world) doubts(m *member) []string {
	t := &m.talk
	for _, l := range m.links {
		who := l.peer.node.id
		if last, near := t.heard[who]; near {
			t.heard[who] = last.Later(l.out.pace)
		}
	}
	var out []string
	for _, id := range t.near {
		if t.heard[id].Doubtful(w.clock()) {
			out = append(out, w.nodes[id].name)
		}
	}
	return out
}

// memberOf returns the node's live part in the layer, or nil.
func (l *layer) memberOf(w *world, node int32) *member {
	for _, id := range w.nodes[node].members {
		if m := w.members[id]; m.layer == l && !m.left {
			return m
		}
	}
	return nil
}
