package lease

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// scene is a Table with a clock and nodes that repeat what they hold and work on.
type scene struct {
	t     *testing.T
	table *Table
	now   time.Time
	nodes []*actor
}

type actor struct {
	s     *scene
	name  string
	zone  string
	have  Bitmap
	open  []int
	stuck []int
	from  []string // of the leases got last
}

func newScene(t *testing.T, pieces int) *scene {
	s := &scene{t: t, now: time.Unix(1_700_000_000, 0)}
	s.table = New(pieces, Config{}, time.Time{})
	t.Cleanup(func() { check(t, s.table) })
	return s
}

func (s *scene) node(name string, have ...int) *actor { return s.nodeIn("", name, have...) }

func (s *scene) nodeIn(zone, name string, have ...int) *actor {
	n := &actor{s: s, name: name, zone: zone, have: NewBitmap(s.table.pieces)}
	for _, p := range have {
		n.have.Set(p)
	}
	s.nodes = append(s.nodes, n)
	n.report()
	return n
}

func (n *actor) report() {
	n.s.table.Expire(n.s.now)
	n.s.table.Report(n.name, n.zone, slices.Clone(n.have), n.open, n.stuck, n.s.now)
}

// lease asks for count pieces of the origin, and takes what comes as open.
func (n *actor) lease(count int) []int { return n.take(Want{Origin: count}) }

// take asks for pieces and takes what comes as open.
func (n *actor) take(want Want) []int {
	n.report()
	leases, _ := n.s.table.Grant(n.name, want, n.s.now)
	var pieces []int
	n.from = nil
	for _, l := range leases {
		pieces, n.from = append(pieces, l.Piece), append(n.from, l.From)
	}
	n.open = append(n.open, pieces...)
	return pieces
}

// piecesOf are those of a grant.
func piecesOf(leases []Lease, _ time.Duration) (out []int) {
	for _, l := range leases {
		out = append(out, l.Piece)
	}
	return out
}

// wants fails the test unless n is leased exactly these pieces when it asks for count.
func (n *actor) wants(count int, want ...int) {
	n.s.t.Helper()
	if got := n.lease(count); !slices.Equal(got, want) {
		n.s.t.Fatalf("%s asks for %d at %v and gets %v, want %v", n.name, count, n.s.now.Format("04:05.000"), got, want)
	}
}

// has makes n hold pieces, and report it.
func (n *actor) has(pieces ...int) {
	for _, p := range pieces {
		n.have.Set(p)
		n.open = slices.DeleteFunc(n.open, func(o int) bool { return o == p })
	}
	n.report()
}

// pass lets time pass while the given nodes report each half second.
func (s *scene) pass(d time.Duration, alive ...*actor) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(min(500*time.Millisecond, end.Sub(s.now)))
		for _, n := range alive {
			n.report()
		}
	}
}

// check compares everything that a Table counts with what follows from its nodes.
func check(t *testing.T, table *Table) {
	t.Helper()
	holders, leases := make([]int32, table.pieces), make([]int32, table.pieces)
	serves := map[*node]int{}
	members, complete, held := 0, 0, 0
	for _, z := range table.zones {
		checkZone(t, z)
		members += z.members
		complete += z.complete
		for p := range table.pieces {
			holders[p] += z.holders[p]
		}
	}
	for _, n := range table.nodes {
		for p, l := range n.open {
			if l.from != nil {
				serves[l.from]++
			} else if !l.lapsed {
				leases[p]++
			}
		}
	}
	for _, n := range table.nodes {
		if n.serves != serves[n] {
			t.Errorf("%d pieces are leased from %s, counted as %d", serves[n], n.name, n.serves)
		}
	}
	if !slices.Equal(holders, table.holders) || !slices.Equal(leases, table.leases) {
		t.Errorf("holders %v and leases %v, counted as %v and %v", holders, leases, table.holders, table.leases)
	}
	for _, h := range holders {
		if h > 0 {
			held++
		}
	}
	if members != len(table.nodes) || complete != table.complete || held != table.stats.Held {
		t.Errorf("%d nodes, complete %d, held %d; counted as %d, %d, %d", members, complete, held, len(table.nodes), table.complete, table.stats.Held)
	}
}

func checkZone(t *testing.T, z *zone) {
	t.Helper()
	pieces := z.table.pieces
	holders, leases := make([]int32, pieces), make([]int32, pieces)
	var members, complete, open, active, shares int
	for _, n := range z.table.nodes {
		if n.zone != z {
			continue
		}
		members++
		count := 0
		for p := range pieces {
			if n.have.has(p) {
				holders[p]++
				count++
			}
		}
		if count != n.held {
			t.Errorf("%s holds %d pieces, counted as %d", n.name, count, n.held)
		}
		if count == pieces {
			complete++
		}
		for p, l := range n.open {
			open++
			if l.node != n || l.piece != p || n.have.has(p) {
				t.Errorf("lease of %d by %s is wrong: %+v", p, n.name, l)
			}
			if !l.lapsed {
				leases[p]++
			}
		}
		if n.active {
			active++
			shares += n.share
		}
	}
	for p := range pieces {
		free := holders[p] == 0 && leases[p] == 0
		if z.holders[p] != holders[p] || z.leases[p] != leases[p] || z.free.has(p) != free {
			t.Errorf("piece %d has %d holders, %d leases, free %v; counted as %d, %d, %v",
				p, holders[p], leases[p], free, z.holders[p], z.leases[p], z.free.has(p))
		}
		if free && p < z.cursor {
			t.Errorf("free piece %d is below the cursor %d", p, z.cursor)
		}
	}
	if members == 0 || members != z.members || complete != z.complete || open != z.open.Len() || active != z.active || shares != z.shares {
		t.Errorf("members %d, complete %d, open %d, active %d, shares %d; counted as %d, %d, %d, %d, %d", members, complete, open, active, shares,
			z.members, z.complete, z.open.Len(), z.active, z.shares)
	}
}

func TestOneHolderAPiece(t *testing.T) {
	s := newScene(t, 10)
	a, b, c := s.node("a"), s.node("b"), s.node("c", 3)
	a.wants(2, 0, 1)
	b.wants(2, 2, 4) // c holds 3
	c.wants(2, 5, 6)
	a.has(0)
	a.wants(1, 7)
	b.wants(1, 8)
	b.wants(0)
	if got, retry := s.table.Grant("stranger", Want{Origin: 1, Imports: 1}, s.now); got != nil || retry != 0 {
		t.Errorf("a stranger gets %v, retry in %v", got, retry)
	}
}

func TestUnreplicatedPiecesHoldANodeBack(t *testing.T) {
	s := newScene(t, 100)
	s.table.cfg.MaxUnreplicated, s.table.cfg.Busy = 3, 1
	a, b, c := s.node("a"), s.node("b"), s.node("c")
	fetched := func(p int) {
		a.wants(1, p)
		s.pass(400*time.Millisecond, a, b, c)
		a.has(p)
	}
	b.wants(1, 0)
	fetched(1)
	fetched(2)
	fetched(3) // as many as may be open or unspread
	a.wants(1)
	c.has(1) // half of the others hold it
	fetched(4)
	a.wants(1)
	// An uplink that does not pass anything on for long does not starve the origin.
	b.has(0)
	c.wants(1, 5)
	s.pass(8*time.Second, a, b, c)
	a.wants(1, 6)
}

// TestQuietOrigin: as long as little is under way nobody waits for an uplink, and a node may fetch several
// pieces; afterwards one.
func TestQuietOrigin(t *testing.T) {
	s := newScene(t, 100)
	s.table.cfg.MaxUnreplicated, s.table.cfg.Busy = 3, 2
	a, b := s.node("a"), s.node("b")
	a.wants(3, 0, 1) // then there are two
	b.wants(3, 2)
	s.pass(400*time.Millisecond, a, b)
	b.has(2)
	a.has(0)
	a.wants(1, 3)
	a.wants(1)
	a.has(1, 3)
	for unspread := 3; unspread < 20; unspread++ {
		got := a.lease(1)
		for tries := 0; len(got) == 0 && tries < 5; tries++ { // it is ahead of b, which does not ask
			s.pass(100*time.Millisecond, a, b)
			got = a.lease(1)
		}
		if len(got) != 1 {
			t.Fatalf("a waits with %d pieces that did not spread, while the origin idles", unspread)
		}
		s.pass(400*time.Millisecond, a, b)
		a.has(got...)
	}
}

func TestSharesAreEven(t *testing.T) {
	s := newScene(t, 300)
	quick, other := s.node("quick"), s.node("other")
	other.wants(1, 0)
	s.pass(100*time.Millisecond, quick, other)
	other.has(0)
	quick.has(0)
	got := 0
	for range 20 { // quick's pieces spread at once
		for _, p := range quick.lease(1) {
			got++
			other.has(p)
			quick.has(p)
		}
		other.lease(0)
	}
	if ahead := s.table.cfg.slack(300, 2); got == 0 || got > 2*ahead+1 {
		t.Fatalf("quick got %d pieces at once, other 1; want about %d ahead of the mean", got, ahead)
	}
	// The origin does not idle for long while the other one does not ask.
	s.pass(3*time.Second, quick, other)
	if len(quick.lease(1)) != 1 {
		t.Fatal("quick still waits for a node that does not ask")
	}
}

// TestAheadWaitsOneFetch: a node that is ahead waits, but never longer than a fetch takes.
func TestAheadWaitsOneFetch(t *testing.T) {
	s := newScene(t, 100)
	quick, slow := s.node("quick"), s.node("slow")
	slow.wants(1, 0)
	for p := 1; ; p++ { // until it is ahead
		got := quick.lease(1)
		if len(got) == 0 {
			break
		}
		s.pass(100*time.Millisecond, quick, slow)
		quick.has(got...)
		slow.has(got...)
		if p > 10 {
			t.Fatal("quick is never ahead")
		}
	}
	s.pass(99*time.Millisecond, quick, slow)
	slow.wants(0)
	if got := quick.lease(1); len(got) > 0 {
		t.Fatalf("quick gets %v before a fetch's time is over", got)
	}
	s.pass(time.Millisecond, quick, slow)
	if got := quick.lease(1); len(got) != 1 {
		t.Fatalf("quick gets %v after a fetch's time", got)
	}
}

// TestSlowUplinkDoesNotHoldOthersBack: a node that waits for its pieces to spread does not ask, so
// nobody is ahead of it.
func TestSlowUplinkDoesNotHoldOthersBack(t *testing.T) {
	s := newScene(t, 100)
	s.table.cfg.MaxUnreplicated, s.table.cfg.Busy = 3, 1
	slow, quick := s.node("slow"), s.node("quick")
	for p := range 3 {
		slow.wants(1, p)
		s.pass(time.Second, slow, quick)
		slow.has(p)
	}
	for p := 3; p < 30; p++ {
		quick.wants(1, p)
		slow.wants(1)
		quick.has(p)
		slow.has(p)
	}
}

// TestLateNode: those who were there before a node are not held back until it has caught up.
func TestLateNode(t *testing.T) {
	s := newScene(t, 200)
	a, b := s.node("a"), s.node("b")
	for p := 0; p < 60; p += 2 {
		a.wants(1, p)
		b.wants(1, p+1)
		a.has(p, p+1)
		b.has(p, p+1)
	}
	late := s.node("late")
	late.wants(1, 60)
	a.wants(1, 61)
	b.wants(1, 62)
}

// TestFrontAndBehind: a node does not wait for the share of one that is behind it, but again when that has caught up.
func TestFrontAndBehind(t *testing.T) {
	s := newScene(t, 200)
	front := s.node("front")
	for p := range 20 {
		front.wants(1, p)
		s.pass(100*time.Millisecond, front)
		front.has(p)
	}
	behind := s.node("behind")
	behind.wants(1, 20)
	for p := 21; p < 40; p++ {
		front.wants(1, p)
		front.has(p)
	}
	for p := range 40 {
		behind.has(p)
	}
	behind.wants(1, 40)
	for p := 41; ; p++ { // it is behind the mean by two slacks, and front ahead of it before long
		got := front.lease(1)
		if len(got) == 0 {
			break
		}
		if p > 50 {
			t.Fatal("front does not wait for the share of one that has as much")
		}
		front.has(got...)
		behind.has(got...)
	}
}

// TestFastLinks: what a node fetches within one interval may be unspread, since nobody can have
// reported it.
func TestFastLinks(t *testing.T) {
	s := newScene(t, 200)
	quick, other := s.node("quick"), s.node("other")
	quick.wants(1, 0)
	s.pass(50*time.Millisecond, quick, other)
	quick.has(0)
	quick.wants(5, 1, 2, 3, 4, 5)
	quick.has(1, 2, 3, 4, 5)
	if got := s.table.cfg.allowance(50 * time.Millisecond); got != 10 {
		t.Errorf("%d pieces may be unspread at 50 ms a piece, want those of one interval, 10", got)
	}
}

// TestPassed: evidence is the completions that no other one beats in piece and order of granting.
func TestPassed(t *testing.T) {
	var p passed
	for _, c := range []completion{{piece: 5, seq: 5}, {piece: 3, seq: 3}, {piece: 9, seq: 2}, {piece: 1, seq: 8}} {
		p.add(c)
	}
	if len(p) != 3 || p[0].piece != 1 || p[1].piece != 5 || p[2].piece != 9 {
		t.Fatalf("evidence %+v, want pieces 1, 5 and 9", p)
	}
	tests := []struct {
		piece int
		seq   uint64
		want  bool
	}{
		{piece: 4, seq: 4, want: true},
		{piece: 5, seq: 4, want: false},
		{piece: 8, seq: 1, want: true},
		{piece: 0, seq: 7, want: true},
		{piece: 0, seq: 9, want: false},
		{piece: 6, seq: 3, want: false},
	}
	for _, tt := range tests {
		if got := p.beyond(tt.piece, tt.seq); got != tt.want {
			t.Errorf("beyond(%d, %d) = %v", tt.piece, tt.seq, got)
		}
	}
	p.add(completion{piece: 10, seq: 10})
	if len(p) != 1 {
		t.Errorf("evidence %+v, want the one that beats all", p)
	}
}

func TestRenewalAndDrop(t *testing.T) {
	s := newScene(t, 4)
	a, b := s.node("a"), s.node("b")
	a.wants(2, 0, 1)
	s.pass(4*time.Second, a, b) // renewed by each report
	b.wants(2, 2, 3)
	a.open = []int{1} // 0 was given up, or was in a reply that got lost
	s.pass(time.Second, a, b)
	if st := s.table.Stats(); st.Dropped != 0 {
		t.Fatal("a lease was dropped while replies may cross")
	}
	s.pass(500*time.Millisecond, a, b)
	if st := s.table.Stats(); st.Dropped != 1 || st.Leased != 3 {
		t.Fatalf("stats %+v, want one lease dropped", st)
	}
	b.has(2)
	a.has(2)
	b.wants(1, 0)
}

func TestLostNode(t *testing.T) {
	s := newScene(t, 6)
	a, b := s.node("a"), s.node("b")
	a.wants(3, 0, 1, 2)
	s.pass(100*time.Millisecond, a, b)
	a.has(0)
	b.wants(1, 3)
	s.pass(2*time.Second, b)
	if !s.table.Live("a") {
		t.Fatal("a is lost before it missed three reports for certain")
	}
	s.pass(500*time.Millisecond, b)
	if s.table.Live("a") {
		t.Fatal("a is not lost")
	}
	// What only a held can be leased again, like its leases.
	b.wants(4, 0, 1, 2, 4)
	if st := s.table.Stats(); st.Lost != 2 || st.Nodes != 1 || st.Held != 0 {
		t.Fatalf("stats %+v", st)
	}
	// It comes back with what it had: its leases are adopted, those of others stay theirs.
	a.report()
	a.wants(1, 5)
	if st := s.table.Stats(); st.Adopted != 2 || st.Held != 1 {
		t.Fatalf("after its return: %+v", st)
	}
}

func TestCompleteNodesReportLessOften(t *testing.T) {
	s := newScene(t, 3)
	done, busy := s.node("done", 0, 1, 2), s.node("busy")
	s.pass(20*time.Second, busy)
	if !s.table.Complete("done") {
		t.Fatal("a complete node is lost within four idle intervals")
	}
	s.pass(time.Second, busy)
	if s.table.Live("done") {
		t.Fatal("a silent complete node stays for ever")
	}
	busy.wants(1, 0)
	_ = done
}

func TestLapse(t *testing.T) {
	s := newScene(t, 200)
	hung, busy := s.node("hung"), s.node("busy")
	hung.wants(1, 0)
	patience := s.table.cfg.patience(100 * time.Millisecond)
	busy.wants(1, 1)
	s.pass(100*time.Millisecond, hung, busy)
	busy.has(1)
	hung.has(1)
	busy.wants(1, 2)
	s.pass(patience, hung, busy)
	if st := s.table.Stats(); st.Lapsed != 0 {
		t.Fatal("a lease lapsed before patience was over")
	}
	s.pass(time.Second, hung, busy)
	if st := s.table.Stats(); st.Lapsed != 1 {
		t.Fatalf("stats %+v, want the lease lapsed that the origin went past", st)
	}
	hung.wants(1, 3) // not its own lapsed lease again
	busy.wants(1, 0)
	// It may come all the same; nothing is counted twice.
	hung.has(0)
	busy.has(0)
}

// TestOriginStalls: nothing completes, so nothing lapses, however long it takes.
func TestOriginStalls(t *testing.T) {
	s := newScene(t, 4)
	a, b := s.node("a"), s.node("b")
	a.wants(2, 0, 1)
	b.wants(2, 2, 3)
	s.pass(29*time.Second, a, b)
	a.wants(1)
	b.wants(1)
	if st := s.table.Stats(); st.Lapsed+st.Seconds+st.Dropped != 0 {
		t.Fatalf("stats %+v while the origin stalls", st)
	}
}

func TestSecondLeaseAtTheEnd(t *testing.T) {
	s := newScene(t, 8)
	slow, a := s.node("slow"), s.node("a")
	slow.wants(3, 0, 1, 2)
	for p := 3; p < 8; p++ {
		a.wants(1, p)
		s.pass(100*time.Millisecond, slow, a)
		a.has(p)
		slow.has(p)
	}
	a.wants(1) // too early: the lease is half a second old
	s.pass(time.Second, slow, a)
	a.wants(2, 0) // the oldest; the budget of 8 pieces is one
	if st := s.table.Stats(); st.Seconds != 1 || st.Granted != 8 {
		t.Fatalf("stats %+v", st)
	}
	s.pass(time.Second, slow, a)
	slow.has(0)
	a.has(0)
	a.wants(1)
	// A node that hangs for good holds nobody up: the budget gives way.
	s.pass(40*time.Second, slow, a)
	a.wants(3, 1) // it was slow itself with its last one
	a.has(1)
	a.wants(1, 2)
	a.has(2)
	if st := s.table.Stats(); st.Held != 8 {
		t.Fatalf("stats %+v, want all held", st)
	}
}

// TestHungLeasesBeyondTheBudget: the last pieces are leased to a node that hangs. No evidence of
// the origin goes past them, so they do not lapse, and the budget allows one of them.
func TestHungLeasesBeyondTheBudget(t *testing.T) {
	s := newScene(t, 5)
	hung, a := s.node("hung"), s.node("a")
	for p := range 2 {
		a.wants(1, p)
		s.pass(100*time.Millisecond, hung, a)
		a.has(p)
		hung.has(p)
	}
	hung.wants(3, 2, 3, 4)
	s.pass(2*time.Second, hung, a)
	a.wants(3, 2)
	a.has(2)
	s.pass(28*time.Second, hung, a)
	a.wants(3)
	s.pass(5*time.Second, hung, a)
	a.wants(3, 3, 4)
	a.has(3)
	// The second lease of 4 hangs too: a third node gets it.
	c := s.node("c")
	c.wants(1)
	s.pass(40*time.Second, hung, a, c)
	c.wants(1, 4)
	if st := s.table.Stats(); st.Seconds != 4 {
		t.Fatalf("stats %+v", st)
	}
}

// TestLyingAnnouncer: nobody can get pieces from a node that claims them all, so those who are
// stuck lease them, one node a piece.
func TestLyingAnnouncer(t *testing.T) {
	s := newScene(t, 4)
	s.node("liar", 0, 1, 2, 3)
	liar, a, b := s.nodes[0], s.node("a"), s.node("b")
	a.wants(4)
	a.stuck, b.stuck = []int{0, 1}, []int{1, 0, 99, -1}
	a.wants(1, 0)
	b.wants(4, 1)
	a.wants(1)
	s.pass(time.Second, liar, a, b)
	a.stuck, b.stuck = []int{1}, []int{0}
	a.has(0)
	b.has(1)
	a.wants(1) // b has it now: a can get it there
	b.wants(1)
	if st := s.table.Stats(); st.Rescues != 2 || st.Granted != 0 {
		t.Fatalf("stats %+v", st)
	}
	// When that fails too, it is leased once more.
	s.pass(15*time.Second, liar, a, b)
	a.wants(1, 1)
	// A rescuer that dies leaves the piece to the next.
	b.stuck = []int{2}
	b.wants(1, 2)
	a.stuck = []int{2}
	a.wants(1)
	s.table.Forget("b")
	a.wants(1, 2)
}

func TestDoubtedHolders(t *testing.T) {
	s := newScene(t, 5)
	liar, a, b := s.node("liar", 0, 1, 2, 3), s.node("a", 1), s.node("b")
	a.wants(1, 4)
	s.table.Doubt("b", []string{"liar", "nobody", "b"}, false)
	b.wants(2, 0, 2) // 1 is at a, 4 on its way to a
	a.wants(2)       // a has no doubts
	s.table.Doubt("a", []string{"liar"}, false)
	a.wants(2, 3)
	a.has(3, 4)
	b.has(0, 2)
	// b doubts a as well, who has just fetched 3 and 4: those are on their way to b.
	s.table.Doubt("b", []string{"liar", "a"}, false)
	b.wants(3, 1)
	s.pass(6*time.Second, liar, a, b)
	b.wants(3, 3, 4)
	b.has(1, 3, 4)
	s.table.Doubt("b", nil, false)
	b.wants(1)
	if st := s.table.Stats(); st.Granted != 1 || st.Rescues != 6 {
		t.Fatalf("stats %+v", st)
	}
}

func TestReportsMayCross(t *testing.T) {
	s := newScene(t, 4)
	a, b := s.node("a"), s.node("b")
	a.wants(1, 0)
	overtaken := slices.Clone(a.have)
	a.has(0)
	s.table.Report("a", "", overtaken, nil, nil, s.now)
	b.wants(1, 1) // and not 0
	s.pass(1500*time.Millisecond, b)
	s.table.Report("a", "", overtaken, nil, nil, s.now) // by now it has lost the piece
	b.wants(1, 0)
}

// TestRestart feeds what nodes know to a new Table: what they hold and fetch is not leased again.
func TestRestart(t *testing.T) {
	s := newScene(t, 12)
	a, b, late := s.node("a"), s.node("b"), s.node("late")
	a.wants(3, 0, 1, 2)
	b.wants(2, 3, 4)
	a.has(0)
	s.table = New(12, Config{}, s.now.Add(time.Second))
	late.wants(2)
	_, retry := s.table.Grant("late", Want{Origin: 1}, s.now)
	if retry != time.Second {
		t.Fatalf("retry in %v, want at the end of the grace", retry)
	}
	s.pass(time.Second, a, b, late)
	late.wants(3, 5, 6, 7)
	if st := s.table.Stats(); st.Adopted != 4 || st.Held != 1 {
		t.Fatalf("stats %+v, want the open leases adopted", st)
	}
	s.table.GrantAfter(s.now.Add(time.Second))
	b.wants(1)
	a.has(1, 2)
	b.has(3, 4)
	if st := s.table.Stats(); st.Held != 5 || st.Fetch != 0 {
		t.Fatalf("stats %+v; the times of adopted leases are not known", st)
	}
	s.pass(time.Second, a, b, late)
	b.wants(1, 8)
}

func TestNoPieceIsLeftBehind(t *testing.T) {
	s := newScene(t, 3)
	a := s.node("a")
	a.wants(5, 0, 1, 2)
	a.has(2)
	a.open = nil // a lost the others without knowing
	s.pass(2*time.Second, a)
	a.wants(5, 0, 1)
	a.has(0, 1)
	a.wants(1)
	if st := s.table.Stats(); st.Complete != 1 || st.Held != 3 || st.Leased != 0 {
		t.Fatalf("stats %+v", st)
	}
	// A piece that rots on a disk is leased again.
	a.have.Clear(1)
	s.pass(2*time.Second, a)
	a.wants(5, 1)
}

// TestZones: what no zone holds is leased once from the origin, what another zone holds once a zone from
// the node that the fewest others read from.
func TestZones(t *testing.T) {
	s := newScene(t, 12)
	a1, a2 := s.nodeIn("a", "a1"), s.nodeIn("a", "a2")
	b1, b2 := s.nodeIn("b", "b1"), s.nodeIn("b", "b2")
	c := s.nodeIn("c", "c")
	imports := func(n *actor, count int, pieces []int, from ...string) {
		t.Helper()
		want := Want{Imports: count}
		if from[0] == "" {
			want = Want{Origin: count}
		}
		if got := n.take(want); !slices.Equal(got, pieces) || !slices.Equal(n.from, from) {
			t.Fatalf("%s gets %v from %q, want %v from %q", n.name, got, n.from, pieces, from)
		}
	}
	imports(a1, 2, []int{0, 1}, "", "")
	imports(b1, 1, []int{2}, "") // a is fetching the others
	a1.has(0, 1)
	imports(b1, 1, []int{0}, "a1")
	imports(b2, 1, []int{1}, "a1")
	imports(c, 2, []int{0, 1}, "a1", "a1")
	a2.has(0, 1)
	b1.has(2)
	c.has(0, 1)
	imports(a2, 1, []int{2}, "b1")
	imports(c, 1, []int{2}, "b1")
	// A source that gives nothing is not named again, and where there is no other the origin is.
	s.table.Doubt("b2", []string{"a1", "a2"}, false)
	b2.open = nil
	s.pass(1500*time.Millisecond, a1, a2, b1, b2, c)
	if st := s.table.Stats(); st.Dropped != 1 || st.Imports != 6 || st.Granted != 3 {
		t.Fatalf("%+v", st)
	}
	imports(b2, 1, []int{1}, "c")
	s.table.Doubt("b2", []string{"a1", "a2", "c"}, false)
	b2.open = nil
	s.pass(1500*time.Millisecond, a1, a2, b1, b2, c)
	imports(c, 1, []int{3}, "")
	if got := b2.take(Want{Imports: 2}); len(got) > 0 {
		t.Fatalf("b2 gets %v from %q, and doubts all who have it", got, b2.from)
	}
	if got := b2.take(Want{Origin: 1, Imports: 1}); !slices.Equal(got, []int{1}) || b2.from[0] != "" {
		t.Fatalf("b2 gets %v from %q, want 1 from the origin", got, b2.from)
	}
	// Whoever moves leaves its pieces behind.
	b1.zone = "a"
	b1.report()
	if z := b2.s.table.nodes["b2"].zone; z.members != 1 || z.holders[2] != 0 || s.table.nodes["b1"].zone.name != "a" {
		t.Errorf("%+v", z)
	}
}

// TestZonesDoNotWaitForEachOther: what a zone fetched need not have spread in the others, and what a node
// of another zone hangs on is leased again.
func TestZonesDoNotWaitForEachOther(t *testing.T) {
	s := newScene(t, 40)
	a1, a2, b := s.nodeIn("a", "a1"), s.nodeIn("a", "a2"), s.nodeIn("b", "b")
	s.nodeIn("b", "b2")
	for p := range 39 {
		a1.wants(1, p)
		s.pass(100*time.Millisecond, a1, a2, b)
		a1.has(p)
		a2.has(p)
	}
	if got := b.take(Want{Imports: 1}); !slices.Equal(got, []int{0}) {
		t.Fatalf("b imports %v, want 0", got)
	}
	b.open = nil
	last := s.nodeIn("c", "hangs", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
		20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38)
	last.wants(1, 39)
	a1.wants(1)
	for range 80 {
		s.pass(500*time.Millisecond, a1, a2, b, last)
		if got := a1.lease(1); len(got) > 0 {
			if got[0] != 39 || a1.from[0] != "" {
				t.Errorf("leased %v from %q", got, a1.from)
			}
			return
		}
	}
	t.Errorf("nobody else gets the piece that a node of another zone hangs on: %+v", s.table.Stats())
}

// TestStalledOriginAndZones: what other zones hold is leased also to nodes that wait for the origin.
func TestStalledOriginAndZones(t *testing.T) {
	s := newScene(t, 40)
	var a, b []*actor
	for i := range 6 {
		a, b = append(a, s.nodeIn("a", fmt.Sprint("a", i))), append(b, s.nodeIn("b", fmt.Sprint("b", i)))
	}
	alive := append(slices.Clone(a), b...)
	a[0].wants(2, 0, 1)
	for _, n := range alive[1:] {
		n.take(Want{Origin: 2, Imports: 2})
	}
	if z := s.table.zones[1]; z.fetching < z.table.cfg.Busy {
		t.Fatalf("%d leases are under way in b, the test needs %d", z.fetching, z.table.cfg.Busy)
	}
	s.pass(400*time.Millisecond, alive...)
	a[0].has(0, 1, 39)               // lower ones than the last are free, and the origin lets everybody wait
	s.pass(30*time.Second, alive...) // and nothing else comes
	b[0].wants(1)
	for i, want := range []int{0, 1, 39} {
		if got := b[i].take(Want{Origin: 1, Imports: 1}); !slices.Equal(got, []int{want}) || b[i].from[0] != "a0" {
			t.Errorf("%s gets %v from %q, want %d from a0", b[i].name, got, b[i].from, want)
		}
	}
}

// TestSlowNode: what a slow node fetches everybody waits for, so it has less of it at a time, and none at the
// end; but it does not lose its turn to those that hang, and who catches up is not slow.
func TestSlowNode(t *testing.T) {
	s := newScene(t, 100)
	a, b, slow := s.node("a"), s.node("b"), s.node("slow")
	alive := []*actor{a, b, slow}
	has := func(p int) {
		for _, n := range alive {
			if n != slow {
				n.has(p)
			}
		}
	}
	next := 0
	lease := func(n *actor, count int) {
		t.Helper()
		got := n.lease(count)
		for tries := 0; len(got) == 0 && tries < 5; tries++ { // it may be ahead of those who do not ask
			s.pass(100*time.Millisecond, alive...)
			got = n.lease(count)
		}
		if !slices.Equal(got, []int{next}) {
			t.Fatalf("%s is leased %v, want %d", n.name, got, next)
		}
		next++
	}
	rounds := func(count int) {
		t.Helper()
		for range count {
			for _, n := range []*actor{a, b} {
				lease(n, 1)
				s.pass(100*time.Millisecond, alive...)
				has(next - 1)
			}
		}
	}
	lease(slow, 1)
	rounds(5)
	slow.has(0)
	slow.wants(3) // it has to spread
	has(0)
	lease(slow, 3) // one at a time, as it takes ten times as long
	late := s.node("late")
	alive = append(alive, late)
	lease(late, 1)
	rounds(8)
	late.has(late.open[0])
	has(12)
	slow.has(slow.open[0])
	has(11)
	for next < 90 {
		rounds(1)
	}
	lease(late, 1)
	lease(a, 1)
	slow.wants(1)                 // too late
	s.pass(time.Minute, alive...) // they hang
	lease(slow, 1)
}
