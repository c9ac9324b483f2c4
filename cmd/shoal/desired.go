package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/tracker/client"
)

type desiredFlags struct {
	tracker   string
	certs     string
	plaintext bool
	json      bool
}

func desiredCommand() *cobra.Command {
	var f desiredFlags
	cmd := &cobra.Command{
		Use:   "desired [FILE]",
		Short: "Show which models a region's nodes should hold and how far they are, or set it",
		Long: `Show which models the nodes of a region should hold, and how far each node is. With FILE (- is
stdin), replace the desired set first, which needs the certificate of a controller:

  models:
  - name: qwen3-8b
    reference: registry.example.com/models/qwen3-8b:v2
    nodes: [node-1, node-2]   # left out: all nodes
    priority: 10              # higher ones come first
    tier: Memory              # kept in the page cache too; left out: Disk`,
		Example: "  shoal desired models.yaml --tracker https://tracker:7070 --certs certs/controller",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			track, err := f.open()
			if err != nil {
				return err
			}
			defer track.Close()
			if len(args) == 1 {
				if err := setDesired(cmd.Context(), track, cmd.InOrStdin(), args[0]); err != nil {
					return err
				}
			}
			return f.show(cmd.Context(), track, cmd.OutOrStdout())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.tracker, "tracker", "https://127.0.0.1:7070", "address of the tracker")
	fl.StringVar(&f.certs, "certs", "", "folder with ca.crt, tls.crt and tls.key (shoal certs issue)")
	fl.BoolVar(&f.plaintext, "plaintext", false, "speak without TLS, to a tracker that does too")
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	cmd.MarkFlagsMutuallyExclusive("certs", "plaintext")
	cmd.MarkFlagsOneRequired("certs", "plaintext")
	return cmd
}

func (f *desiredFlags) open() (*client.Client, error) {
	var config *tls.Config
	if !f.plaintext {
		bundle, err := certs.Load(f.certs)
		if err != nil {
			return nil, err
		}
		config = bundle.Client(certs.Tracker)
	}
	return client.New(client.Config{URL: f.tracker, TLS: config})
}

func setDesired(ctx context.Context, track *client.Client, stdin io.Reader, file string) error {
	in := stdin
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return err
		}
		defer opened.Close()
		in = opened
	}
	text, err := io.ReadAll(io.LimitReader(in, 16<<20))
	if err != nil {
		return err
	}
	var d client.Desired
	if err := yaml.UnmarshalStrict(text, &d); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return track.SetDesired(ctx, d)
}

// inMemory is a model's residency for people.
func inMemory(m client.ModelProgress) string {
	if m.ResidentBytes < 0 {
		return "-"
	}
	return units.BytesSize(float64(m.ResidentBytes))
}

// show prints the set and each node's report on it.
func (f *desiredFlags) show(ctx context.Context, track *client.Client, w io.Writer) error {
	set, err := track.Desired(ctx, "", "", 0)
	if err != nil && !errors.Is(err, client.ErrNoDesired) {
		return err
	}
	nodes, err := track.Progress(ctx)
	if err != nil {
		return err
	}
	if f.json {
		return json.NewEncoder(w).Encode(map[string]any{"models": set.Models, "nodes": nodes})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MODEL\tREFERENCE\tTIER\tNODES")
	for _, m := range set.Models {
		on := strings.Join(m.Nodes, ",")
		if on == "" {
			on = "all"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", m.Name, m.Reference, cmp.Or(m.Tier, client.TierDisk), on)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(t, "\nNODE\tMODEL\tSTATE\tHELD\tIN MEMORY\tFROM ORIGIN\tFROM PEERS\tSECONDS\tERROR")
	for _, n := range nodes {
		for _, m := range n.Models {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s of %s\t%s\t%s\t%s\t%.1f\t%s\n", n.Node, m.Name, m.State,
				units.BytesSize(float64(m.Bytes)), units.BytesSize(float64(m.Total)), inMemory(m),
				units.BytesSize(float64(m.OriginBytes)), units.BytesSize(float64(m.PeerBytes)), m.Seconds, m.Error)
		}
	}
	return t.Flush()
}
