//go:build !linux

package yield

import (
	"context"
	"errors"
	"time"
)

type canary struct{}

func newCanary() *canary { return new(canary) }

// Run implements the canary where the scheduler does not tell its delays.
func (*canary) Run(context.Context) error {
	return errors.New("canary: only Linux tells how long a thread waited for a CPU")
}

// Stalls implements Source.
func (*canary) Stalls(time.Duration) (Stalls, error) { return Stalls{}, ErrNoPressure }

func (*canary) thread() int { return 0 }

func (*canary) rest() {}
