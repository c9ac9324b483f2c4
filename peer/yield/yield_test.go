package yield

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/time/rate"
)

// fakePods is a Source whose pods stall as set.
type fakePods struct {
	mu     sync.Mutex
	stalls Stalls
	err    error
}

func (p *fakePods) set(s Stalls, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalls, p.err = s, err
}

func (p *fakePods) Stalls(time.Duration) (Stalls, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stalls, p.err
}

// runGovernor runs one beside a transfer of 100 MiB/s that obeys no limit.
func runGovernor(t *testing.T, cfg Config) (*Governor, context.CancelFunc) {
	t.Helper()
	var moved atomic.Int64
	cfg.Moved = func() (int64, int64) { return moved.Add(25 * mib), 0 } // a call a period
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	return g, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func TestGovernorSlowsAndFrees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := &fakePods{}
		g, stop := runGovernor(t, Config{Source: pods, MaxUpload: 10 * mib})
		time.Sleep(5*time.Second + DefaultEvery/2) // from here on always between two looks
		if p := g.Pressure(); p.Slowed || p.String() != "not slowed" {
			t.Errorf("without stalls: %+v", p)
		}
		pods.set(Stalls{CPU: 0.4}, nil)
		time.Sleep(DefaultEvery)
		pods.set(Stalls{}, nil) // during the look: they were ours
		time.Sleep(5 * DefaultEvery)
		p := g.Pressure()
		if !p.Slowed || p.Cause != CPU || !strings.HasPrefix(p.String(), "slowed to ") || !strings.HasSuffix(p.String(), " of the time on cpu") {
			t.Errorf("%+v: %s", p, p)
		}
		if l := g.Download().Limit(); l >= 100*mib || l < DefaultFloor {
			t.Errorf("the download is limited to %.0f bytes/s", l)
		}
		if l := g.Upload().Limit(); l > 10*mib {
			t.Errorf("the upload is limited to %.0f bytes/s, not to the configured 10 MiB/s", l)
		}
		pods.set(Stalls{}, ErrNoPressure) // the pods are gone
		time.Sleep(time.Second)
		if p := g.Pressure(); !p.Blind || !strings.Contains(p.String(), "nothing tells") {
			t.Errorf("blind: %+v: %s", p, p)
		}
		stop()
		if l := g.Download().Limit(); l != Unlimited {
			t.Errorf("after Run the download is limited to %.0f bytes/s", l)
		}
	})
}

func TestDisabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := &fakePods{}
		pods.set(Stalls{CPU: 1}, nil)
		g, stop := runGovernor(t, Config{Source: pods, Disable: true, MaxDownload: 3 * mib})
		time.Sleep(time.Minute)
		if l := g.Download().Limit(); l != 3*mib {
			t.Errorf("limit %v", l)
		}
		if p := g.Pressure(); !p.Disabled || p.String() != "not yielding: switched off" {
			t.Errorf("%+v: %s", p, p)
		}
		stop()
	})
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, err := New(Config{Disable: true, MaxDownload: 2 * mib})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := g.WaitDownload(t.Context(), 9*mib); err != nil {
			t.Fatal(err)
		}
		// The burst is free.
		if took := time.Since(began); took < 3900*time.Millisecond || took > 4*time.Second {
			t.Errorf("9 MiB at 2 MiB/s took %v", took)
		}
		if n := g.moved(); n[download] != 9*mib || n[upload] != 0 {
			t.Errorf("counted %v", n)
		}
		if err := g.WaitUpload(t.Context(), 1<<30); err != nil || time.Since(began) > 4*time.Second+10*time.Millisecond {
			t.Errorf("no limit, and it took %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Background(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if err := g.WaitDownload(ctx, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled, of nothing: %v", err)
		}
	})
}

// TestNeverInf: the package comment says what a limit of rate.Inf would let a peer do.
func TestNeverInf(t *testing.T) {
	for _, n := range []int64{0, 1, Unlimited, math.MaxInt64} {
		g, err := New(Config{Disable: true, MaxDownload: n, MaxUpload: n})
		if err != nil {
			t.Fatal(err)
		}
		if g.Download().Limit() == rate.Inf || g.Upload().Limit() == rate.Inf {
			t.Errorf("limit %d: %v, %v", n, g.Download().Limit(), g.Upload().Limit())
		}
	}
}

func TestConfig(t *testing.T) {
	for want, cfg := range map[string]Config{
		"0 means none":              {MaxUpload: -1},
		"period is negative":        {Every: -1},
		"target for memory is 1.5":  {Targets: Stalls{Memory: 1.5}},
		"target for io is NaN":      {Targets: Stalls{IO: math.NaN()}},
		"has to be a cgroup of the": {YieldTo: []string{t.TempDir()}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one with %q", cfg, err, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	if _, err := New(Config{Disable: true, MaxUpload: 5, Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	if got["shoal_yield_limit_bytes_per_second upload"] != 5 || !math.IsInf(got["shoal_yield_limit_bytes_per_second download"], 1) {
		t.Errorf("%v", got)
	}
	if _, ok := got["shoal_yield_pressure_ratio io"]; !ok {
		t.Errorf("%v", got)
	}
}

func TestMain(m *testing.M) {
	if beLowered() {
		return
	}
	goleak.VerifyTestMain(m)
}
