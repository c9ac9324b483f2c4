package yield

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Resource is what tasks wait for.
type Resource int

// The resources that the kernel accounts pressure for.
const (
	CPU Resource = iota
	IO
	Memory
	resources
)

// String returns the resource's name, the one in /proc/pressure.
func (r Resource) String() string {
	switch r {
	case CPU:
		return "cpu"
	case IO:
		return "io"
	case Memory:
		return "memory"
	}
	return "resource " + strconv.Itoa(int(r))
}

// Stalls are shares of time by Resource, from 0 to 1: in how much of the time at least one task
// was waiting.
type Stalls [resources]float64

// parseTotal returns the "some" total of a pressure file: the time since boot, counted in
// microseconds, in which at least one task was stalled. The averages beside it are ignored: the
// shortest is over ten seconds, and the slowest requests of a pod happen in the first of them.
func parseTotal(b []byte) (time.Duration, error) {
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != "some" {
			continue
		}
		for _, f := range fields[1:] {
			digits, ok := bytes.CutPrefix(f, []byte("total="))
			if !ok {
				continue
			}
			us, err := strconv.ParseInt(string(digits), 10, 64)
			if err != nil || us < 0 || us > int64(1<<63-1)/int64(time.Microsecond) {
				return 0, fmt.Errorf("pressure file: the total %q is no time in microseconds", digits)
			}
			return time.Duration(us) * time.Microsecond, nil
		}
		return 0, errors.New("pressure file: the line \"some\" has no total")
	}
	return 0, errors.New("pressure file: there is no line \"some\"")
}

// parseRunDelay returns the second field of a schedstat file: the nanoseconds that the thread was
// ready to run and had no CPU.
func parseRunDelay(b []byte) (time.Duration, error) {
	fields := bytes.Fields(b)
	if len(fields) != 3 {
		return 0, fmt.Errorf("schedstat: %d fields, not 3", len(fields))
	}
	ns, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil || ns < 0 {
		return 0, fmt.Errorf("schedstat: the wait %q is no time in nanoseconds", fields[1])
	}
	return time.Duration(ns), nil
}
