package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/shoal-project/shoal/peer/endpoint"
)

// endpointFlags say how the node serves its containerd.
type endpointFlags struct {
	listen     string
	certsDir   string
	registries []string
	root       string        // containerd's
	stay       time.Duration // of blobs that containerd has

	told atomic.Bool // containerd was told
}

// ready reports why containerd is not served yet; nil where it need not be.
func (f *endpointFlags) ready() error {
	if f.certsDir != "" && !f.told.Load() {
		return fmt.Errorf("containerd is not told yet: nothing was written to %s", f.certsDir)
	}
	return nil
}

const containerdCerts = "/etc/containerd/certs.d"

func (f *endpointFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.certsDir, "containerd-config", "", "containerd's folder of registry hosts, usually "+containerdCerts+": serve the node's containerd, and write a hosts.toml there")
	fl.StringArrayVar(&f.registries, "containerd-registry", nil, "registry, as in image references, that containerd asks Shoal for first (default: "+endpoint.Default+", all that have no folder of their own); may be given again")
	fl.StringVar(&f.root, "containerd-root", "/var/lib/containerd", "containerd's root folder: a pulled layer becomes a link to containerd's file there, where both lie under one mount; else our copy is dropped")
	fl.DurationVar(&f.stay, "containerd-stay", 10*time.Minute, "for how long a pulled layer is kept beside containerd's own after its last reader, for the other nodes that pull it now")
	fl.StringVar(&f.listen, "containerd-listen", "127.0.0.1:7073", "loopback IP:PORT at which containerd is served")
}

// run serves containerd until ctx ends, where it is wanted.
func (f *endpointFlags) run(ctx context.Context, d *daemon, node endpoint.Node) error {
	if f.certsDir == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(f.listen)
	ip := net.ParseIP(host)
	if err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("--containerd-listen %q: want a loopback IP:PORT, such as 127.0.0.1:7073", f.listen)
	}
	registries := f.registries
	if len(registries) == 0 {
		registries = []string{endpoint.Default}
	}
	settings := endpoint.Config{Node: node, Registerer: d.metrics, Logger: d.log}
	for _, r := range registries {
		if r == endpoint.Default {
			settings.Registries = nil
			break
		}
		settings.Registries = append(settings.Registries, r)
	}
	served, err := endpoint.New(settings)
	if err != nil {
		return err
	}
	hosts := endpoint.Hosts{Dir: f.certsDir}
	id, err := endpoint.NewIdentity(hosts.IdentityDir(), ip)
	if err != nil {
		return err
	}
	l, err := d.bind(ctx, "containerd", f.listen)
	if err != nil {
		return err
	}
	for _, r := range registries {
		if err := hosts.Install(r, "https://"+l.Addr().String(), id); err != nil {
			return errors.Join(err, l.Close())
		}
		d.log.Info("containerd asks here first", "registry", r, "folder", f.certsDir)
	}
	f.told.Store(true)
	if err := id.Only(); err != nil {
		d.log.Warn("identities of earlier starts are left", "err", err)
	}
	return d.serve(ctx, l, id.ServerTLS(), served)
}

func uninstallCommand() *cobra.Command {
	var hosts endpoint.Hosts
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take out of containerd's configuration what shoal peer wrote there",
		Long: `Take Shoal's block out of every hosts.toml below the folder. Each file is then what it was before, to the
byte; one that was not there before is removed. containerd needs no restart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changed, err := hosts.Uninstall()
			out := cmd.OutOrStdout()
			if asJSON {
				return errors.Join(err, json.NewEncoder(out).Encode(map[string]any{"restored": append([]string{}, changed...)}))
			}
			for _, name := range changed {
				fmt.Fprintln(out, "restored", name)
			}
			if len(changed) == 0 && err == nil {
				fmt.Fprintf(out, "no hosts.toml below %s is Shoal's\n", hosts.Dir)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&hosts.Dir, "containerd-config", containerdCerts, "containerd's folder of registry hosts")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func checkCommand() *cobra.Command {
	var certsDir, file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether containerd reads the folder in which shoal peer writes",
		Long: `Say whether containerd reads the folder in which shoal peer writes a hosts.toml, and what has to be done where it
does not. The exit code is 0 where it does.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := endpoint.ReadContainerd(file)
			if err != nil {
				return err
			}
			ok, sentence := c.Reads(certsDir)
			if asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"reads": ok, "message": sentence}); err != nil {
					return err
				}
			} else if ok {
				fmt.Fprintln(cmd.OutOrStdout(), sentence)
			}
			if !ok {
				return errors.New(sentence)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&certsDir, "containerd-config", containerdCerts, "containerd's folder of registry hosts")
	cmd.Flags().StringVar(&file, "containerd-toml", "/etc/containerd/config.toml", "containerd's configuration")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
