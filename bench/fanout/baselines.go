package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sync/errgroup"
)

// baselines measures what the links carry without Shoal: all nodes read from the registry, and each
// node reads from the one before it.
func (b *benchRun) baselines(ctx context.Context) (out []baseline, err error) {
	b.two = false
	bed, err := newBed(ctx, b.flags.logs)
	if err != nil {
		return nil, err
	}
	r, err := b.newRegion(ctx, bed, b.flags.rate, b.flags.rate)
	if r != nil {
		defer func() { err = errors.Join(err, r.stop(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return nil, err
	}
	if err := r.push(ctx); err != nil {
		return nil, err
	}
	for range b.flags.nodes {
		if _, err := r.addHost(ctx, "a", b.flags.rate); err != nil {
			return nil, err
		}
	}
	bound, err := r.alone(ctx, r.nodes[0])
	if err != nil {
		return nil, err
	}
	all := make([]got, b.flags.nodes)
	each := func(name string, args func(i int) []string) error {
		group, ctx := errgroup.WithContext(ctx)
		for i, n := range r.nodes {
			group.Go(func() error { return n.host.Output(ctx, &all[i], append([]string{b.self}, args(i)...)...) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		last := slices.MaxFunc(all, func(a, b got) int { return int(1e6 * (a.Seconds - b.Seconds)) }).Seconds
		out = append(out, baseline{name, b.flags.nodes, last, last / bound})
		return nil
	}
	err = each("every node from the registry", func(i int) []string {
		dir := filepath.Join(r.dir, "pull", strconv.Itoa(i))
		_ = os.MkdirAll(dir, 0o755) // get says what is wrong with it
		return []string{"get", r.reference("one"), dir}
	})
	if err != nil {
		return nil, err
	}
	for _, n := range r.nodes {
		p, err := n.host.StartTool(ctx, "pour", b.self, "pour", n.host.ip+":7000")
		if err != nil {
			return nil, err
		}
		defer p.Kill()
	}
	err = each("a ring, no checks and no disk", func(i int) []string {
		from := r.nodes[(i+1)%len(r.nodes)]
		return []string{"drain", from.host.ip + ":7000", strconv.FormatInt(b.size, 10)}
	})
	return out, err
}
