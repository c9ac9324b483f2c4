package peer

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// neighbours are those that are asked when the tracker is lost.
type neighbours struct {
	peers []swarm.Peer
	keys  []string
}

func (n *neighbours) Find(_ context.Context, key string) []swarm.Peer {
	n.keys = append(n.keys, key)
	return n.peers
}

func (n *neighbours) Changed() {}

// announcing is an announcer whose times the test sets.
type announcing struct {
	*announcer
	t      *testing.T
	region *region
}

func newAnnouncing(t *testing.T, change ...func(*Config)) *announcing {
	t.Helper()
	r := newRegion(t)
	bt := newSwarm(t, 1, nil)
	t.Cleanup(func() {
		if err := bt.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := Config{Name: "n1", Zone: "z", Swarm: bt, Tracker: r.client()}
	for _, c := range change {
		c(&cfg)
	}
	key := client.Key{Digest: digest.FromString("blob"), Root: model.Hash{1}}
	return &announcing{newAnnouncer(cfg, &contact{}, key, 3*model.HashLayerPiece), t, r}
}

func (a *announcing) ask(want int) swarm.Reply {
	a.t.Helper()
	reply, err := a.Announce(a.t.Context(), swarm.Report{Have: []byte{0}, Want: want})
	if err != nil {
		a.t.Fatal(err)
	}
	return reply
}

// refused asserts that neither tracker nor neighbours answer, and returns why.
func (a *announcing) refused() error {
	a.t.Helper()
	reply, err := a.Announce(a.t.Context(), swarm.Report{Have: []byte{0}})
	if err == nil {
		a.t.Fatalf("it answers %+v", reply)
	}
	return err
}

// age lets d pass since everything that the announcer remembers.
func (a *announcing) age(d time.Duration) {
	for _, at := range []*time.Time{&a.born, &a.lost, &a.tried, &a.contact.last} {
		if !at.IsZero() {
			*at = at.Add(-d)
		}
	}
}

func TestTrackerFirst(t *testing.T) {
	near := &neighbours{peers: []swarm.Peer{{Name: "n7", Addr: "127.0.0.7:7"}}}
	a := newAnnouncing(t, func(c *Config) { c.Neighbours = near })
	other, err := a.region.control.Announce(t.Context(), a.key, client.Announce{Node: "n2", Addr: "127.0.0.2:2", Zone: "z", Size: a.size, Complete: true})
	if err != nil || len(other.Peers) != 0 {
		t.Fatalf("%+v, %v", other, err)
	}
	reply := a.ask(1)
	if want := []swarm.Peer{{Name: "n2", Addr: "127.0.0.2:2"}}; !slices.Equal(reply.Peers, want) || reply.Share || reply.Interval <= 0 {
		t.Errorf("got %+v", reply)
	}
	if len(near.keys) != 0 {
		t.Error("the neighbours were asked beside the tracker")
	}
}

func TestTrackerLost(t *testing.T) {
	near := &neighbours{peers: []swarm.Peer{{Name: "n7", Addr: "127.0.0.7:7"}}}
	a := newAnnouncing(t, func(c *Config) { c.Neighbours = near })
	a.ask(0)
	a.region.setTrackerDown(true)
	first := a.refused()
	if e, ok := errors.AsType[*client.Error](first); !ok || e.Status != 503 {
		t.Errorf("at first: %v", first)
	}
	a.age(trackerLost - time.Second)
	a.refused() // a restart of the tracker is waited for
	a.age(2 * time.Second)
	reply := a.ask(1)
	if !slices.Equal(reply.Peers, near.peers) || !reply.Share || reply.Interval != shareBusy || len(reply.Leases) != 0 {
		t.Errorf("without the tracker: %+v", reply)
	}
	if !slices.Equal(near.keys, []string{a.key.String()}) {
		t.Errorf("the neighbours were asked for %v", near.keys)
	}
	done, err := a.Announce(t.Context(), swarm.Report{Complete: true})
	if err != nil || done.Interval != shareDone {
		t.Errorf("with a whole blob: %+v, %v", done, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Announce(gone, swarm.Report{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}

	// It answers again, and nobody has noticed yet.
	a.region.setTrackerDown(false)
	if reply := a.ask(0); !reply.Share {
		t.Errorf("a lost tracker holds up every step: %+v", reply)
	}
	for name, notice := range map[string]func(){
		"another call reached it": func() { a.contact.heard() },
		"it is time":              func() { a.age(trackerAgain + time.Second) },
	} {
		a.lost, a.tried = time.Now().Add(-time.Minute), time.Now().Add(-time.Second)
		notice()
		if reply := a.ask(0); reply.Share || !a.lost.IsZero() {
			t.Errorf("%s, and the tracker is not used: %+v", name, reply)
		}
	}
}

func TestNeitherTrackerNorNeighbours(t *testing.T) {
	t.Run("no tracker", func(t *testing.T) {
		a := newAnnouncing(t, func(c *Config) { c.Tracker = nil })
		if err := a.refused(); !errors.Is(err, errNoTracker) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a lost tracker", func(t *testing.T) {
		a := newAnnouncing(t)
		a.region.setTrackerDown(true)
		a.refused()
		a.age(trackerLost + time.Second)
		for _, when := range []string{"when it was tried", "when it was not"} {
			if err := a.refused(); errors.Is(err, errNoTracker) {
				t.Errorf("%s: there is one, and the error says %v", when, err)
			}
		}
	})
}

// TestSharesOverSettledNeighbours shows that a node waits before its first share where it never had a
// tracker, since others begin at the same time.
func TestSharesOverSettledNeighbours(t *testing.T) {
	a := newAnnouncing(t, func(c *Config) { c.Tracker, c.Neighbours = nil, &neighbours{} })
	if reply := a.ask(1); reply.Share {
		t.Errorf("at once: %+v", reply)
	}
	a.age(settle + time.Second)
	if reply := a.ask(1); !reply.Share {
		t.Errorf("after a while: %+v", reply)
	}
}
