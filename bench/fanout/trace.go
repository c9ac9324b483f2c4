package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// startTrace writes what the links of registry, mirror and nodes carry until stop is called.
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
	const every = 100 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	begin, at := time.Now(), time.Now()
	last := make([]int64, 2*len(hosts))
	for first := true; ; first = false {
		now := make([]int64, 0, len(last))
		for _, h := range hosts {
			up, err1 := counter(h.port, "rx_bytes")
			down, err2 := counter(h.port, "tx_bytes")
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			now = append(now, up, down)
		}
		t := time.Now()
		if !first {
			fmt.Fprintf(out, "%.2f", t.Sub(begin).Seconds())
			for i := range now {
				fmt.Fprintf(out, ",%.1f", float64(now[i]-last[i])/1e6/t.Sub(at).Seconds())
			}
			fmt.Fprintln(out)
		}
		last, at = now, t
		select {
		case <-ctx.Done():
			return out.Flush()
		case <-tick.C:
		}
	}
}
