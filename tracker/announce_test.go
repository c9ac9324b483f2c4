package tracker

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

func TestFreshStartCostsOneInterval(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	a, b := newNode(r, "a", "127.0.0.1:1001", key), newNode(r, "b", "127.0.0.2:1002", key)
	first := a.ask(2)
	if len(first.Leases) > 0 || first.RetryMS != 500 || first.IntervalMS != 500 {
		t.Fatalf("first reply %+v, want no leases and a retry in 500 ms", first)
	}
	if reply := b.ask(2); len(reply.Leases) > 0 {
		t.Fatalf("leases %v within the grace", reply.Leases)
	}
	r.clock.advance(500 * time.Millisecond)
	got := pieces(slices.Concat(a.ask(2).Leases, b.ask(2).Leases))
	if !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Fatalf("leases %v, want the lowest four, each once", got)
	}
	// What is fetched under our own leases is no sign of an earlier tracker.
	a.fetched()
	r.clock.advance(100 * time.Millisecond)
	if reply := a.ask(1); !slices.Equal(pieces(reply.Leases), []int{4}) {
		t.Fatalf("after the first pieces: %+v, want lease 4", reply)
	}
	// A swarm that is born when the grace is over does not wait.
	r.clock.advance(6 * time.Second)
	if reply := newNode(r, "a", "127.0.0.1:1001", keyOf(2, model.Hash{})).ask(1); len(reply.Leases) != 1 {
		t.Fatalf("late swarm: %+v, want a lease at once", reply)
	}
}

func TestSwarmState(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	a, b := newNode(r, "a", "127.0.0.1:1001", key), newNode(r, "b", "127.0.0.2:1002", key)
	a.ask(0)
	r.clock.advance(500 * time.Millisecond)
	a.ask(2)
	b.ask(1)
	r.clock.advance(100 * time.Millisecond)
	a.fetched()
	a.ask(0)
	b.a.Complete = true
	if reply := b.ask(1); reply.Holders != 0 || reply.IntervalMS != 5000 || len(reply.Leases) > 0 {
		t.Fatalf("a complete node gets %+v, want the idle interval and no lease", reply)
	}
	if reply := a.ask(1); reply.Holders != 1 || len(reply.Leases) > 0 {
		t.Fatalf("beside a complete node: %+v, want 1 holder and no lease", reply)
	}
	list, err := a.c.Swarms(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := client.Swarm{
		Key: key.String(), Size: testSize, Pieces: 16, Held: 16, Nodes: 2, Complete: 1, Granted: 3, FetchMS: 100,
	}
	if len(list) != 1 || list[0] != want {
		t.Fatalf("swarms %+v, want %+v", list, want)
	}
}

func TestLeavingFreesLeases(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	a, b := newNode(r, "a", "127.0.0.1:1001", key), newNode(r, "b", "127.0.0.2:1002", key)
	a.ask(0)
	r.clock.advance(500 * time.Millisecond)
	a.ask(3)
	a.a.Left = true
	a.ask(0)
	if reply := b.ask(2); !slices.Equal(pieces(reply.Leases), []int{0, 1}) || len(reply.Peers) > 0 {
		t.Fatalf("after the only other node left: %+v, want its leases and no peers", reply)
	}
	// Leaving what does not exist makes no swarm.
	gone := newNode(r, "a", "", keyOf(9, model.Hash{}))
	gone.a.Left = true
	gone.ask(0)
	if list, err := a.c.Swarms(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("swarms %+v, error %v, want one", list, err)
	}
}

// TestRestartIsNoStampede restarts the tracker in mid-transfer: nothing that a node holds or
// fetches may be leased to another one.
func TestRestartIsNoStampede(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	a, b, late := newNode(r, "a", "127.0.0.1:1001", key), newNode(r, "b", "127.0.0.2:1002", key), newNode(r, "late", "127.0.0.3:1003", key)
	a.ask(0)
	r.clock.advance(500 * time.Millisecond)
	a.ask(2)
	b.ask(2)
	a.fetched() // a holds 0 and 1, b fetches 2 and 3
	r.restart()
	for range 11 {
		if reply := late.ask(2); len(reply.Leases) > 0 {
			t.Fatalf("leases %v before everybody could report", reply.Leases)
		}
		b.ask(2)
		r.clock.advance(500 * time.Millisecond)
	}
	if reply := a.ask(2); len(reply.Leases) > 0 { // an idle node reports as late as this
		t.Fatalf("leases %v before the idle interval was over", reply.Leases)
	}
	r.clock.advance(time.Second)
	got := late.ask(2)
	if !slices.Equal(pieces(got.Leases), []int{4, 5}) {
		t.Fatalf("after the grace: %+v, want leases 4 and 5", got)
	}
	list, err := a.c.Swarms(t.Context())
	if err != nil || len(list) != 1 || list[0].Adopted != 2 || list[0].Held != 2 {
		t.Fatalf("swarms %+v, error %v, want 2 pieces held and 2 leases adopted", list, err)
	}
}

func TestGraceSigns(t *testing.T) {
	tests := []struct {
		name  string
		sign  func(r *region, key client.Key)
		grace time.Duration
	}{
		{"nothing", func(*region, client.Key) {}, 500 * time.Millisecond},
		{"a piece", func(r *region, key client.Key) {
			n := newNode(r, "old", "127.0.0.9:1", key)
			lease.Bitmap(n.a.Have).Set(3)
			n.ask(0)
		}, 6 * time.Second},
		{"an open lease", func(r *region, key client.Key) {
			n := newNode(r, "old", "127.0.0.9:1", key)
			n.a.Open = []int{3}
			n.ask(0)
		}, 6 * time.Second},
		{"a complete node", func(r *region, key client.Key) {
			n := newNode(r, "old", "127.0.0.9:1", key)
			n.a.Complete = true
			n.ask(0)
			n.a.Left = true
			n.ask(0)
		}, 6 * time.Second},
		{"a foreign epoch in another swarm", func(r *region, _ client.Key) {
			n := newNode(r, "old", "127.0.0.9:1", keyOf(7, model.Hash{}))
			n.a.Epoch = "before"
			n.ask(0)
		}, 6 * time.Second},
		{"a foreign epoch in a long-poll", func(r *region, _ client.Key) {
			resp := get(r.t, r.url+client.DesiredPath+"?node=old&epoch=before")
			if resp.StatusCode != http.StatusNoContent {
				r.t.Fatal(resp.Status)
			}
		}, 6 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRegion(t, Config{})
			key := keyOf(1, model.Hash{})
			n := newNode(r, "n", "127.0.0.1:1", key)
			n.ask(1)
			tt.sign(r, key)
			r.clock.advance(tt.grace - time.Millisecond)
			if reply := n.ask(1); len(reply.Leases) > 0 {
				t.Fatalf("leases %v before %v", reply.Leases, tt.grace)
			}
			r.clock.advance(time.Millisecond)
			if reply := n.ask(1); len(reply.Leases) != 1 {
				t.Fatalf("after %v: %+v, want a lease", tt.grace, reply)
			}
		})
	}
}

func TestSizesAreSwarmsOfTheirOwn(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{})
	liar, honest := newNode(r, "liar", "127.0.0.1:1", key), newNode(r, "honest", "127.0.0.2:1", key)
	liar.a.Size, liar.a.Have = 3*testSize, nil
	liar.ask(0)
	honest.ask(0)
	r.clock.advance(500 * time.Millisecond)
	if reply := honest.ask(1); len(reply.Leases) != 1 || len(reply.Peers) != 0 {
		t.Fatalf("beside a node that lies about the size: %+v, want a lease and no peers", reply)
	}
}

func TestLimits(t *testing.T) {
	r := newRegion(t, Config{MaxSwarms: 2, MaxNodes: 2})
	keys := []client.Key{keyOf(1, model.Hash{}), keyOf(2, model.Hash{}), keyOf(3, model.Hash{})}
	refused := func(n *node, want string) {
		t.Helper()
		_, err := n.c.Announce(t.Context(), n.key, n.a)
		if e := new(client.Error); !asError(err, e) || e.Status != http.StatusServiceUnavailable || !strings.Contains(e.Message, want) {
			t.Fatalf("error %v, want 503 with %q", err, want)
		}
	}
	newNode(r, "a", "127.0.0.1:1", keys[0]).ask(0)
	newNode(r, "b", "127.0.0.2:1", keys[0]).ask(0)
	refused(newNode(r, "c", "127.0.0.3:1", keys[0]), "2 nodes")
	newNode(r, "a", "127.0.0.1:1", keys[1]).ask(0)
	refused(newNode(r, "a", "127.0.0.1:1", keys[2]), "2 live swarms")
	// An empty swarm makes room.
	left := newNode(r, "a", "127.0.0.1:1", keys[1])
	left.a.Left = true
	left.ask(0)
	newNode(r, "a", "127.0.0.1:1", keys[2]).ask(0)

	for i, name := range []string{"a", "b", "a", "c"} {
		err := left.c.Report(t.Context(), client.Progress{Node: name})
		if full := i == 3; (err != nil) != full {
			t.Fatalf("progress of %s: error %v", name, err)
		}
	}
}

// TestRunForgets runs in virtual time: nodes, swarms and progress reports go when they are not
// repeated, and a long-poll ends with Run.
func TestRunForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := s.Handler()
		call := func(method, path, body string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body)))
			return w
		}
		done := make(chan error)
		ctx, stop := context.WithCancel(t.Context())
		go func() { done <- s.Run(ctx) }()
		announce := client.SwarmsPath + "/" + keyOf(1, model.Hash{}).String() + "/announce"
		if w := call("POST", announce, `{"node":"a","addr":"127.0.0.1:1","size":1}`); w.Code != http.StatusOK {
			t.Fatal(w.Body)
		}
		if w := call("POST", client.ProgressPath, `{"node":"a"}`); w.Code != http.StatusNoContent {
			t.Fatal(w.Body)
		}
		after := func(d time.Duration, path, want string) {
			t.Helper()
			<-time.After(d) // virtual
			synctest.Wait()
			if got := call("GET", path, "").Body.String(); !strings.Contains(got, want) || (want == "[]" && got != want) {
				t.Fatalf("%s is %s, want %s", path, got, want)
			}
		}
		after(time.Second, client.SwarmsPath, `"nodes":1`)
		after(4*time.Second, client.SwarmsPath, `"nodes":0`)
		after(time.Minute, client.ProgressPath, `"ageMS":65000`)
		after(time.Minute, client.ProgressPath, `[]`)
		after(7*time.Minute, client.SwarmsPath, `"nodes":0`)
		after(2*time.Minute, client.SwarmsPath, `[]`)

		begun := time.Now()
		polled := make(chan int)
		go func() { polled <- call("GET", client.DesiredPath+"?node=a&wait=1m", "").Code }()
		synctest.Wait()
		<-time.After(10 * time.Second)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if code := <-polled; code != http.StatusNoContent || time.Since(begun) != 10*time.Second {
			t.Fatalf("poll ended with %d after %v, want 204 when Run ended", code, time.Since(begun))
		}
	})
}

// TestManyAtOnce is for the race detector: swarms are born, used and evicted side by side.
func TestManyAtOnce(t *testing.T) {
	r := newRegion(t, Config{MaxSwarms: 4, Now: time.Now})
	var wg sync.WaitGroup
	for i := range 8 {
		n := newNode(r, fmt.Sprint("n", i), fmt.Sprintf("127.0.0.%d:1", i+1), client.Key{})
		wg.Go(func() {
			for round := range 40 {
				n.key = keyOf(byte((i+round)%6), model.Hash{})
				a := n.a
				a.Want, a.Left = 1, round%3 == 2
				_, err := n.c.Announce(t.Context(), n.key, a)
				if e := new(client.Error); err != nil && (!asError(err, e) || e.Status != http.StatusServiceUnavailable) {
					t.Error(err)
				}
				if _, err := n.c.Swarms(t.Context()); err != nil {
					t.Error(err)
				}
				r.server.sweep()
			}
		})
	}
	wg.Wait()
}
