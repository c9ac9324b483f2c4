package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// small is a swarm that plays in well under a second.
func small() config {
	return config{
		Nodes: 12, Zones: 2, Racks: 4, Layers: 4, LayerBytes: 64 << 20, Parallel: 3,
		Rate: 100e6, MirrorRate: 100e6, RegistryRate: 100e6,
		Latency: 200 * time.Microsecond, Window: 5 * time.Millisecond, Start: 50 * time.Millisecond,
		CPURate: 1e9, MirrorCost: 1, Seed: 7,
	}
}

func played(t *testing.T, cfg config) *world {
	t.Helper()
	w, err := newWorld(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.run(); err != nil {
		t.Fatal(err)
	}
	return w
}

// keepsWithin checks the ratio of all nodes, and the copies from the mirror, of which there is at least one.
func keepsWithin(t *testing.T, w *world, ratio, copies float64) {
	t.Helper()
	if r := w.ratio(false); r < 1 || r > ratio {
		t.Errorf("ratio %.3f, coarse %v", r, w.cfg.Coarse)
	}
	if c := w.copies(); c < 0.999 || c > copies {
		t.Errorf("the mirror sent %.4f copies, coarse %v", c, w.cfg.Coarse)
	}
}

func TestQueueIsInOrder(t *testing.T) {
	var q queue
	r := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		q.push(event{at: moment(r.IntN(100))})
	}
	last := event{at: -1}
	for range 500 {
		e := q.pop()
		if e.before(&last) {
			t.Fatalf("%v, %d comes after %v, %d", e.at, e.seq, last.at, last.seq)
		}
		last = e
		q.push(event{at: e.at + moment(r.IntN(10))})
	}
}

func TestServerPassesInOrder(t *testing.T) {
	s := server{rate: 1000}
	if at := s.pass(500, 0); at != 500*time.Millisecond {
		t.Errorf("500 bytes at 1000 B/s are through after %v", at)
	}
	if at := s.pass(500, 100*time.Millisecond); at != time.Second {
		t.Errorf("the next ones, given meanwhile, after %v", at)
	}
	if at := s.pass(500, 3*time.Second); at != 3500*time.Millisecond {
		t.Errorf("those given to an idle server, at %v", at)
	}
	if at := new(server).pass(1<<40, 7); at != 7 {
		t.Errorf("a server without a limit takes until %v", at)
	}
}

// TestUplinkIsShared lets one host send to two: it takes turns, and where one of them is slow the other
// gets what that leaves.
func TestUplinkIsShared(t *testing.T) {
	tests := []struct {
		name      string
		slow      float64 // rate of the second receiver
		at        moment
		low, high float64 // share of the first receiver
	}{
		{"even", 100e6, 600 * time.Millisecond, 0.45, 0.55},
		{"one slow", 25e6, 400 * time.Millisecond, 0.70, 0.80},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := small()
			cfg.Nodes, cfg.LayerBytes = 3, 256<<20
			w, err := newWorld(cfg)
			if err != nil {
				t.Fatal(err)
			}
			w.queue = queue{} // nobody joins by himself
			l := w.layers[0]
			from := w.join(w.nodes[firstNode], l)
			var got [2]int
			var ways [2]*conn
			for i := range ways {
				to := w.join(w.nodes[firstNode+1+i], l)
				ways[i] = w.newConn(to.id, from.id)
				for p := range int32(l.pieces) {
					ways[i].queue = append(ways[i].queue, request{piece: p})
				}
			}
			w.members[ways[1].member].node.host.down.rate = tt.slow
			w.ready(ways[0])
			w.ready(ways[1])
			for len(w.queue.heap) > 0 {
				e := w.queue.pop()
				if w.now = e.at; w.now > tt.at {
					break
				}
				switch e.kind {
				case hostFree:
					w.kick(w.hosts[e.a])
				case blockArrives:
					got[slices.IndexFunc(ways[:], func(c *conn) bool { return c.id == e.a })]++
				}
			}
			share := float64(got[0]) / float64(got[0]+got[1])
			if share < tt.low || share > tt.high {
				t.Errorf("the first got %.2f of the blocks (%d and %d), want %.2f to %.2f", share, got[0], got[1], tt.low, tt.high)
			}
			sent := float64(got[0]+got[1]) * float64(l.length) / float64(l.blocks) / tt.at.Seconds()
			if sent < 0.9*cfg.Rate {
				t.Errorf("the uplink carried %.0f B/s of %.0f", sent, cfg.Rate)
			}
		})
	}
}

// TestChoice: partial pieces first, then rare ones, and no more pieces are looked at than the limit needs.
func TestChoice(t *testing.T) {
	l := &layer{pieces: 6, blocks: 4}
	m := &member{
		layer: l, have: newSet(6), asked: newSet(6), wanted: newSet(6),
		blocks: make([]progress, 6),
	}
	for _, avail := range []uint8{3, 1, 2, 3, 1, 1} {
		m.cells = append(m.cells, cell{avail: avail})
	}
	told := newSet(6)
	for p := range 6 {
		m.wanted.add(p)
		told.add(p)
	}
	told.remove(5)                           // the peer lacks it
	m.blocks[3] = progress{asked: 3, got: 1} // two blocks left
	var h chooser
	for _, tt := range []struct {
		limit int
		want  []int
	}{{2, []int{3}}, {3, []int{1, 3}}, {7, []int{1, 3, 4}}, {100, []int{0, 1, 2, 3, 4}}} {
		h.gather(m, told, tt.limit)
		var got []int
		for i, c := range h.found {
			got = append(got, c.piece)
			if i > 0 && c.avail < h.found[i-1].avail {
				t.Errorf("limit %d: %v is not by availability", tt.limit, h.found)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, tt.want) {
			t.Errorf("limit %d: looks at %v, want %v", tt.limit, got, tt.want)
		}
	}
}

func TestOneNodeMeetsTheBound(t *testing.T) {
	cfg := small()
	cfg.Nodes = 1
	w := played(t, cfg)
	if r := w.ratio(false); r < 1 || r > 1.06 {
		t.Errorf("ratio %.3f", r)
	}
}

// TestLateNodesFindRoom: nodes that come one by one have somebody to trade with, also when those before them are
// more than a torrent has connections.
func TestLateNodesFindRoom(t *testing.T) {
	cfg := small()
	cfg.Nodes, cfg.Zones, cfg.Racks, cfg.Layers = 100, 1, 1, 1
	cfg.LayerBytes, cfg.Coarse, cfg.Every = 256<<20, true, 10*time.Millisecond
	keepsWithin(t, played(t, cfg), 1.35, 1.02)
}

// TestSlowLinks: where a peer gives a block every few seconds, because many share its slow uplink, nobody takes that for
// a peer that does not give, and fetches everything from the mirror.
func TestSlowLinks(t *testing.T) {
	cfg := small()
	cfg.Nodes, cfg.Zones, cfg.Racks, cfg.Layers = 60, 1, 1, 1
	cfg.LayerBytes, cfg.Rate, cfg.MirrorRate, cfg.RegistryRate = 64<<20, 2.5e6, 2.5e6, 2.5e6
	cfg.Every = time.Second
	keepsWithin(t, played(t, cfg), 1.35, 1.5)
}

func TestSmallSwarm(t *testing.T) {
	for _, coarse := range []bool{false, true} {
		cfg := small()
		cfg.Coarse = coarse
		w := played(t, cfg)
		keepsWithin(t, w, 1.35, 1.001)
		for _, n := range w.nodes[firstNode:] {
			if n.finished == 0 {
				t.Errorf("%s has not finished", n.name)
			}
		}
	}
}

func TestLostNodes(t *testing.T) {
	cfg := small()
	cfg.Nodes, cfg.Lost, cfg.LostWithin = 20, 0.2, 2*time.Second
	w := played(t, cfg)
	r, err := w.result(cfg.Layers)
	if err != nil {
		t.Fatal(err)
	}
	if r.LostNodes != 4 || r.Replaced != 2 {
		t.Errorf("%d lost and %d replaced, want 4 and 2", r.LostNodes, r.Replaced)
	}
	if old, spare := len(w.times(false)), len(w.times(true)); old != 16 || spare != 2 {
		t.Errorf("%d nodes and %d new ones finished, want 16 and 2", old, spare)
	}
	if r.OriginCopies > 1.2 {
		t.Errorf("copies %.3f with a fifth lost", r.OriginCopies)
	}
}

func TestSameSeedSameRun(t *testing.T) {
	line := func(seed uint64) string {
		cfg := small()
		cfg.Lost, cfg.LostWithin, cfg.Seed = 0.2, 2*time.Second, seed
		r, err := played(t, cfg).result(cfg.Layers)
		if err != nil {
			t.Fatal(err)
		}
		r.TrackerCPU, r.TrackerPeak, r.MessageMicros = 0, 0, 0 // measured, not simulated
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	one := line(1)
	if again := line(1); again != one {
		t.Errorf("one seed, two runs:\n%s\n%s", one, again)
	}
	if line(2) == one {
		t.Error("another seed gives the same run")
	}
}

func TestCommand(t *testing.T) {
	var out bytes.Buffer
	c := command(&out, io.Discard)
	c.SetArgs([]string{"--nodes", "10", "--bytes", "64MB", "--layers", "4", "--played", "2", "--lost", "0"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var r result
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Fatal(err)
	}
	if r.Nodes != 10 || r.Bytes != 64e6 || r.SimulatedBytes != 32e6 || r.OriginCopies < 0.99 || len(r.Calibration) == 0 {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"--rate", "fast"}, {"--nodes", "0"}, {"--lost", "1"}, {"--bytes", "many"}, {"--cpu", "0"}} {
		c := command(io.Discard, io.Discard)
		c.SetArgs(args)
		if err := c.Execute(); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}
