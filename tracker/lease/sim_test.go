package lease

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// plan is what happens in one simulated distribution.
type plan struct {
	nodes, pieces int
	slow          int           // nodes with a tenth of the speed
	late          time.Duration // nodes join within this time
	kills         int           // nodes that die without a word, in mid-transfer
	revive        bool          // they come back with what is on their disks
	liars         int           // nodes that claim everything and deliver nothing
	lossy         float64       // share of requests, and of replies, that get lost
	restarts      int           // of the tracker
	stalls        bool          // the origin sends nothing for a while
	zones         int           // which the nodes are in in turns; 0 means one
}

const step = 20 * time.Millisecond

// world simulates nodes, peers and origin in virtual time around a Table. The origin has the
// bandwidth of one node, as a mirror behind the same link would.
type world struct {
	plan
	t       *testing.T
	r       *rand.Rand
	table   *Table
	now     time.Time
	begun   time.Time
	nodes   []*peer
	origin  float64 // pieces that the origin sent, started ones in part
	imports float64 // pieces that nodes of one zone sent to another
	broken  int     // imports that did not come
	orphans int     // pieces that only killed nodes held
	sum     Stats   // of the tables before restarts
	stall   [2]time.Duration
}

type peer struct {
	name  string
	zone  string
	join  time.Duration
	speed float64 // pieces a second, each way
	liar  bool

	dead    bool
	here    bool          // joined and not dead
	back    time.Duration // when it comes back
	have    Bitmap
	held    int
	open    []int
	from    map[int]*peer // sources of those of open that are imports
	broken  []string      // sources that did not deliver
	part    float64       // of open[0]
	down    float64       // tokens
	up      float64
	beat    time.Time
	ask     time.Time
	share   int
	offered map[int]time.Time // missing pieces that others claim, since when
}

func newWorld(t *testing.T, p plan, seed uint64) *world {
	w := &world{plan: p, t: t, r: rand.New(rand.NewPCG(seed, 7)), begun: time.Unix(1_700_000_000, 0)}
	w.now = w.begun
	w.table = New(p.pieces, Config{}, time.Time{})
	for i := range p.nodes + p.liars {
		n := &peer{name: fmt.Sprint("n", i), speed: 20, have: NewBitmap(p.pieces), offered: map[int]time.Time{}, from: map[int]*peer{}}
		if p.zones > 0 {
			n.zone = fmt.Sprint("z", i%p.zones)
		}
		if p.late > 0 {
			n.join = time.Duration(w.r.Int64N(int64(p.late)))
		}
		if i < p.slow {
			n.speed /= 10
		}
		if i >= p.nodes {
			n.liar = true
		}
		w.nodes = append(w.nodes, n)
	}
	if p.stalls {
		w.stall = [2]time.Duration{time.Second, 20 * time.Second}
	}
	return w
}

func (w *world) elapsed() time.Duration { return w.now.Sub(w.begun) }

// run goes on until every honest node that lives is complete. It fails when that takes for ever.
func (w *world) run() {
	natural := time.Duration(float64(w.pieces) / 20 * float64(time.Second))
	limit := 3*natural + w.late + w.stall[1] + 3*time.Minute
	if w.slow > 0 {
		limit += 9 * natural
	}
	killAt, restartAt := w.moments(w.kills, natural), w.moments(w.restarts, natural)
	for !w.done() {
		if w.elapsed() > limit {
			w.t.Fatalf("%+v: not done after %v: %s, %+v", w.plan, limit, w.progress(), w.table.Stats())
		}
		w.now = w.now.Add(step)
		if len(killAt) > 0 && w.elapsed() > killAt[0] {
			killAt = killAt[1:]
			w.kill()
		}
		if len(restartAt) > 0 && w.elapsed() > restartAt[0] {
			restartAt = restartAt[1:]
			w.restart()
		}
		for _, n := range w.nodes {
			if n.dead && n.back > 0 && w.elapsed() > n.back {
				n.dead, n.back = false, 0
			}
			n.here = !n.dead && w.elapsed() >= n.join
		}
		w.fromOrigin()
		w.fromPeers()
		for _, i := range w.r.Perm(len(w.nodes)) {
			w.talk(w.nodes[i])
		}
		if w.elapsed()%time.Second == 0 {
			check(w.t, w.table)
		}
	}
	check(w.t, w.table)
}

func (w *world) moments(n int, within time.Duration) []time.Duration {
	var all []time.Duration
	for range n {
		all = append(all, w.late/2+time.Duration(w.r.Int64N(int64(within))))
	}
	slices.Sort(all)
	return all
}

func (w *world) done() bool {
	for _, n := range w.nodes {
		if !n.dead && !n.liar && n.held < w.pieces {
			return false
		}
	}
	return true
}

func (w *world) progress() string {
	text := ""
	for _, n := range w.nodes {
		text += fmt.Sprintf(" %s %d open %v dead %v;", n.name, n.held, n.open, n.dead)
	}
	return text
}

// kill ends a node that is honest, here and not the last.
func (w *world) kill() {
	var alive []*peer
	for _, n := range w.nodes {
		if n.here && !n.liar {
			alive = append(alive, n)
		}
	}
	if len(alive) < 2 {
		return
	}
	n := alive[w.r.IntN(len(alive))]
	n.dead, n.here = true, false
	w.spend(n)
	n.open, n.from = nil, map[int]*peer{}
	if w.revive {
		n.back = w.elapsed() + time.Duration(w.r.Int64N(int64(4*time.Second)))
	}
	for p := range w.pieces {
		if n.have.Has(p) && w.holder(p) == nil {
			w.orphans++
		}
	}
}

func (w *world) restart() {
	s := w.table.Stats()
	w.sum.Lost += s.Lost
	w.sum.Dropped += s.Dropped
	w.sum.Lapsed += s.Lapsed
	w.sum.Seconds += s.Seconds
	w.sum.Rescues += s.Rescues
	w.table = New(w.pieces, Config{}, w.now.Add(6*time.Second))
}

// holder returns a random honest node that is here and holds p.
func (w *world) holder(p int) *peer {
	return w.find(func(n *peer) bool { return n.have.Has(p) })
}

// near is holder in the zone of to.
func (w *world) near(to *peer, p int) *peer {
	return w.find(func(n *peer) bool { return n.zone == to.zone && n.have.Has(p) })
}

func (w *world) find(good func(*peer) bool) *peer {
	start := w.r.IntN(len(w.nodes))
	for i := range w.nodes {
		n := w.nodes[(start+i)%len(w.nodes)]
		if n.here && !n.liar && good(n) {
			return n
		}
	}
	return nil
}

// breaks notes that an import did not come, and is fetched from the origin.
func (w *world) breaks(n *peer, from string) {
	n.broken = append(n.broken, from)
	w.broken++
}

// spend counts what came of open[0].
func (w *world) spend(n *peer) {
	if len(n.open) > 0 && n.from[n.open[0]] != nil {
		w.imports += n.part
	} else {
		w.origin += n.part
	}
	n.part = 0
}

// take makes n hold p.
func (w *world) take(n *peer, p int) {
	n.have.Set(p)
	n.held++
	delete(n.offered, p)
	if i := slices.Index(n.open, p); i >= 0 {
		if i == 0 {
			w.spend(n) // what had come already was for nothing, or is the whole piece
		}
		n.open = slices.Delete(n.open, i, i+1)
		delete(n.from, p)
	}
	n.ask = w.now
}

// fromOrigin shares one link among those who fetch; each works on one lease at a time. Imports take the
// source's uplink; a source that does not deliver is left for the origin.
func (w *world) fromOrigin() {
	var busy []*peer
	for _, n := range w.nodes {
		if !n.here || len(n.open) == 0 {
			continue
		}
		from := n.from[n.open[0]]
		switch {
		case from == nil:
			busy = append(busy, n)
		case !from.here || from.liar || !from.have.Has(n.open[0]):
			w.spend(n)
			delete(n.from, n.open[0])
			w.breaks(n, from.name)
		default:
			part := max(0, min(n.speed*step.Seconds(), from.up, 1-n.part))
			from.up -= part
			if n.part += part; n.part > 0.9999 {
				n.part = 1
				w.take(n, n.open[0])
			}
		}
	}
	if w.elapsed() >= w.stall[0] && w.elapsed() < w.stall[1] {
		return
	}
	for _, n := range busy {
		n.part += min(n.speed, 20/float64(len(busy))) * step.Seconds()
		if n.part >= 1 {
			n.part = 1
			w.take(n, n.open[0])
		}
	}
}

// fromPeers moves whole pieces between honest nodes, as far as both ends' links allow.
func (w *world) fromPeers() {
	for _, n := range w.nodes {
		n.down = min(2, n.down+n.speed*step.Seconds())
		n.up = min(2, n.up+n.speed*step.Seconds())
	}
	for _, i := range w.r.Perm(len(w.nodes)) {
		n := w.nodes[i]
		if !n.here || n.liar || n.down < 1 || n.held == w.pieces {
			continue
		}
		at := w.r.IntN(w.pieces)
		for i := range w.pieces {
			p := (at + i) % w.pieces
			if n.have.Has(p) || slices.Contains(n.open, p) {
				continue
			}
			from := w.near(n, p)
			if from == nil || from.up < 1 {
				continue
			}
			from.up--
			n.down--
			w.take(n, p)
			break
		}
	}
}

// talk lets n announce itself when its interval is over or it can begin another lease.
func (w *world) talk(n *peer) {
	want := Want{Origin: 2 - len(n.open) + len(n.from), Imports: 2 - len(n.from)}
	wants := (want.Origin > 0 || want.Imports > 0) && n.held < w.pieces && !n.liar
	if !n.here || w.now.Before(n.beat) && (!wants || w.now.Before(n.ask)) {
		return
	}
	interval := w.table.cfg.Interval
	if n.held == w.pieces || n.liar {
		interval = w.table.cfg.IdleInterval
	}
	n.beat, n.ask = w.now.Add(interval), w.now.Add(interval)
	lost := w.r.Float64() < w.lossy
	if lost {
		n.beat = w.now.Add(500 * time.Millisecond)
		return
	}
	have := n.have
	if n.liar {
		have = FullBitmap(w.pieces)
	}
	w.table.Expire(w.now)
	w.table.Report(n.name, n.zone, slices.Clone(have), n.open, w.stuck(n), w.now)
	w.table.Doubt(n.name, n.broken, false)
	if !wants {
		return
	}
	leases, retry := w.table.Grant(n.name, want, w.now)
	for _, l := range leases {
		w.judge(n, l)
	}
	if w.r.Float64() < w.lossy {
		return // the reply got lost
	}
	n.ask = w.now.Add(retry)
	for _, l := range leases {
		n.open = append(n.open, l.Piece)
		if l.From != "" {
			n.from[l.Piece] = w.find(func(o *peer) bool { return o.name == l.From })
			if n.from[l.Piece] == nil { // dead, or a liar
				delete(n.from, l.Piece)
				w.breaks(n, l.From)
			}
		}
	}
	n.share += len(leases)
}

// stuck lists the pieces that liars claim and nobody has given for ten seconds.
func (w *world) stuck(n *peer) []int {
	var all []int
	if w.liars == 0 || n.liar {
		return nil
	}
	for p := range w.pieces {
		if n.have.Has(p) {
			continue
		}
		since, known := n.offered[p]
		switch {
		case !known || w.near(n, p) != nil:
			n.offered[p] = w.now
		case w.now.Sub(since) > 10*time.Second && len(all) < 256:
			all = append(all, p)
		}
	}
	return all
}

// judge checks a lease that was just given.
func (w *world) judge(n *peer, given Lease) {
	w.t.Helper()
	p := given.Piece
	asker := w.table.nodes[n.name]
	l := asker.open[p]
	if l == nil || n.have.Has(p) || slices.Contains(n.open, p) {
		w.t.Fatalf("lease of %d to %s, who holds it, has it open, or is not known to have got it", p, n.name)
	}
	if given.From != "" {
		from := w.table.nodes[given.From]
		if from == nil || from.zone == asker.zone || !from.have.has(p) || slices.Contains(n.broken, given.From) {
			w.t.Fatalf("%s should import %d from %s: %+v", n.name, p, given.From, from)
		}
	}
	near, all := 0, 0 // leases of others that keep n from p: in its zone, and from the origin
	for _, o := range w.table.nodes {
		other := o.open[p]
		if o.name == n.name || other == nil || other.lapsed {
			continue
		}
		if o.zone == asker.zone {
			near++
		}
		if other.from == nil {
			all++
		}
	}
	held := w.table.holders[p] - asker.zone.holders[p]
	switch l.kind {
	case first:
		if near > 0 || asker.zone.holders[p] > 0 {
			w.t.Fatalf("first lease of %d, which has %d leases and %d holders in the zone", p, near, asker.zone.holders[p])
		}
		if given.From == "" && held > 0 {
			w.broken++ // all who hold it were broken once
		}
		if given.From == "" && (all > 0 && held == 0 || held > int32(len(n.broken))) {
			w.t.Fatalf("first lease of %d from the origin, which has %d leases and %d holders elsewhere", p, all, held)
		}
	case second:
		for _, o := range w.table.nodes {
			if other := o.open[p]; o.name != n.name && o.zone == asker.zone && other != nil && other.kind != second &&
				w.now.Sub(other.granted) <= max(minSecond, 2*o.zone.natural(other)) {
				w.t.Fatalf("second lease of %d after %v", p, w.now.Sub(other.granted))
			}
		}
	case rescue:
		if asker.zone.holders[p] == 0 {
			w.t.Fatalf("rescue of %d, which nobody claims", p)
		}
	case adopted:
		w.t.Fatalf("Grant gave an adopted lease")
	}
}

// excess is how many pieces the origin may have sent beyond one copy.
func (w *world) excess() int {
	s := w.table.Stats()
	return w.orphans + w.broken + w.sum.Lost + s.Lost + w.sum.Dropped + s.Dropped + w.sum.Lapsed + s.Lapsed +
		w.sum.Seconds + s.Seconds + w.sum.Rescues + s.Rescues
}

// TestSimulatedDistributions checks after every grant and every second that the Table keeps its
// promises, at the end that everybody has everything, and what the origin sent for it.
func TestSimulatedDistributions(t *testing.T) {
	tests := []struct {
		name   string
		plan   plan
		copies float64 // 0: bounded by what the table counted only
	}{
		{"even", plan{nodes: 8, pieces: 200}, 1.0001},
		{"one node", plan{nodes: 1, pieces: 100}, 1.0001},
		{"one piece", plan{nodes: 5, pieces: 1}, 1.0001},
		{"many nodes", plan{nodes: 40, pieces: 200}, 1.0001},
		{"joins", plan{nodes: 12, pieces: 200, late: 15 * time.Second}, 1.0001},
		{"slow nodes", plan{nodes: 8, pieces: 200, slow: 2}, 1.02},
		{"all slow", plan{nodes: 4, pieces: 100, slow: 4}, 1.02},
		{"lost messages", plan{nodes: 8, pieces: 200, lossy: 0.1}, 1.02},
		{"joins, slow nodes, lost messages", plan{nodes: 10, pieces: 300, slow: 2, late: 5 * time.Second, lossy: 0.05}, 1.02},
		{"tracker restarts", plan{nodes: 8, pieces: 200, restarts: 2, slow: 1}, 1.02},
		{"origin stalls", plan{nodes: 6, pieces: 150, stalls: true}, 1.02},
		{"kills", plan{nodes: 10, pieces: 200, kills: 4}, 0},
		{"kills among slow and late ones", plan{nodes: 10, pieces: 200, kills: 4, slow: 3, late: 8 * time.Second, lossy: 0.05}, 0},
		{"kills with a return", plan{nodes: 6, pieces: 200, kills: 8, revive: true}, 0},
		{"all but one die", plan{nodes: 6, pieces: 100, kills: 12}, 0},
		{"zones", plan{nodes: 9, pieces: 200, zones: 3}, 1.0001},
		{"a zone a node", plan{nodes: 5, pieces: 100, zones: 5}, 1.0001},
		{"zones, slow nodes, joins", plan{nodes: 12, pieces: 200, zones: 3, slow: 2, late: 5 * time.Second}, 1.02},
		{"zones, kills, lost messages, liars", plan{nodes: 12, pieces: 200, zones: 3, kills: 4, lossy: 0.05, liars: 2}, 0},
		{"zones, tracker restarts, origin stalls", plan{nodes: 8, pieces: 150, zones: 2, restarts: 1, stalls: true, kills: 2, revive: true}, 0},
		{"liars", plan{nodes: 6, pieces: 60, liars: 2}, 1.02},
		{"everything", plan{nodes: 10, pieces: 150, kills: 3, slow: 2, late: 5 * time.Second, lossy: 0.1, liars: 1, restarts: 1, stalls: true, revive: true}, 0},
	}
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range seeds {
				w := newWorld(t, tt.plan, seed)
				w.run()
				copies := w.origin / float64(w.pieces)
				if tt.copies > 0 && copies > tt.copies {
					t.Errorf("seed %d: the origin sent %.3f copies, want at most %.3f: %+v", seed, copies, tt.copies, w.table.Stats())
				}
				if borders := float64(max(tt.plan.zones, 1) - 1); w.imports > borders*float64(w.pieces)+float64(w.excess())+0.001 {
					t.Errorf("seed %d: %.1f pieces crossed a border, want at most %v times %d and %d more: %+v",
						seed, w.imports, borders, w.pieces, w.excess(), w.table.Stats())
				}
				if most := float64(w.pieces + w.excess()); w.origin > most+0.001 {
					t.Errorf("seed %d: the origin sent %.1f pieces, the leases explain %.0f: %+v", seed, w.origin, most, w.table.Stats())
				}
				t.Logf("seed %d: %.3f copies, %.1f imports in %v, %+v", seed, copies, w.imports, w.elapsed(), w.table.Stats())
			}
		})
	}
}

// TestSimulatedShares: nodes of one speed get shares that none has to upload much more than others.
func TestSimulatedShares(t *testing.T) {
	for _, nodes := range []int{4, 8, 16} {
		for seed := range uint64(2) {
			w := newWorld(t, plan{nodes: nodes, pieces: 256}, seed)
			w.run()
			most := 0
			for _, n := range w.nodes {
				most = max(most, n.share)
			}
			even := float64(w.pieces) / float64(nodes)
			if float64(most) > even*1.1+3 {
				t.Errorf("%d nodes, seed %d: the largest share is %d pieces, an even one %.1f", nodes, seed, most, even)
			}
		}
	}
}
