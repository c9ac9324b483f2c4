package peer

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/tracker/client"
)

// tasks makes an agent that runs none of them.
func tasks(models ...client.DesiredModel) (*Peer, []*task) {
	p := &Peer{log: discard(), changed: make(chan struct{}, 1), tasks: map[string]*task{}}
	var all []*task
	for _, m := range models {
		t := newTask(p, m)
		p.tasks[m.Name] = t
		all = append(all, t)
	}
	return p, all
}

func TestOutranked(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		own, other int
		state      string
		err        error // of the task
		why        error // of its layer
		want       bool
	}{
		"a higher one is resolved": {1, 2, StateResolving, nil, nil, true},
		"a higher one comes":       {1, 2, StateFetching, nil, nil, true},
		"below zero":               {-2, -1, StateFetching, nil, nil, true},
		"as high":                  {1, 1, StateFetching, nil, nil, false},
		"a lower one":              {2, 1, StateFetching, nil, nil, false},
		"it is there":              {1, 2, StateReady, nil, nil, false},
		"it failed":                {1, 2, StateFailed, broken, nil, false},
		"it is tried again":        {1, 2, StateResolving, broken, nil, false},
		"it is mended":             {1, 2, StateFetching, errScrubbed, nil, false},
		"it does not get on":       {1, 2, StateFetching, nil, broken, false},
	} {
		p, all := tasks(client.DesiredModel{Name: "own", Priority: c.own}, client.DesiredModel{Name: "other", Priority: c.other})
		all[1].set(c.state, c.err)
		sd := &seed{all: newSeeds(Config{})}
		sd.setTrouble(c.why)
		all[1].parts = []part{{seed: sd}}
		if got := p.outranked(all[0]); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
		if p.outranked(all[1]) && c.other > c.own {
			t.Errorf("%s: the higher one gives way", name)
		}
	}
}

func TestGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, all := tasks(client.DesiredModel{Name: "low"}, client.DesiredModel{Name: "high", Priority: 1})
		low, high := all[0], all[1]
		if err := p.giveWay(t.Context(), high); err != nil {
			t.Error(err)
		}
		began := time.Now()
		time.AfterFunc(time.Minute, func() { high.set(StateReady, nil) })
		if err := p.giveWay(t.Context(), low); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < time.Minute || took > time.Minute+2*priorityCheck {
			t.Errorf("it gave way for %v", took)
		}
		high.set(StateFetching, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.giveWay(ctx, low); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after its end: %v", err)
		}
		// Priorities change while models come.
		time.AfterFunc(time.Minute, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			low.retune(client.DesiredModel{Priority: 1})
		})
		if err := p.giveWay(t.Context(), low); err != nil {
			t.Error(err)
		}
	})
}

func TestTrees(t *testing.T) {
	p, all := tasks(
		client.DesiredModel{Name: "a", Tier: client.TierDisk}, client.DesiredModel{Name: "b", Priority: 5, Tier: client.TierMemory},
		client.DesiredModel{Name: "c"}, client.DesiredModel{Name: "d", Priority: 7},
	)
	for _, t := range all[:3] {
		t.tree = "/models/" + t.model.Name
	}
	for _, everything := range []bool{false, true} {
		p.cfg.AllInMemory = everything
		var dirs []string
		for _, tree := range p.trees() {
			dirs = append(dirs, tree.Dir)
			if tree.Keep != (everything || tree.Name == "b") {
				t.Errorf("all in memory %t: %+v", everything, tree)
			}
		}
		if want := []string{"/models/b", "/models/a", "/models/c"}; !slices.Equal(dirs, want) {
			t.Errorf("the order is %v, want %v", dirs, want)
		}
	}
}

// TestPreloadWaits shows that nothing of a preload is read while a pod waits for another model.
func TestPreloadWaits(t *testing.T) {
	r := newRegion(t)
	preload, wanted := r.push("preload", modelFiles(1)), r.push("wanted", modelFiles(2))
	gate := make(chan struct{})
	held := make(chan struct{}, 64)
	r.setFault(func(req *http.Request) registryserver.Fault {
		for _, l := range wanted.Layers {
			if blobOf(req) == l.Digest.String() {
				select {
				case held <- struct{}{}:
				default:
				}
				return registryserver.Fault{Wait: gate}
			}
		}
		return registryserver.Fault{}
	})
	d := client.Desired{Models: []client.DesiredModel{r.desired("preload"), r.desired("wanted")}}
	d.Models[1].Priority = 10
	if err := r.control.SetDesired(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	n := r.newNode()
	<-held
	until(t, func() string {
		if m := n.model("preload"); m.State != StateFetching {
			return "the preload is " + m.State
		}
		return ""
	})
	for _, l := range preload.Layers {
		if sent := r.upstream.Sent(l.Digest); sent != 0 {
			t.Errorf("the registry sent %d bytes of the preload's layer %s", sent, l.Digest)
		}
	}
	close(gate)
	n.reach("wanted", StateReady)
	n.reach("preload", StateReady)
	n.checkTree("wanted", modelFiles(2))
	n.checkTree("preload", modelFiles(1))
}
