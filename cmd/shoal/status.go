package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// statusFlags are those of shoal status.
type statusFlags struct {
	hub              hubFlags
	watch, all, json bool
}

func statusCommand() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show how far ModelDistributions are",
		Long: `Show a line for each ModelDistribution, or, with NAME, all that is known of one: how much of it is
packed, which registries have it, how many nodes of each cluster hold it, and what is not as it should be.

With --watch it goes on: on a terminal the page is drawn again at every change, elsewhere the lines that
changed are printed. It ends on ^C, with exit code 0, or when NAME is deleted.`,
		Example: "  shoal status qwen3-8b-v1 --watch",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := selection{}
			if len(args) == 1 {
				s.name = args[0]
			}
			if f.all && s.name != "" {
				return errors.New("give NAME or --all-namespaces, not both")
			}
			h, err := f.hub.open(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if !f.all {
				s.namespace = h.namespace
			}
			return f.run(cmd.Context(), h, s, cmd.OutOrStdout())
		},
	}
	f.hub.register(cmd)
	fl := cmd.Flags()
	fl.BoolVarP(&f.watch, "watch", "w", false, "show changes as they happen, until ^C")
	fl.BoolVarP(&f.all, "all-namespaces", "A", false, "of all namespaces")
	fl.BoolVar(&f.json, "json", false, "print one JSON object: the ModelDistribution, or a list; with --watch one a change")
	cmd.MarkFlagsMutuallyExclusive("all-namespaces", "namespace")
	return cmd
}

func (f *statusFlags) run(ctx context.Context, h *hub, s selection, w io.Writer) error {
	if s.name != "" { // to say that there is none is get's affair, also for a watch
		d, err := h.get(ctx, s)
		if err != nil {
			return err
		}
		if !f.watch {
			return f.print(w, s, []*v1alpha1.ModelDistribution{d})
		}
	}
	if !f.watch {
		all, _, err := h.list(ctx, s)
		if err != nil {
			return err
		}
		return f.print(w, s, all)
	}
	screen := screen{w: w, terminal: isTerminal(w)}
	err := h.follow(ctx, s, func(all []*v1alpha1.ModelDistribution) (bool, error) {
		if s.name != "" && len(all) == 0 {
			if !f.json {
				fmt.Fprintf(w, "%s/%s is deleted\n", s.namespace, s.name)
			}
			return true, nil
		}
		if f.json {
			return false, f.print(w, s, all)
		}
		return false, screen.show(func(now time.Time) string { return f.text(s, all, now) })
	})
	if ctx.Err() != nil { // ^C is how it is meant to end
		return nil
	}
	return err
}

// print writes what s selected, once.
func (f *statusFlags) print(w io.Writer, s selection, all []*v1alpha1.ModelDistribution) error {
	if !f.json {
		_, err := io.WriteString(w, f.text(s, all, time.Now()))
		return err
	}
	if s.name != "" {
		return json.NewEncoder(w).Encode(all[0])
	}
	if all == nil {
		all = []*v1alpha1.ModelDistribution{}
	}
	return json.NewEncoder(w).Encode(map[string]any{"items": all})
}

// text is a page or a table, as of now.
func (f *statusFlags) text(s selection, all []*v1alpha1.ModelDistribution, now time.Time) string {
	switch {
	case s.name != "":
		return statusPage(all[0], now)
	case len(all) == 0 && f.all:
		return "There are no ModelDistributions.\n"
	case len(all) == 0:
		return fmt.Sprintf("There are no ModelDistributions in namespace %s.\n", s.namespace)
	}
	return statusTable(all, f.all, now)
}

// screen shows a text that changes.
type screen struct {
	w        io.Writer
	terminal bool
	last     func(now time.Time) string
}

// show draws the text again on a terminal, and elsewhere prints those of its lines that are new. The old and the
// new text are compared as of one time: ages are no news.
func (s *screen) show(text func(now time.Time) string) error {
	now := time.Now()
	next, seen := text(now), map[string]bool{}
	if s.terminal {
		_, err := io.WriteString(s.w, "\x1b[H\x1b[2J"+next) // cursor home, clear the screen
		return err
	}
	if s.last != nil {
		seen[""] = true
		for line := range strings.Lines(s.last(now)) {
			seen[squeezed(line)] = true
		}
	}
	s.last = text
	for line := range strings.Lines(next) {
		if !seen[squeezed(line)] {
			if _, err := io.WriteString(s.w, line); err != nil {
				return err
			}
		}
	}
	return nil
}

// squeezed is a line without its alignment, which a longer cell in another line changes.
func squeezed(line string) string { return strings.Join(strings.Fields(line), " ") }
