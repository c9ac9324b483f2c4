package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/mirror"
	"github.com/shoal-project/shoal/tracker/client"
)

type mirrorFlags struct {
	daemon
	dir       string
	upstreams []string
	file      string // more upstreams
	tracker   string
	quota     string
	keepFree  string
	parallel  int
	tagTTL    time.Duration
}

func mirrorCommand() *cobra.Command {
	f := mirrorFlags{daemon: daemon{name: "mirror"}}
	cmd := &cobra.Command{
		Use:   "mirror",
		Short: "Run a region's registry mirror: reads each byte from upstream once, serves it as it arrives",
		Long: `Run a region's registry mirror. Only the registries of --upstream and --upstreams are reached through it. However
many nodes ask for a blob, it is read from upstream once, verified, and kept.`,
		Example: "  shoal mirror --dir /var/lib/shoal --upstream registry.example.com --certs /etc/shoal/certs",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runMirror(cmd.Context(), &f) },
	}
	cmd.Flags().StringVar(&f.dir, "dir", "", "folder for blobs and manifests (required)")
	cmd.Flags().StringArrayVar(&f.upstreams, "upstream", nil, upstreamHelp)
	cmd.Flags().StringVar(&f.file, "upstreams", "", upstreamFileHelp)
	cmd.Flags().StringVar(&f.tracker, "tracker", "", "address of the region's tracker: the blobs of the models that it names as desired are kept, over the quota's order")
	cmd.Flags().StringVar(&f.quota, "quota", "0", "bytes that blobs may take, such as 500GiB; 0 is what fits")
	cmd.Flags().StringVar(&f.keepFree, "keep-free", "1GiB", "bytes of the file system that stay free")
	cmd.Flags().IntVar(&f.parallel, "parallel", 0, "ranges of one blob that are read at once, where more make it faster, at most (0: a good default)")
	cmd.Flags().DurationVar(&f.tagTTL, "tag-ttl", 30*time.Second, "for how long a tag is believed without asking upstream")
	f.register(cmd, "127.0.0.1:7071")
	return cmd
}

func runMirror(ctx context.Context, f *mirrorFlags) error {
	cfg := mirror.Config{
		Dir: f.dir, Parallel: f.parallel, TagTTL: f.tagTTL,
		Identify: f.identify(), Registerer: f.metrics, Logger: f.log,
	}
	ups, err := parseUpstreams(f.upstreams)
	if err != nil {
		return err
	}
	for _, u := range ups {
		cfg.Upstreams = append(cfg.Upstreams, mirror.Upstream{Name: u.name, Registry: u.host, PlainHTTP: u.plainHTTP})
	}
	if f.file != "" {
		more, logins, err := readUpstreams(f.file, f.metrics)
		if err != nil {
			return err
		}
		defer func() {
			for _, l := range logins {
				l.Close()
			}
		}()
		cfg.Upstreams = append(cfg.Upstreams, more...)
	}
	if len(cfg.Upstreams) == 0 || f.dir == "" {
		return errors.New("--dir and at least one --upstream, or --upstreams, are needed")
	}
	if cfg.Quota, err = bytesFlag("quota", f.quota); err != nil {
		return err
	}
	if cfg.KeepFree, err = bytesFlag("keep-free", f.keepFree); err != nil {
		return err
	}
	if f.tracker != "" {
		track, err := client.New(client.Config{URL: f.tracker, TLS: f.client(certs.Tracker)})
		if err != nil {
			return err
		}
		defer track.Close()
		cfg.Tracker = track
	}
	m, err := mirror.New(cfg) //nolint:contextcheck // Run gets it
	if err != nil {
		return err
	}
	l, err := f.bind(ctx, "mirror", f.listen)
	if err != nil {
		return errors.Join(err, m.Close())
	}
	err = stages(ctx, m.Run, func(ctx context.Context) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return f.serveAdmin(ctx, nil) })
		group.Go(func() error {
			return f.serve(ctx, l, f.server(certs.Node, certs.Mirror, certs.Controller, certs.Client), m.Handler())
		})
		return group.Wait()
	})
	return errors.Join(err, m.Close())
}

func bytesFlag(name, value string) (int64, error) {
	n, err := units.RAMInBytes(value)
	if err != nil {
		return 0, fmt.Errorf("--%s: %w", name, err)
	}
	return n, nil
}
