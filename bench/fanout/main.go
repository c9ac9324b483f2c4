// Command fanout measures how fast many nodes get a model: real registry, mirror, tracker and nodes on
// hosts of their own (network namespaces), whose links are shaped both ways. It needs root and iproute2;
// an interrupted one leaves nothing on the machine, a
// killed one a folder that the next removes.
package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

type flags struct {
	nodes     int
	size      string
	files     int
	sparse    bool
	rate      string
	scenario  string
	runs      int
	plaintext bool
	baselines bool
	dir       string
	shoal     string
	out       string
	logs      string
	trace     string
	profiles  string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := execute(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fanout:", err)
		code = 1
	}
	os.Exit(code)
}

func execute(ctx context.Context) (code int, err error) {
	var f flags
	root := &cobra.Command{
		Use:   "fanout",
		Short: "Measure how fast many nodes get a model over shaped links",
		Long: "Measure how fast many nodes get a model over shaped links. The last line of stdout is a JSON object.\n\nScenarios:\n" +
			describe(),
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { //nolint:contextcheck // the run inside gets it
			if dir := os.Getenv(inside); dir != "" {
				return bench(cmd.Context(), f, dir)
			}
			var err error
			code, err = isolate(cmd.Context(), cmp.Or(f.dir, os.TempDir()))
			return err
		},
	}
	fl := root.Flags()
	fl.IntVar(&f.nodes, "nodes", 8, "number of nodes")
	fl.StringVar(&f.size, "size", "128MiB", "size of the model")
	fl.IntVar(&f.files, "files", 1, "files of the model")
	fl.BoolVar(&f.sparse, "sparse", false, "files that are holes but for their first MiB, also in the registry: large models, for --dir")
	fl.StringVar(&f.rate, "rate", "200mbit", "rate of each link, each way, as tc(8) writes it")
	fl.StringVar(&f.scenario, "scenario", "cold", "what to play, or a comma-separated list, or all")
	fl.IntVar(&f.runs, "runs", 1, "runs of each scenario, of which the median is reported")
	fl.BoolVar(&f.plaintext, "plaintext", false, "without TLS between the parts")
	fl.BoolVar(&f.baselines, "baselines", false, "also: every node pulls from the registry, and a ring")
	fl.StringVar(&f.dir, "dir", "", "folder on a disk for the nodes' data, removed at the end (default: memory, as one disk cannot play many)")
	fl.StringVar(&f.shoal, "shoal", "bin/shoal", "the program that is measured")
	fl.StringVar(&f.out, "out", "", "file to which each result is appended as a line of JSON")
	fl.StringVar(&f.logs, "logs", "", "folder for the logs of all programs, a file a host")
	fl.StringVar(&f.trace, "trace", "", "file for how many bytes each link has carried, a line each 100 ms (CSV)")
	fl.StringVar(&f.profiles, "profiles", "", "folder for CPU profiles of mirror, tracker and nodes (go tool pprof)")
	root.AddCommand(registryTool(), getTool(), pourTool(), drainTool())
	err = root.ExecuteContext(ctx)
	return code, err
}

func describe() string {
	var lines strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&lines, "  %-14s %s\n", s.name, s.what)
	}
	return lines.String()
}
