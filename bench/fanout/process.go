package main

import (
	"context"

	"github.com/shoal-project/shoal/bench/internal/program"
)

// process is a program that runs on a host.
type process struct {
	*program.Program
	host *host
}

// start runs a program and waits until it listens for what and for its admin.
func (h *host) start(ctx context.Context, what string, args ...string) (*process, error) {
	p, err := h.Start(ctx, what, args...)
	if err != nil {
		return nil, err
	}
	return &process{p, h}, nil
}
