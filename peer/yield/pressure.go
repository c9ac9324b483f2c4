package yield

import (
	"fmt"

	units "github.com/docker/go-units"
)

// Who told of the stalls.
const (
	witnessPods   = "the pods stall"
	witnessCanary = "a serving thread would wait"
)

// Limits are bytes a second; Unlimited means none.
type Limits struct{ Download, Upload, Background int64 }

func (r rates) limits() Limits {
	return Limits{int64(r[download]), int64(r[upload]), int64(r[background])}
}

// Pressure is the state of a Governor after its last sample.
type Pressure struct {
	// Disabled: the back-off is switched off. Blind: nothing can be measured.
	Disabled, Blind bool
	// Slowed means that Limits are below the configured ones for the pods' sake, and Cause is
	// the resource that caused it last.
	Slowed bool
	Cause  Resource
	// Stalls are the shares of time, smoothed over about two samples, and Own the part of them
	// that is there without a transfer.
	Stalls, Own Stalls
	Limits      Limits
	// Witness says in words who stalls.
	Witness string
}

// String returns the state as a sentence for people.
func (p Pressure) String() string {
	switch {
	case p.Disabled:
		return "not yielding: switched off"
	case p.Blind:
		return "not yielding: nothing tells how much the pods stall"
	case !p.Slowed:
		return "not slowed"
	}
	s := fmt.Sprintf("slowed to %s down, %s up: %s %.0f %% of the time on %s",
		speed(p.Limits.Download), speed(p.Limits.Upload), p.Witness, 100*p.Stalls[p.Cause], p.Cause)
	if own := p.Own[p.Cause]; own >= 0.01 {
		s += fmt.Sprintf(" (%.0f %% without a transfer)", 100*own)
	}
	return s
}

func speed(n int64) string {
	if n >= Unlimited {
		return "unlimited"
	}
	return units.CustomSize("%.3g %s/s", float64(n), 1024, []string{"B", "KiB", "MiB", "GiB"})
}

// Pressure returns the state after the last sample.
func (g *Governor) Pressure() Pressure {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}
