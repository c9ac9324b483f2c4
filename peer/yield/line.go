package yield

import "time"

// place is where this process's threads stand in the line for a CPU.
type place int

const (
	// placeNice is nice 10: about a ninth of the time of a serving thread that wants the same CPU. A
	// serving thread that wakes up waits until our turn ends, about 3 ms (EEVDF's base slice): as long
	// as many a request lasts.
	placeNice place = iota
	// placeLast is SCHED_IDLE (sched(7)): a serving thread that wakes up goes first at once, and what
	// is left when all of them sleep is ours. Where they never sleep, that is a 340th of a CPU.
	placeLast
)

const (
	// A loop that is called lateFactor times more seldom than it asked to be, in the mean of about
	// 1/lateWeight calls, has no CPU left.
	lateFactor, lateWeight = 2, 0.25
	// lastAgain is the time after which a process that found nothing left tries again.
	lastAgain = time.Minute
)

// line keeps the process last in line as long as something is left there.
type line struct {
	place place
	every time.Duration // between two steps, as asked for
	mean  time.Duration // between two steps, as they came
	wait  time.Duration // until leaving placeNice
}

func newLine(every time.Duration) *line { return &line{place: placeLast, every: every, mean: every} }

// step returns where to stand, elapsed after the last step.
func (l *line) step(elapsed time.Duration) place {
	switch l.place {
	case placeLast:
		l.mean += time.Duration(lateWeight * float64(elapsed-l.mean))
		if l.mean > lateFactor*l.every {
			l.place, l.wait = placeNice, lastAgain
		}
	case placeNice:
		if l.wait -= elapsed; l.wait <= 0 {
			l.place, l.mean = placeLast, l.every
		}
	}
	return l.place
}
