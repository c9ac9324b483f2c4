package tracker

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// desire writes models as the desired set.
func (r *region) desire(models ...client.DesiredModel) {
	r.t.Helper()
	if err := r.client().SetDesired(r.t.Context(), client.Desired{Models: models}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *region) desired(node, revision string, wait time.Duration) client.DesiredReply {
	r.t.Helper()
	reply, err := r.client().Desired(r.t.Context(), node, revision, wait)
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

func TestDesired(t *testing.T) {
	r := newRegion(t, Config{})
	c := r.client()
	if _, err := c.Desired(t.Context(), "a", "", 0); !errors.Is(err, client.ErrNoDesired) {
		t.Fatalf("error %v before a controller wrote, want ErrNoDesired", err)
	}
	everywhere := client.DesiredModel{Name: "llm", Reference: "r.example/llm:1", Priority: 5}
	onA := client.DesiredModel{Name: "embed", Reference: "r.example/embed:1", Nodes: []string{"b", "a", "b"}}
	r.desire(everywhere, onA)
	viewA := r.desired("a", "", 0)
	if got := []string{viewA.Models[0].Name, viewA.Models[1].Name}; !slices.Equal(got, []string{"embed", "llm"}) || viewA.Models[0].Nodes != nil {
		t.Fatalf("a sees %+v, want both models without nodes", viewA.Models)
	}
	viewC := r.desired("c", "", 0)
	if len(viewC.Models) != 1 || viewC.Models[0].Name != "llm" || viewC.Models[0].Priority != 5 {
		t.Fatalf("c sees %+v, want the model for all", viewC.Models)
	}
	whole := r.desired("", "", 0)
	if len(whole.Models) != 2 || !slices.Equal(whole.Models[0].Nodes, []string{"a", "b"}) {
		t.Fatalf("the whole set is %+v", whole.Models)
	}
	// The same set, listed otherwise and after a restart, has the same revisions.
	r.restart()
	onA.Nodes = []string{"a", "b"}
	r.desire(onA, everywhere)
	for node, before := range map[string]client.DesiredReply{"a": viewA, "c": viewC, "": whole} {
		if now := r.desired(node, "", 0); now.Revision != before.Revision || now.Epoch == before.Epoch {
			t.Errorf("view of %q after a restart: %+v, before: %+v, want another epoch only", node, now, before)
		}
	}
	r.desire()
	if reply := r.desired("a", viewA.Revision, time.Minute); len(reply.Models) != 0 || reply.Models == nil {
		t.Fatalf("empty set: %+v", reply)
	}
}

func TestLongPollWakes(t *testing.T) {
	r := newRegion(t, Config{})
	llm := client.DesiredModel{Name: "llm", Reference: "r.example/llm:1", Nodes: []string{"a"}}
	first := make(chan client.DesiredReply, 1)
	go func() { // begun before any controller wrote
		reply, err := r.client().Desired(t.Context(), "a", "", time.Minute)
		if err != nil {
			t.Error(err)
		}
		first <- reply
	}()
	r.desire(llm)
	had := <-first
	if len(had.Models) != 1 {
		t.Fatalf("woken with %+v", had)
	}
	next := make(chan client.DesiredReply, 1)
	go func() {
		reply, err := r.client().Desired(t.Context(), "a", had.Revision, time.Minute)
		if err != nil {
			t.Error(err)
		}
		next <- reply
	}()
	// A change for other nodes does not wake a; one for a does.
	r.desire(llm, client.DesiredModel{Name: "other", Reference: "r.example/other:1", Nodes: []string{"b"}})
	llm.Reference = "r.example/llm:2"
	r.desire(llm)
	if reply := <-next; len(reply.Models) != 1 || reply.Models[0].Reference != llm.Reference {
		t.Fatalf("woken with %+v, want the new reference", reply)
	}
}

// TestLongPollTimes runs handlers in virtual time.
func TestLongPollTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		set, err := newDesiredSet([]client.DesiredModel{{Name: "m", Reference: "r"}})
		if err != nil {
			t.Fatal(err)
		}
		view, err := set.view("a")
		if err != nil {
			t.Fatal(err)
		}
		poll := func(ctx context.Context, query string) (int, int, time.Duration) {
			begun := time.Now()
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, client.DesiredPath+"?node=a&"+query, nil))
			return w.Code, w.Body.Len(), time.Since(begun)
		}
		if code, _, took := poll(t.Context(), "wait=10s"); code != http.StatusNoContent || took != 10*time.Second {
			t.Errorf("without a set: %d after %v, want 204 after 10s", code, took)
		}
		s.desired.replace(set)
		if code, _, took := poll(t.Context(), "wait=10s"); code != http.StatusOK || took != 0 {
			t.Errorf("with another revision: %d after %v, want 200 at once", code, took)
		}
		if code, _, took := poll(t.Context(), "wait=10s&revision="+view.Revision); code != http.StatusOK || took != 10*time.Second {
			t.Errorf("with the same revision: %d after %v, want 200 after 10s", code, took)
		}
		if code, _, took := poll(t.Context(), "wait=24h&revision="+view.Revision); code != http.StatusOK || took != client.MaxWait {
			t.Errorf("with a long wait: %d after %v, want 200 after %v", code, took, client.MaxWait)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, n, took := poll(ctx, "wait=10s&revision="+view.Revision); n != 0 || took != time.Second {
			t.Errorf("cancelled: %d bytes after %v, want nothing after 1s", n, took)
		}
	})
}

// TestCancelledPoll cancels a poll on a real connection; goleak sees whether its handler ends.
func TestCancelledPoll(t *testing.T) {
	arrived := make(chan struct{})
	r := newRegion(t, Config{Now: func() time.Time { // called when a poll has been taken in
		select {
		case arrived <- struct{}{}:
		default:
		}
		return time.Now()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := r.client().Desired(ctx, "a", "", time.Minute); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want the cancellation", err)
	}
}

func TestProgress(t *testing.T) {
	r := newRegion(t, Config{})
	c := r.client()
	long := make([]byte, 2*maxError)
	for i := range long {
		long[i] = 'x'
	}
	for _, name := range []string{"b", "a"} {
		p := client.Progress{Node: name, Models: []client.ModelProgress{{Name: "llm", State: "fetching", Bytes: 1, Total: 2, Error: string(long)}}}
		if err := c.Report(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		r.clock.advance(time.Minute)
	}
	expect := func(want ...string) []client.Progress {
		t.Helper()
		all, err := c.Progress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range all {
			got = append(got, p.Node)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("progress of %v, want %v", got, want)
		}
		return all
	}
	all := expect("a", "b")
	if p := all[0]; p.AgeMS != 60_000 || len(p.Models) != 1 || p.Models[0].Bytes != 1 || len(p.Models[0].Error) != maxError {
		t.Errorf("a's progress is %+v", p)
	}
	r.clock.advance(time.Millisecond)
	expect("a")
	r.clock.advance(time.Minute)
	expect()
}

func TestHashes(t *testing.T) {
	const layer = 16 * 32 // bytes of the hash layer of testSize
	r := newRegion(t, Config{HashCacheBytes: 2 * layer})
	c := r.client()
	put := func(b blob) {
		t.Helper()
		if err := c.PutHashes(t.Context(), b.key, b.size, b.layer); err != nil {
			t.Fatal(err)
		}
	}
	kept := func(b blob) bool {
		t.Helper()
		got, err := c.Hashes(t.Context(), b.key, b.size)
		if err != nil && !client.IsNotFound(err) {
			t.Fatal(err)
		}
		if err == nil && !slices.Equal(got, b.layer) {
			t.Fatalf("hash layer of %s came back changed", b.key)
		}
		return err == nil
	}
	one, two, three := newBlob(t, 1, testSize), newBlob(t, 2, testSize), newBlob(t, 3, testSize)
	if kept(one) {
		t.Fatal("a hash layer before it was put")
	}
	put(one)
	put(one)
	put(two)
	if !kept(one) || !kept(two) {
		t.Fatal("two layers are not kept in room for two")
	}
	kept(one) // used last
	put(three)
	if kept(two) || !kept(one) || !kept(three) {
		t.Fatal("the layer that was used longest ago is not the one that went")
	}
	// A layer of other bytes is refused, under its own root and under another one's.
	lie := blob{key: two.key, size: two.size, layer: slices.Clone(three.layer)}
	if err := c.PutHashes(t.Context(), lie.key, lie.size, lie.layer); err == nil {
		t.Fatal("a hash layer of other bytes was taken")
	}
	lie.layer[0] = model.Hash{1}
	if err := c.PutHashes(t.Context(), three.key, lie.size, lie.layer); err != nil {
		t.Fatalf("a layer that is kept already was not waved through: %v", err)
	}
	if kept(two) || !kept(three) {
		t.Fatal("a lie changed what is kept")
	}
}
