package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

func explainCommand() *cobra.Command {
	var (
		flags  hubFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "explain NAME",
		Short: "Say what holds a ModelDistribution back, and what to do",
		Long: `Say the one thing that holds a ModelDistribution back now, and what to do; then what that was found
in: the condition, and the registry, cluster or node behind it.`,
		Example: "  shoal explain qwen3-8b-v1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := flags.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			d, err := h.get(cmd.Context(), selection{h.namespace, args[0]})
			if err != nil {
				return err
			}
			f := explain(d)
			if !asJSON {
				return f.write(cmd.OutOrStdout())
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
				Namespace string         `json:"namespace"`
				Name      string         `json:"name"`
				Phase     v1alpha1.Phase `json:"phase"`
				finding
			}{d.Namespace, d.Name, phase(d), f})
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// write says the finding to people.
func (f finding) write(w io.Writer) error {
	var text strings.Builder
	fmt.Fprintln(&text, oneLine(f.Says))
	if f.Do != "" {
		fmt.Fprintln(&text, "To do:", oneLine(f.Do))
	}
	if len(f.Chain) > 0 {
		var rows [][]string
		for _, l := range f.Chain {
			rows = append(rows, []string{l.Kind, l.Name, l.State, l.Message})
		}
		fmt.Fprintln(&text, "\nFound in:")
		for line := range strings.Lines(table(rows)) {
			text.WriteString("  " + line)
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}
