package main

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// startProfiles profiles a few processes for the next seconds; wait returns when that is done.
func (r *region) startProfiles(ctx context.Context) (wait func() error) {
	var group errgroup.Group
	if r.run.flags.profiles != "" {
		profiled := []*process{r.mirror, r.tracker}
		for _, n := range r.nodes {
			profiled = append(profiled, n.process)
		}
		for _, p := range profiled {
			group.Go(func() error {
				raw, err := p.Get(ctx, "/debug/pprof/profile?seconds=5")
				if err != nil {
					return err
				}
				if err := os.MkdirAll(r.run.flags.profiles, 0o755); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(r.run.flags.profiles, p.host.name+".pprof"), raw, 0o644)
			})
		}
	}
	return group.Wait
}
