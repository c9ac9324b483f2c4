package yield

import (
	"testing"
	"time"
)

const mib = 1 << 20

// machine answers a controller as a node would: a transfer that asks for as much as it may have, and pods
// that stall on their own and more beyond a rate.
type machine struct {
	*controller
	demand float64 // bytes a second of the download
	own    float64 // share of the time that the pods stall without a transfer
	free   float64 // bytes a second that disturb nobody
	full   float64 // bytes a second beyond free at which the pods stall all the time
}

func newMachine(limit rates) *machine {
	return &machine{
		controller: newController(DefaultTargets(), limit, DefaultFloor),
		demand:     500 * mib, free: 100 * mib, full: 500 * mib,
	}
}

func unlimited() rates { return rates{Unlimited, Unlimited, Unlimited} }

// rate is what is downloaded at the moment.
func (m *machine) rate() float64 { return min(m.demand, m.limits[download]) }

func (m *machine) stalls() float64 {
	ours := max(0, m.rate()-m.free) / m.full
	return min(1, m.own+(1-m.own)*ours)
}

// run takes samples for as long as d.
func (m *machine) run(d time.Duration) {
	for range int(d / DefaultEvery) {
		m.step(sample{elapsed: DefaultEvery, stalls: Stalls{CPU: m.stalls()}, moved: rates{download: m.rate()}})
	}
}

// mean returns the mean rate and the mean stalls over d.
func (m *machine) mean(d time.Duration) (speed, stalls float64) {
	n := int(d / DefaultEvery)
	for range n {
		speed += m.rate() / float64(n)
		stalls += m.stalls() / float64(n)
		m.run(DefaultEvery)
	}
	return speed, stalls
}

func TestNobodyStalls(t *testing.T) {
	m := newMachine(rates{200 * mib, Unlimited, Unlimited})
	m.free = 1000 * mib
	m.run(time.Minute)
	if m.phase != phaseOpen || m.limits != m.max {
		t.Errorf("limits %v in phase %d without a stall", m.limits, m.phase)
	}
}

func TestSettlesWherePodsHardlyStall(t *testing.T) {
	m := newMachine(unlimited())
	m.run(15 * time.Second)
	speed, stalls := m.mean(time.Minute)
	target := DefaultTargets()[CPU]
	if stalls > 1.2*target {
		t.Errorf("the pods stall %.3f of the time, the target is %.3f", stalls, target)
	}
	if speed < 0.75*m.free {
		t.Errorf("%.0f MiB/s go through where %.0f disturb nobody", speed/mib, m.free/mib)
	}
	if m.phase == phaseOpen || m.cause != CPU {
		t.Errorf("phase %d, cause %s", m.phase, m.cause)
	}
}

// TestFirstReaction wants most of a transfer that disturbs everybody gone after a second and a half.
func TestFirstReaction(t *testing.T) {
	m := newMachine(unlimited())
	m.run(1500 * time.Millisecond)
	if m.rate() > m.demand/2 {
		t.Errorf("%.0f MiB/s after 1.5 s", m.rate()/mib)
	}
}

// TestOwnStallsDoNotSlow has pods that stall whatever we do.
func TestOwnStallsDoNotSlow(t *testing.T) {
	m := newMachine(unlimited())
	m.own, m.free = 0.3, 1000*mib
	m.run(10 * time.Second)
	speed, _ := m.mean(2 * time.Minute)
	// A look in half a minute costs about 3 %.
	if speed < 0.93*m.demand {
		t.Errorf("%.0f MiB/s beside pods that stall on their own, %.0f could be", speed/mib, m.demand/mib)
	}
	if m.base[CPU] < 0.2 {
		t.Errorf("the pods' own stalls are taken for %.2f", m.base[CPU])
	}
}

// TestBothStall has pods that stall on their own, and more with us.
func TestBothStall(t *testing.T) {
	m := newMachine(unlimited())
	m.own = 0.2
	m.run(15 * time.Second)
	speed, stalls := m.mean(time.Minute)
	if stalls > m.own+0.1 || speed < 0.6*m.free || speed > 2*m.free {
		t.Errorf("%.0f MiB/s, the pods stall %.2f of the time, %.2f without us; %.0f MiB/s disturb nobody",
			speed/mib, stalls, m.own, m.free/mib)
	}
}

func TestNeverBelowTheFloor(t *testing.T) {
	m := newMachine(rates{Unlimited, 100 << 10, Unlimited})
	m.free, m.full = 0, mib
	m.run(time.Minute)
	want := rates{DefaultFloor, 100 << 10, DefaultFloor}
	for d, limit := range m.limits {
		if limit < want[d] {
			t.Errorf("direction %d is limited to %.0f bytes/s, its floor is %.0f", d, limit, want[d])
		}
	}
}

func TestNeverAboveTheConfiguredLimit(t *testing.T) {
	m := newMachine(rates{150 * mib, 20 * mib, Unlimited})
	for range 240 {
		m.run(DefaultEvery)
		if m.limits[download] > m.max[download] || m.limits[upload] > m.max[upload] {
			t.Fatalf("limits %v above %v", m.limits, m.max)
		}
	}
}

func TestBackgroundGivesWayMost(t *testing.T) {
	c := newController(DefaultTargets(), unlimited(), DefaultFloor)
	moved := rates{100 * mib, 100 * mib, 100 * mib}
	for range 40 {
		for d := range moved {
			moved[d] = min(100*mib, c.limits[d])
		}
		stalls := Stalls{}
		if moved.sum() > 60*mib {
			stalls[IO] = 0.3
		}
		c.step(sample{elapsed: DefaultEvery, stalls: stalls, moved: moved})
	}
	if c.limits[background] >= c.limits[download] || c.cause != IO {
		t.Errorf("limits %v, cause %s", c.limits, c.cause)
	}
}

// TestFreeAgain ends the pods' work: the limits go away, not in one leap.
func TestFreeAgain(t *testing.T) {
	m := newMachine(unlimited())
	m.run(20 * time.Second)
	held := m.rate()
	m.free = 1000 * mib
	m.run(time.Second)
	if m.rate() > 2*held {
		t.Errorf("from %.0f to %.0f MiB/s in a second", held/mib, m.rate()/mib)
	}
	m.run(2 * time.Minute)
	if m.phase != phaseOpen || m.limits != m.max {
		t.Errorf("phase %d, limits %v two minutes after the last stall", m.phase, m.limits)
	}
}

// TestQuietNode has stalls, and nothing to slow.
func TestQuietNode(t *testing.T) {
	m := newMachine(unlimited())
	m.demand, m.own = 0, 0.5
	m.run(time.Minute)
	if m.phase != phaseOpen {
		t.Errorf("phase %d on a node that transfers nothing", m.phase)
	}
	if m.base[CPU] < 0.45 {
		t.Errorf("the pods' own stalls are taken for %.2f, they are 0.5", m.base[CPU])
	}
}

// TestStalledGovernor gives a sample that lasted long: it must not become a leap.
func TestStalledGovernor(t *testing.T) {
	m := newMachine(unlimited())
	m.run(20 * time.Second)
	before := m.limits[download]
	m.step(sample{elapsed: time.Hour, moved: rates{download: m.rate()}})
	if m.limits[download] > 1.5*before {
		t.Errorf("from %.0f to %.0f MiB/s in one sample", before/mib, m.limits[download]/mib)
	}
}
