package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// startTrace writes how many bytes the links of registry, mirror and nodes have carried, ten times a second
// until stop is called.
func (r *region) startTrace(ctx context.Context) (stop func() error, err error) {
	if r.run.flags.trace == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(r.run.flags.trace)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.traceTo(ctx, f) }()
	return func() error {
		cancel()
		return errors.Join(<-done, f.Close())
	}, nil
}

func (r *region) traceTo(ctx context.Context, f *os.File) error {
	out := bufio.NewWriter(f)
	hosts := []*host{r.registry.host, r.mirror.host}
	for _, n := range r.nodes {
		hosts = append(hosts, n.host)
	}
	fmt.Fprint(out, "seconds")
	for _, h := range hosts {
		fmt.Fprintf(out, ",%s up,%s down", h.name, h.name)
	}
	fmt.Fprintln(out)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	begin := time.Now()
	for {
		fmt.Fprintf(out, "%.3f", time.Since(begin).Seconds())
		for _, h := range hosts {
			up, err1 := counter(h.port, "rx_bytes")
			down, err2 := counter(h.port, "tx_bytes")
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			fmt.Fprintf(out, ",%d,%d", up, down)
		}
		fmt.Fprintln(out)
		select {
		case <-ctx.Done():
			return out.Flush()
		case <-tick.C:
		}
	}
}
