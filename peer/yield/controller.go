package yield

import "time"

// direction is one of the limits that move together.
type direction int

const (
	download direction = iota
	upload
	background
	directions
)

// rates are bytes a second by direction.
type rates [directions]float64

func (r rates) sum() (sum float64) {
	for _, v := range r {
		sum += v
	}
	return sum
}

const (
	// memory of recent rates in samples: a rate is the highest of a second, so that a pause
	// between two pieces is not taken for all that the transfer can do.
	recentSamples = 4
	// lookShare is what a look lets through. Not nothing: connections that wait for a token sleep
	// as long as the limit said when they asked, and would oversleep the end of the look.
	lookShare = 1. / 8
	// lookSettle samples pass before lookSamples are counted: what was in flight still arrives.
	lookSettle, lookSamples = 1, 3
	// relookAfter is the time between looks while the base matters: a look costs most of a
	// second's transfer, 3 % of half a minute.
	relookAfter = 30 * time.Second
	// relookSoon is the time after which a rate that fell to a quarter since the last look may be
	// looked at again: it seems that the pods' own stalls grew.
	relookSoon = 5 * time.Second
	// maxBase leaves something to measure above it. Pods that stall nearly always hide what the
	// transfer adds, and then get the benefit of the doubt.
	maxBase = 0.9
	// smooth is the weight of a new sample in the smoothed stalls; a single one of 250 ms holds
	// few waits. spike is the load that is acted upon at once.
	smooth, spike = 0.5, 3
	// raiseBelow leaves a band below the target where the limit rests.
	raiseBelow = 0.7
	// quietFloors times the floor in all directions together is next to nothing.
	quietFloors = 1.2 * float64(directions)
	// openAfter calm time with a limit that nothing uses, limits are taken away.
	openAfter = 10 * time.Second
)

type phase int

const (
	phaseOpen phase = iota // no limit but the configured ones
	phaseLook              // a short while of little transfer, to learn the pods' own stalls
	phaseHeld              // limits that follow the pressure
)

// sample is what was seen in one period.
type sample struct {
	elapsed time.Duration
	stalls  Stalls
	moved   rates // bytes a second
}

// controller is the arithmetic of a Governor: no clock, no files, not for concurrent use.
type controller struct {
	targets Stalls
	max     rates // Unlimited where there is none
	floor   float64

	phase    phase
	limits   rates
	smoothed Stalls
	base     Stalls
	recent   [recentSamples]rates
	next     int // in recent

	before    Stalls // smoothed stalls at the start of the look
	resume    rates  // limits of the time before the look, at most the measured rates
	wasOpen   bool   // the look began without limits
	looked    int    // samples of this look so far
	sum       Stalls // over the counted ones
	sinceLook time.Duration
	known     bool  // there was a look
	lookedAt  rates // limits after the last look
	knee      rates // the rates that last caused stalls
	calm      time.Duration
	cause     Resource
}

func newController(targets Stalls, limit rates, floor float64) *controller {
	return &controller{targets: targets, max: limit, floor: floor, limits: limit, knee: limit}
}

// step takes one sample in and returns the limits for the next period.
func (c *controller) step(s sample) rates {
	for i := range c.smoothed {
		c.smoothed[i] += smooth * (s.stalls[i] - c.smoothed[i])
	}
	c.sinceLook += s.elapsed
	if c.phase == phaseLook {
		c.look(s)
		return c.limits
	}
	c.recent[c.next] = s.moved
	c.next = (c.next + 1) % recentSamples
	quiet := c.measured().sum() <= quietFloors*c.floor
	c.learn(s.stalls, quiet)

	load, cause := c.load(c.smoothed)
	if raw, rawCause := c.load(s.stalls); raw > spike && raw > load {
		load, cause = raw, rawCause
	}
	switch {
	case load > 1:
		c.calm = 0
		c.cause = cause
		c.press(load, quiet)
	case !quiet && c.baseMatters() && c.sinceLook > relookAfter:
		c.startLook()
	case c.phase == phaseHeld && load < raiseBelow:
		c.calm += s.elapsed
		c.raise(s.elapsed)
	}
	return c.limits
}

// press answers stalls above the target.
func (c *controller) press(load float64, quiet bool) {
	if c.phase == phaseOpen {
		switch {
		case quiet: // nothing is moved, so nothing is to be slowed; learn does the rest
		case !c.known || c.sinceLook > relookAfter:
			c.startLook()
		default:
			c.limits = c.capped()
			c.phase = phaseHeld
			c.lookedAt = c.limits
			c.lower(load)
		}
		return
	}
	fell := c.limits.sum() < c.lookedAt.sum()/4
	if !quiet && (c.sinceLook > relookAfter || fell && c.sinceLook > relookSoon) {
		c.startLook()
		return
	}
	c.lower(load)
}

// load is the worst excess over the base in units of the target: above 1 is too much. The excess
// is taken from the time that the pods have left, so that the same share of it counts the same
// beside pods that stall a lot on their own.
func (c *controller) load(stalls Stalls) (load float64, cause Resource) {
	for i := range stalls {
		if excess := (stalls[i] - c.base[i]) / ((1 - c.base[i]) * c.targets[i]); excess > load {
			load, cause = excess, Resource(i)
		}
	}
	return load, cause
}

// learn moves the base. While next to nothing is transferred, stalls are the pods' own; while
// something is, they cannot be less than what is seen.
func (c *controller) learn(stalls Stalls, quiet bool) {
	for i := range c.base {
		if quiet || c.smoothed[i] < c.base[i] {
			c.base[i] = min(c.base[i]+0.1*(stalls[i]-c.base[i]), maxBase)
		}
	}
}

func (c *controller) baseMatters() bool {
	for i := range c.base {
		if c.base[i] > c.targets[i] {
			return true
		}
	}
	return false
}

// measured returns the highest rates of the last second.
func (c *controller) measured() (r rates) {
	for _, m := range c.recent {
		for d := range r {
			r[d] = max(r[d], m[d])
		}
	}
	return r
}

// capped returns the limits, cut to what is really moved: lowering a limit far above that changes
// nothing.
func (c *controller) capped() rates {
	r := c.measured()
	for d := range r {
		r[d] = min(c.limits[d], max(r[d], c.least(direction(d))))
	}
	return r
}

// least is a direction's floor, which a smaller configured limit undercuts.
func (c *controller) least(d direction) float64 { return min(c.floor, c.max[d]) }

func (c *controller) startLook() {
	c.wasOpen = c.phase == phaseOpen
	c.before, c.resume = c.smoothed, c.capped()
	c.phase, c.looked, c.sum = phaseLook, 0, Stalls{}
	for d := range c.limits {
		c.limits[d] = max(c.resume[d]*lookShare, c.least(direction(d)))
	}
}

// look counts a sample of a look, and decides after the last one.
func (c *controller) look(s sample) {
	c.looked++
	if c.looked <= lookSettle {
		return
	}
	for i := range c.sum {
		c.sum[i] += s.stalls[i]
	}
	if c.looked < lookSettle+lookSamples {
		return
	}
	c.known, c.sinceLook = true, 0
	for i := range c.base {
		seen := c.sum[i] / lookSamples
		// What little was let through still had its part, taken as in proportion to the rate.
		ours := max(0, c.before[i]-seen) * lookShare / (1 - lookShare)
		c.base[i] = min(max(0, seen-ours), maxBase)
	}
	c.limits, c.lookedAt = c.resume, c.resume
	c.phase = phaseHeld
	load, cause := c.load(c.before)
	c.smoothed = c.base // the old samples are judged
	switch {
	case load > 1:
		c.cause = cause
		c.lower(load)
	case c.wasOpen:
		c.open()
	}
}

// lower cuts the limits: a little at a little excess, to a half at three times the target.
func (c *controller) lower(load float64) {
	factor := max(0.5, 1-(load-1)/4)
	from := c.capped()
	for d := range from {
		f := factor
		if direction(d) == background {
			f *= f // nobody waits for it
		}
		if from[d] > quietFloors*c.floor { // else it did not cause them
			c.knee[d] = from[d]
		}
		c.limits[d] = max(from[d]*f, c.least(direction(d)))
	}
}

// raise lets the limits grow: by half in a second while far from the rate that caused stalls, by
// 4 % in a second near it, by a fifth in a second beyond it.
func (c *controller) raise(elapsed time.Duration) {
	measured := c.measured()
	unused := true
	for d := range c.limits {
		growth := 0.2
		switch near := c.limits[d] / c.knee[d]; {
		case near < 0.85:
			growth = 0.5
		case near < 1.1:
			growth = 0.04
		}
		if direction(d) == background {
			growth /= 2
		}
		// A stall of the governor itself must not become a leap.
		seconds := min(elapsed.Seconds(), 1)
		c.limits[d] = min(c.limits[d]*(1+growth*seconds), c.max[d])
		unused = unused && (c.limits[d] >= c.max[d] || c.limits[d] > 2*measured[d])
	}
	if unused && c.calm >= openAfter {
		c.open()
	}
}

func (c *controller) open() {
	c.phase, c.limits, c.calm = phaseOpen, c.max, 0
}
