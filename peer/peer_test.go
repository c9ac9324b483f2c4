package peer

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

func TestNewChecks(t *testing.T) {
	s := newStore(t, t.TempDir())
	bt := newSwarm(t, 0, nil)
	defer func() {
		if err := bt.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	models := []client.DesiredModel{{Name: "m", Reference: "r/m:1"}}
	for name, c := range map[string]struct {
		cfg  Config
		want string // in the error; "" for success
	}{
		"no name":   {Config{Store: s, Swarm: bt, Models: models}, "no name"},
		"no store":  {Config{Name: "n", Swarm: bt, Models: models}, "store and swarm"},
		"no swarm":  {Config{Name: "n", Store: s, Models: models}, "store and swarm"},
		"no models": {Config{Name: "n", Store: s, Swarm: bt}, "without a tracker"},
		"no more":   {Config{Name: "n", Store: s, Swarm: bt, Models: models}, ""},
	} {
		_, err := New(c.cfg)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// checkSent compares what the registry sent of the layers with one copy.
func (r *region) checkSent(image *model.Image) {
	r.t.Helper()
	for _, l := range image.Layers {
		if sent := r.upstream.Sent(l.Digest); sent != l.Size {
			r.t.Errorf("the registry sent %d bytes of layer %s, it has %d", sent, l.Digest, l.Size)
		}
	}
}

func TestTwoNodesOneCopy(t *testing.T) {
	r := newRegion(t)
	files := modelFiles(1)
	image := r.push("v1", files)
	r.desire("v1")
	metrics := prometheus.NewRegistry()
	first := r.newNode(func(c *Config) { c.Registerer = metrics })
	m := first.reach("v1", StateReady)
	if m.Bytes != image.Size() || m.Total != image.Size() || m.OriginBytes != image.Size() || m.PeerBytes != 0 || m.WastedBytes != 0 || m.Error != "" {
		t.Errorf("the first node says %+v of %d bytes", m, image.Size())
	}
	second := r.newNode()
	m = second.reach("v1", StateReady)
	if m.Bytes != image.Size() || m.OriginBytes != 0 || m.PeerBytes != image.Size() {
		t.Errorf("the second node says %+v of %d bytes", m, image.Size())
	}
	first.checkTree("v1", files)
	second.checkTree("v1", files)
	r.checkSent(image)
	until(t, func() string {
		all, err := r.control.Progress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range all {
			if len(p.Models) != 1 || p.Models[0].State != StateReady || p.Models[0].Bytes != image.Size() {
				return fmt.Sprintf("the tracker knows %+v", p)
			}
		}
		if len(all) != 2 {
			return fmt.Sprintf("the tracker knows %d nodes", len(all))
		}
		return ""
	})
	if got := first.Inventory(); len(got) != len(image.Layers) {
		t.Errorf("the first node is in the swarms %v", got)
	}
	want := map[string]float64{
		"shoal_peer_origin_bytes_total": float64(image.Size()), "shoal_peer_received_bytes_total": 0,
		"shoal_peer_sent_bytes_total": float64(image.Size()), "shoal_peer_models": 1,
	}
	for name, sum := range gather(t, metrics) {
		if w, ok := want[name]; ok && sum != w {
			t.Errorf("%s is %v, want %v", name, sum, w)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("there are no metrics %v", want)
	}
}

// gather returns each metric's sum over its labels.
func gather(t *testing.T, from prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return out
}

// TestStoppedInTheMiddle shows that what was held is not read again.
func TestStoppedInTheMiddle(t *testing.T) {
	r := newRegion(t)
	files := modelFiles(1)
	image := r.push("v1", files)
	var asked atomic.Int32
	r.setFault(func(req *http.Request) registryserver.Fault {
		if req.Header.Get("Range") != "" && asked.Add(1) > 3 {
			return registryserver.Fault{Wait: make(chan struct{})}
		}
		return registryserver.Fault{}
	})
	r.desire("v1")
	n := r.newNode()
	until(t, func() string {
		if m := n.model("v1"); m.Bytes == 0 {
			return fmt.Sprintf("%+v", m)
		}
		return ""
	})
	n.stop()
	r.setFault(nil)
	held := func() (sum int64) {
		s := newStore(t, n.dir)
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}()
		for _, spec := range (&content{Model: image}).specs() {
			b, err := s.OpenBlob(t.Context(), spec.Key())
			if err != nil {
				continue // it was not begun
			}
			sum += b.Held()
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		return sum
	}()
	if held == 0 || held == image.Size() {
		t.Fatalf("it held %d bytes of %d: the test shows nothing", held, image.Size())
	}
	n.start()
	if m := n.reach("v1", StateReady); m.OriginBytes != image.Size()-held {
		t.Errorf("%d bytes were read again: %+v", m.OriginBytes-(image.Size()-held), m)
	}
	n.checkTree("v1", files)
}

// TestNobodyAnswersAfterRestart shows that a node serves what it has from memory.
func TestNobodyAnswersAfterRestart(t *testing.T) {
	r := newRegion(t)
	files := modelFiles(1)
	image := r.push("v1", files)
	r.desire("v1")
	n := r.newNode()
	n.reach("v1", StateReady)
	n.stop()
	r.setTrackerDown(true)
	r.setFault(upstreamDown)
	n.start()
	if m := n.reach("v1", StateReady); m.OriginBytes != 0 || m.Bytes != image.Size() {
		t.Errorf("after the restart: %+v", m)
	}
	n.checkTree("v1", files)
	r.checkSent(image)
}

func TestFailingReferenceRecovers(t *testing.T) {
	r := newRegion(t)
	good := modelFiles(1)
	r.push("good", good)
	r.desire("good", "late")
	n := r.newNode()
	n.reach("good", StateReady)
	m := n.reach("late", StateFailed)
	if !strings.Contains(m.Error, r.reference("late")) || !strings.Contains(m.Error, "not found") {
		t.Errorf("the error is %q", m.Error)
	}
	late := modelFiles(2)
	r.push("late", late)
	if m = n.reach("late", StateReady); m.Error != "" {
		t.Errorf("it is ready with the error %q", m.Error)
	}
	n.checkTree("good", good)
	n.checkTree("late", late)
}

func TestReferencesThatNeverWork(t *testing.T) {
	r := newRegion(t)
	n := r.newNode(func(c *Config) {
		c.Tracker = nil
		c.Models = []client.DesiredModel{
			{Name: "odd", Reference: "::"}, {Name: "elsewhere", Reference: "registry.example.com/a:b"},
		}
	})
	for name, want := range map[string]string{"odd": "image reference", "elsewhere": "neither a mirror nor an upstream"} {
		if m := n.reach(name, StateFailed); !strings.Contains(m.Error, want) {
			t.Errorf("%s fails with %q, want %q", name, m.Error, want)
		}
	}
}
