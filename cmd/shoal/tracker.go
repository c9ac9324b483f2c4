package main

import (
	"context"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/tracker"
)

func trackerCommand() *cobra.Command {
	d := daemon{name: "tracker"}
	cmd := &cobra.Command{
		Use:   "tracker",
		Short: "Run a region's tracker: who holds what, who fetches what, who should hold what",
		Long: `Run a region's tracker. It keeps everything in memory: nodes and controller repeat what it has to
know, so it may be restarted at any time.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runTracker(cmd.Context(), &d) },
	}
	d.register(cmd, "127.0.0.1:7070")
	return cmd
}

func runTracker(ctx context.Context, d *daemon) error {
	server, err := tracker.New(tracker.Config{Identify: d.identify(), Registerer: d.metrics, Logger: d.log})
	if err != nil {
		return err
	}
	l, err := d.bind(ctx, "tracker", d.listen)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.serveAdmin(ctx, nil) })
	// Run ends the long-polls, which would hold up the draining: so it ends first.
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error {
		return d.serve(ctx, l, d.server(certs.Node, certs.Mirror, certs.Controller, certs.Client), server.Handler())
	})
	return group.Wait()
}
