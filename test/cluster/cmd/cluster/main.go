// Command cluster starts real Kubernetes clusters on this machine to play with, and ends them.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "Real Kubernetes clusters on this machine: API servers, kubelets and containerds in namespaces of their own",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), statusCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func upCommand() *cobra.Command {
	var clusters, nodes int
	cfg := cluster.Config{Log: progress(time.Now())}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start clusters c1, c2, ... and a registry, and leave them running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return up(cmd.Context(), cfg, clusters, nodes)
		},
	}
	fl := cmd.Flags()
	fl.IntVar(&clusters, "clusters", 1, "how many clusters")
	fl.IntVar(&nodes, "nodes", 2, "nodes a cluster")
	fl.StringVar(&cfg.Tools, "tools", "bin/tools", "the programs that make tools builds")
	fl.StringVar(&cfg.Dir, "dir", "/tmp/shoal-cluster", "folder of the clusters, removed when they end")
	return cmd
}

// progress tells of each step, and when it was.
func progress(began time.Time) func(string, ...any) {
	return func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%5.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
}

func up(ctx context.Context, cfg cluster.Config, clusters, nodes int) error {
	w, err := cluster.New(ctx, cfg)
	if err != nil {
		return err
	}
	if err := fill(ctx, w, clusters, nodes); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		if closed := w.Close(); closed != nil { //nolint:contextcheck // also after ctx has ended
			return closed
		}
		return fmt.Errorf("nothing was started (%w)", context.Cause(ctx))
	}
	if err := w.Leave(); err != nil {
		return err
	}
	return status(cfg.Tools, false)
}

func fill(ctx context.Context, w *cluster.World, clusters, nodes int) error {
	registry, err := w.AddRegistry(ctx, "registry", cluster.RegistryOptions{})
	if err != nil {
		return err
	}
	for i := range clusters {
		c, err := w.AddCluster(ctx, fmt.Sprintf("c%d", i+1), nodes)
		if err != nil {
			return err
		}
		for _, n := range c.Nodes {
			if err := n.Trust(ctx, registry); err != nil {
				return err
			}
		}
	}
	return nil
}

func downCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the clusters that up left running, or what is there of those of a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			began := time.Now()
			if err := cluster.Remove(cmd.Context()); err != nil {
				return err
			}
			progress(began)("nothing is left of any cluster")
			return nil
		},
	}
}

func statusCommand() *cobra.Command {
	var asJSON bool
	var tools string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say what runs and how to reach it",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return status(tools, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&tools, "tools", "bin/tools", "the programs that make tools builds")
	return cmd
}

func status(tools string, asJSON bool) error {
	s, err := cluster.Load()
	if err != nil {
		return err
	}
	if asJSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(s)
	}
	for _, c := range s.Clusters {
		fmt.Printf("cluster %s at %s\n  %s/kubectl --kubeconfig %s get nodes\n", c.Name, c.Server, tools, c.Kubeconfig)
		for _, n := range c.Nodes {
			fmt.Printf("  node %s, %s; a shell on it: %s sh\n", n.Name, n.IP, strings.Join(n.Exec, " "))
		}
	}
	for _, r := range s.Registries {
		fmt.Printf("registry %s at %s\n", r.Name, r.Host)
	}
	fmt.Printf("%d processes; logs in %s; make cluster-down ends it all\n", s.Processes, s.Dir)
	return nil
}
