package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/swarm"
)

// config is what is played. Rates are of body bytes a second, each way, 0 for no limit.
type config struct {
	Nodes, Zones, Racks int
	Layers              int
	LayerBytes          int64
	Parallel            int     // layers that a node fetches side by side (peer.Config.Layers)
	Coarse              bool    // peers send whole pieces, not blocks
	Rate                float64 // of a node's link
	MirrorRate          float64 // of the mirror's uplink and downlink
	RegistryRate        float64 // of what the mirror reads from
	ZoneRate            float64 // of each zone's link to the others
	// Latency is one way between any two hosts.
	Latency time.Duration
	// Window is how much a way may have queued before TCP sends no more into it.
	Window time.Duration
	// Start is what a node needs from being told to its first announce: manifest and hash layer.
	Start time.Duration
	// CPURate is how many bytes a second a machine can receive from the network, pass on and verify.
	CPURate float64
	// OneMachine says that all hosts share one processor, as in bench/fanout; MirrorCost is then what a
	// byte costs the mirror, in terms of what it costs a node.
	OneMachine bool
	MirrorCost float64
	Every      time.Duration // between two nodes' being told; 0 is all at once
	Slow       int           // further nodes, with a quarter of the rate; they do not count
	Lost       float64       // share of the nodes that die
	LostWithin time.Duration
	Seed       uint64
}

// zone is a zone's link to the others.
type zone struct{ in, out server }

// node is a machine that wants the model.
type node struct {
	id         int32
	name, addr string
	zone, rack string
	epoch      string // of the tracker
	host       *host
	members    []int32
	next       int    // layer to begin
	left       int    // layers that are not complete
	joined     moment // when it was told of the model
	finished   moment // 0 while it is not
	spare      bool   // it replaces a lost one
	slow       bool
}

// world is one run.
type world struct {
	cfg      config
	now      moment
	random   *rand.Rand
	queue    queue
	tracker  *trackerHost
	nodes    []*node
	byName   map[string]int32
	hosts    []*host
	zones    []zone
	layers   []*layer
	members  []*member
	conns    []*conn
	cpu      *server // of all, or nil
	registry *node
	mirror   *node
	chooser  chooser
	waiting  int // live nodes that are not finished
	lost     int
	received int64 // body bytes from peers
	imported int64 // of them, by leases, from other zones
	wasted   int64
	load     load
	report   func(now moment, done float64)
}

// load is the announces by virtual second.
type load struct {
	messages []int
	cpu      []time.Duration
}

// firstNode is the number of the first node that wants the model: registry and mirror come before.
const firstNode = 2

// replaceAfter is how long after a loss the new machine is there.
const replaceAfter = 5 * time.Second

// farTooLong is after how many times of the bound a run that has not ended is one that never will.
const farTooLong = 50

func newWorld(cfg config) (*world, error) {
	w := &world{cfg: cfg, random: rand.New(rand.NewPCG(cfg.Seed, 1)), byName: map[string]int32{}, zones: make([]zone, max(cfg.Zones, 1))}
	for i := range w.zones {
		w.zones[i].in.rate, w.zones[i].out.rate = cfg.ZoneRate, cfg.ZoneRate
	}
	if cfg.OneMachine {
		w.cpu = &server{rate: cfg.CPURate}
	}
	var err error
	if w.tracker, err = newTrackerHost(w, cfg.Seed); err != nil {
		return nil, err
	}
	w.registry = w.addNode(cfg.RegistryRate, 0)
	w.mirror = w.addNode(cfg.MirrorRate, 0)
	w.mirror.host.cost = cfg.MirrorCost
	for i := range cfg.Layers {
		w.layers = append(w.layers, w.newLayer(i))
	}
	for i := range cfg.Nodes + cfg.Slow {
		n := w.addNode(cfg.Rate, i)
		if i >= cfg.Nodes {
			n.slow, n.host.up, n.host.down.rate = true, cfg.Rate/4, cfg.Rate/4
		}
		w.at(moment(i)*cfg.Every+moment(w.random.Int64N(int64(toldWithin))), event{kind: nodeJoins, a: n.id})
	}
	w.planLosses()
	return w, nil
}

// toldWithin is how long the tracker takes to answer the long-polls of all nodes.
const toldWithin = 20 * time.Millisecond

func (w *world) newLayer(i int) *layer {
	size := w.cfg.LayerBytes
	l := &layer{size: size, pieces: model.NumPieces(size), length: model.PieceLength(size), path: announcePath(i), fill: -1}
	l.chunks = int(l.length / swarm.BlockSize)
	l.blocks = l.chunks
	if w.cfg.Coarse {
		l.blocks = 1
	}
	from, to := w.bare(w.registry, l), w.bare(w.mirror, l)
	l.mirror = to.id
	c := w.newConn(to.id, from.id)
	c.origin = true
	l.fill = c.id
	return l
}

// bare is a member that has everything and talks to nobody.
func (w *world) bare(n *node, l *layer) *member {
	m := &member{id: int32(len(w.members)), node: n, layer: l}
	w.members = append(w.members, m)
	return m
}

// addNode makes the i-th machine. Neighbours share racks, and racks zones.
func (w *world) addNode(rate float64, i int) *node {
	id := int32(len(w.nodes))
	racks := max(w.cfg.Racks, 1)
	rack := i % w.cfg.Nodes * racks / w.cfg.Nodes
	z := rack * len(w.zones) / racks
	h := &host{id: id, zone: int32(z), up: rate, down: server{rate: rate}, cost: 1, cpu: w.cpu, alive: true}
	if h.cpu == nil {
		h.cpu = &server{rate: w.cfg.CPURate}
	}
	n := &node{
		id: id, name: fmt.Sprintf("node-%d", id), addr: fmt.Sprintf("10.%d.%d.%d:7072", id>>16, id>>8&255, id&255),
		zone: fmt.Sprintf("zone-%d", z), rack: fmt.Sprintf("rack-%d", rack), host: h, left: w.cfg.Layers,
	}
	w.nodes, w.hosts = append(w.nodes, n), append(w.hosts, h)
	w.byName[n.name] = id
	return n
}

// planLosses chooses who dies and when; every second one is replaced by a new node in its place.
func (w *world) planLosses() {
	count := int(w.cfg.Lost*float64(w.cfg.Nodes) + 0.5)
	for i, k := range w.random.Perm(w.cfg.Nodes)[:count] {
		at := moment(float64(w.cfg.LostWithin) * (0.05 + 0.9*w.random.Float64()))
		w.at(at, event{kind: nodeDies, a: int32(k + firstNode)})
		if i%2 == 0 {
			n := w.addNode(w.cfg.Rate, k)
			n.spare = true
			w.at(at+replaceAfter, event{kind: nodeJoins, a: n.id})
		}
	}
}

func (w *world) at(at moment, e event) {
	e.at = at
	w.queue.push(e)
}

// thinking is how long a message waits for the machine's processor.
func (w *world) thinking(h *host) moment { return max(0, h.cpu.free-w.now) }

// bound is how long one node alone takes over the same link.
func (w *world) bound() time.Duration {
	return spend(w.cfg.LayerBytes*int64(w.cfg.Layers), w.cfg.Rate)
}

// run plays until every live node has everything.
func (w *world) run() error {
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	if err := w.tracker.warmUp(w); err != nil {
		return err
	}
	w.waiting = len(w.nodes) - firstNode
	limit := farTooLong*w.bound() + time.Minute
	for step := 0; w.waiting > 0; step++ {
		if len(w.queue.heap) == 0 {
			return errors.New("nothing happens any more, and nodes lack pieces")
		}
		e := w.queue.pop()
		if w.now = e.at; w.now > limit {
			return fmt.Errorf("%d nodes are not done after %v, %d times the bound", w.waiting, w.now, farTooLong)
		}
		if err := w.happen(e); err != nil {
			return err
		}
		if step%(1<<20) == 0 && w.report != nil {
			w.report(w.now, w.progress())
		}
	}
	return nil
}

// progress is the share of the bytes that arrived.
func (w *world) progress() float64 {
	total := float64(w.cfg.LayerBytes) * float64(w.cfg.Layers) * float64(w.cfg.Nodes)
	return float64(w.received+w.mirror.host.sent) / total
}

func (w *world) happen(e event) error {
	switch e.kind {
	case hostFree:
		w.kick(w.hosts[e.a])
	case blockArrives:
		w.arrive(w.conns[e.a], request{piece: e.b, block: e.block})
	case pieceTold:
		w.tell(w.members[e.a], int(e.b))
	case announceDue:
		if m := w.members[e.a]; m.talk.timer == e.b {
			w.announce(m)
		}
	case announceHeard:
		return w.heard(w.members[e.a])
	case replyHeard:
		w.answered(w.members[e.a])
	case peersMeet:
		w.connect(w.members[e.a], w.members[e.b])
	case layerBegins:
		w.beginLayer(w.nodes[e.a], w.layers[e.b])
	case nodeJoins:
		n := w.nodes[e.a]
		n.joined = w.now
		for range w.cfg.Parallel {
			w.nextLayer(n)
		}
	case nodeDies:
		w.die(w.nodes[e.a])
	}
	return nil
}

func (l *load) add(now moment, cpu time.Duration) {
	second := int(max(now, 0) / time.Second)
	for len(l.messages) <= second {
		l.messages, l.cpu = append(l.messages, 0), append(l.cpu, 0)
	}
	l.messages[second]++
	l.cpu[second] += cpu
}

// nextLayer begins the next layer of n, if there is one.
func (w *world) nextLayer(n *node) {
	if n.next < len(w.layers) && n.host.alive {
		w.at(w.now+w.cfg.Start, event{kind: layerBegins, a: n.id, b: int32(n.next)})
		n.next++
	}
}

func (w *world) beginLayer(n *node, l *layer) {
	if !n.host.alive {
		return
	}
	m := w.join(n, l)
	for i := range m.origins {
		c := w.newConn(m.id, l.mirror)
		c.origin = true
		m.origins[i] = c.id
	}
	w.announce(m)
}

// beginFill lets the mirror read the layer, once.
func (w *world) beginFill(l *layer) {
	c := w.conns[l.fill]
	if c.pending() > 0 || l.filled > 0 {
		return
	}
	for p := range l.pieces {
		c.queue = append(c.queue, request{piece: int32(p)})
	}
	w.ready(c)
}

// filled notes that the mirror has piece p, and all before it.
func (w *world) filled(l *layer, p int) {
	l.filled = p + 1
	parked := l.parked
	l.parked = nil
	for _, id := range parked {
		w.ready(w.conns[id])
	}
}

// finish notes that m has its layer.
func (w *world) finish(m *member) {
	m.layer.done = append(m.layer.done, w.now)
	m.forget()
	w.dropComplete(m)
	n := m.node
	if n.left--; n.left == 0 {
		n.finished = w.now
		w.waiting--
	}
	w.nextLayer(n)
	m.talk.ended = true
	w.announce(m)
}

// die ends a node without a word. Its kernel closes the connections.
func (w *world) die(n *node) {
	if n.finished == 0 {
		w.waiting--
	}
	w.lost++
	n.host.alive = false
	n.host.ring = nil
	for _, id := range n.members {
		w.hangUp(w.members[id])
	}
}

// blockBytes is how long a block is; those of the last piece are shorter.
func (w *world) blockBytes(c *conn, r request) int64 {
	m := w.members[c.member]
	l := m.layer
	n := min(l.length, l.size-int64(r.piece)*l.length)
	if m.id == l.mirror {
		return n
	}
	return n / int64(l.parts(c))
}
