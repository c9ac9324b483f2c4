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
	orphans int     // pieces that only killed nodes held
	sum     Stats   // of the tables before restarts
	stall   [2]time.Duration
}

type peer struct {
	name  string
	join  time.Duration
	speed float64 // pieces a second, each way
	liar  bool

	dead    bool
	here    bool          // joined and not dead
	back    time.Duration // when it comes back
	have    Bitmap
	held    int
	open    []int
	part    float64 // of open[0]
	down    float64 // tokens
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
		n := &peer{name: fmt.Sprint("n", i), speed: 20, have: NewBitmap(p.pieces), offered: map[int]time.Time{}}
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
	w.origin += n.part
	n.part, n.open = 0, nil
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
	start := w.r.IntN(len(w.nodes))
	for i := range w.nodes {
		n := w.nodes[(start+i)%len(w.nodes)]
		if n.here && !n.liar && n.have.Has(p) {
			return n
		}
	}
	return nil
}

// take makes n hold p.
func (w *world) take(n *peer, p int) {
	n.have.Set(p)
	n.held++
	delete(n.offered, p)
	if i := slices.Index(n.open, p); i >= 0 {
		if i == 0 {
			w.origin += n.part // what had come already was for nothing, or is the whole piece
			n.part = 0
		}
		n.open = slices.Delete(n.open, i, i+1)
	}
	n.ask = w.now
}

// fromOrigin shares one link among those who fetch; each works on one lease at a time.
func (w *world) fromOrigin() {
	var busy []*peer
	for _, n := range w.nodes {
		if n.here && len(n.open) > 0 {
			busy = append(busy, n)
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
			from := w.holder(p)
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
	wants := len(n.open) < 2 && n.held < w.pieces && !n.liar
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
	w.table.Report(n.name, slices.Clone(have), n.open, w.stuck(n), w.now)
	if !wants {
		return
	}
	pieces, retry := w.table.Grant(n.name, 2-len(n.open), w.now)
	for _, p := range pieces {
		w.judge(n, p)
	}
	if w.r.Float64() < w.lossy {
		return // the reply got lost
	}
	n.ask = w.now.Add(retry)
	n.open = append(n.open, pieces...)
	n.share += len(pieces)
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
		case !known || w.holder(p) != nil:
			n.offered[p] = w.now
		case w.now.Sub(since) > 10*time.Second && len(all) < 256:
			all = append(all, p)
		}
	}
	return all
}

// judge checks a lease that was just given.
func (w *world) judge(n *peer, p int) {
	w.t.Helper()
	l := w.table.nodes[n.name].open[p]
	if l == nil || n.have.Has(p) || slices.Contains(n.open, p) {
		w.t.Fatalf("lease of %d to %s, who holds it, has it open, or is not known to have got it", p, n.name)
	}
	others := 0
	for _, o := range w.table.nodes {
		if other := o.open[p]; o.name != n.name && other != nil && !other.lapsed {
			others++
		}
	}
	switch l.kind {
	case first:
		if others > 0 || w.table.holders[p] > 0 {
			w.t.Fatalf("first lease of %d, which has %d leases and %d holders", p, others, w.table.holders[p])
		}
	case second:
		limit := max(minSecond, 2*w.table.times.get())
		for _, o := range w.table.nodes {
			if other := o.open[p]; o.name != n.name && other != nil && other.kind != second && w.now.Sub(other.granted) <= limit {
				w.t.Fatalf("second lease of %d after %v", p, w.now.Sub(other.granted))
			}
		}
	case rescue:
		if w.table.holders[p] == 0 {
			w.t.Fatalf("rescue of %d, which nobody claims", p)
		}
	case adopted:
		w.t.Fatalf("Grant gave an adopted lease")
	}
}

// excess is how many pieces the origin may have sent beyond one copy.
func (w *world) excess() int {
	s := w.table.Stats()
	return w.orphans + w.sum.Lost + s.Lost + w.sum.Dropped + s.Dropped + w.sum.Lapsed + s.Lapsed +
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
				if most := float64(w.pieces + w.excess()); w.origin > most+0.001 {
					t.Errorf("seed %d: the origin sent %.1f pieces, the leases explain %.0f: %+v", seed, w.origin, most, w.table.Stats())
				}
				t.Logf("seed %d: %.3f copies in %v, %+v", seed, copies, w.elapsed(), w.table.Stats())
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
