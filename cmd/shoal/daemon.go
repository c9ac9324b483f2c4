package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/internal/certs"
)

// drainTime is how long requests under way may take after SIGTERM.
const drainTime = 10 * time.Second

// daemon holds what mirror, tracker and peer have in common: flags, identity, logs, metrics.
type daemon struct {
	name      string
	listen    string
	admin     string
	certs     string
	plaintext bool
	config    string
	verbose   bool
	pprof     bool

	log     *slog.Logger
	metrics *prometheus.Registry
	gather  prometheus.Gatherer // what /metrics answers; nil: metrics
	bundle  *certs.Bundle       // nil with --plaintext
	status  func() any          // what /status answers; nil: there is none
}

// register gives cmd the flags of one that serves others in the region, and has an identity for that.
func (d *daemon) register(cmd *cobra.Command, listen string) {
	f := cmd.Flags()
	f.StringVar(&d.listen, "listen", listen, "IP:PORT to listen on; port 0 takes a free one, which is logged")
	f.StringVar(&d.certs, "certs", "", "folder with ca.crt, tls.crt and tls.key (shoal certs issue)")
	f.BoolVar(&d.plaintext, "plaintext", false, "speak without TLS and serve everyone: for trials only")
	cmd.MarkFlagsMutuallyExclusive("certs", "plaintext")
	d.registerBasics(cmd)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := d.setup(cmd); err != nil {
			return err
		}
		return d.identity()
	}
}

// registerBasics gives cmd the flags of everything that runs for long.
func (d *daemon) registerBasics(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&d.admin, "admin", "127.0.0.1:0", "IP:PORT of /metrics, /status, /healthz and /readyz, in plain HTTP")
	f.StringVar(&d.config, "config", "", "YAML file with the values of flags, by their names")
	f.BoolVar(&d.pprof, "pprof", false, "answer /debug/pprof (profiles of CPU and memory) on --admin too")
	f.BoolVar(&d.verbose, "verbose", false, "log requests and library messages too")
	cmd.Long += `

Each flag can also be given as the environment variable SHOAL_<FLAG> or in the file of --config; a
flag wins over the environment, and that over the file. SIGTERM lets requests under way end.`
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return d.setup(cmd) }
}

// setup reads what flags do not say.
func (d *daemon) setup(cmd *cobra.Command) error {
	if err := fillFlags(cmd.Flags(), os.LookupEnv); err != nil {
		return err
	}
	level := slog.LevelInfo
	if d.verbose {
		level = slog.LevelDebug
	}
	d.log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})).With("component", d.name)
	d.metrics = prometheus.NewRegistry()
	d.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return nil
}

// identity loads the certificates.
func (d *daemon) identity() error {
	switch {
	case d.plaintext:
		d.log.Warn("TLS is off: everyone who reaches the port is served")
		return nil
	case d.certs == "":
		return errors.New("no certificates: give --certs DIR (shoal certs issue makes one), or --plaintext for a trial")
	}
	var err error
	d.bundle, err = certs.Load(d.certs)
	return err
}

// server returns the TLS of a listener that admits roles; nil with --plaintext.
func (d *daemon) server(roles ...certs.Role) *tls.Config {
	if d.bundle == nil {
		return nil
	}
	return d.bundle.Server(roles...)
}

// client returns the TLS for calls to roles; nil with --plaintext.
func (d *daemon) client(roles ...certs.Role) *tls.Config {
	if d.bundle == nil {
		return nil
	}
	return d.bundle.Client(roles...)
}

// identify is how handlers learn who asks; nil with --plaintext.
func (d *daemon) identify() func(*http.Request) (certs.Identity, bool) {
	if d.bundle == nil {
		return nil
	}
	return certs.From
}

func (d *daemon) bind(ctx context.Context, what, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	d.log.Info("listening", "what", what, "addr", l.Addr().String())
	return l, nil
}

// serve answers on l until ctx ends, and then lets requests under way end.
func (d *daemon) serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config, h http.Handler) error {
	if tlsConfig != nil {
		l = tls.NewListener(l, tlsConfig)
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		d.log.Warn("requests were cut off", "err", err)
		_ = server.Close() // Shutdown's error was reported
	}
	<-ended
	return nil
}

// serveAdmin answers metrics, status and health. ready may be nil.
func (d *daemon) serveAdmin(ctx context.Context, ready func() error) error {
	if d.admin == "" {
		return nil
	}
	l, err := d.bind(ctx, "admin", d.admin)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	if d.pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	gather := d.gather
	if gather == nil {
		gather = d.metrics
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(gather, promhttp.HandlerOpts{}))
	if d.status != nil {
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(d.status()) // the asker is gone where this fails
		})
	}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ready != nil {
			if err := ready(); err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		fmt.Fprintln(w, "ready")
	})
	return d.serve(ctx, l, nil, mux)
}

// stages runs front until ctx ends, and back for as long as front runs: a server drains while what
// it serves from still works. An error of either ends both.
func stages(ctx context.Context, back, front func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	behind, stopBack := context.WithCancel(context.WithoutCancel(ctx))
	var group errgroup.Group
	group.Go(func() error {
		defer stop()
		return back(behind)
	})
	err := front(ctx)
	stopBack()
	return errors.Join(err, group.Wait())
}

// fillFlags sets the flags that the command line does not, from the environment and the file that
// the flag "config" names.
func fillFlags(flags *pflag.FlagSet, env func(string) (string, bool)) error {
	given := map[string]bool{}
	flags.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	if !given["config"] {
		if path, ok := env("SHOAL_CONFIG"); ok {
			if err := flags.Set("config", path); err != nil {
				return err
			}
		}
	}
	values := map[string]any{}
	if f := flags.Lookup("config"); f != nil && f.Value.String() != "" {
		text, err := os.ReadFile(f.Value.String())
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		if err := yaml.UnmarshalStrict(text, &values); err != nil {
			return fmt.Errorf("--config %s: %w", f.Value, err)
		}
		for name := range values {
			if flags.Lookup(name) == nil || name == "config" {
				return fmt.Errorf("--config %s: there is no flag %q", f.Value, name)
			}
		}
	}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if given[f.Name] || f.Name == "config" || f.Name == "help" {
			return
		}
		key := "SHOAL_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := env(key); ok {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
			return
		}
		if v, ok := values[f.Name]; ok {
			errs = append(errs, setFromFile(flags, f.Name, v))
		}
	})
	return errors.Join(errs...)
}

func setFromFile(flags *pflag.FlagSet, name string, v any) error {
	items, ok := v.([]any)
	if !ok {
		items = []any{v}
	}
	for _, item := range items {
		if err := flags.Set(name, fmt.Sprint(item)); err != nil {
			return fmt.Errorf("--config: %s: %w", name, err)
		}
	}
	return nil
}
