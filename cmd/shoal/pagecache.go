package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/peer/pagecache"
)

func warmCommand() *cobra.Command {
	var (
		budget, reserve string
		parallel        int
		asJSON          bool
	)
	cmd := &cobra.Command{
		Use:   "warm DIR",
		Short: "Bring the files of a model into memory (the page cache)",
		Long: `Read what is missing of the files below DIR into the kernel's page cache, so that a serving process
maps them at the speed of memory. What is resident already is not read again, and the result is
measured. It stops at --budget, and before --reserve bytes of memory would be left for others.`,
		Example: "  shoal warm /var/lib/shoal/models/by-name/qwen3-8b --budget 64GiB",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := pagecache.Config{Parallel: parallel}
			var err error
			if cfg.Budget, err = bytesFlag("budget", budget); err != nil {
				return err
			}
			if cfg.Reserve, err = bytesFlag("reserve", reserve); err != nil {
				return err
			}
			before, err := pagecache.Residency(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, total := pagecache.Sum(before)
			show, done := warmProgress(cmd.ErrOrStderr(), args[0], total)
			cfg.Progress = show
			began := time.Now()
			result, err := pagecache.Warm(cmd.Context(), args[0], cfg)
			done()
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
					"resident": result.Resident, "total": result.Total, "read": result.Read,
					"seconds": time.Since(began).Seconds(), "stopped": result.Stopped,
				})
			}
			out := cmd.OutOrStdout()
			if result.Stopped != "" {
				fmt.Fprintln(out, result.Stopped)
			}
			_, err = fmt.Fprintf(out, "%s: %s of %s are resident (%.1f %%), %s were read in %.1f s\n", args[0],
				units.BytesSize(float64(result.Resident)), units.BytesSize(float64(result.Total)),
				percent(result.Resident, result.Total), units.BytesSize(float64(result.Read)), time.Since(began).Seconds())
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&budget, "budget", "0", "bytes of DIR that may be resident, such as 64GiB; 0 is what memory has room for")
	fl.StringVar(&reserve, "reserve", "1GiB", "bytes of memory that stay free for others")
	fl.IntVar(&parallel, "parallel", 0, "reads at once (0: a good default)")
	fl.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// warmProgress shows a bar on a terminal, else nothing: the last line says what counts.
func warmProgress(w io.Writer, name string, total int64) (show func(int64), done func()) {
	if !isTerminal(w) || total == 0 {
		return func(int64) {}, func() {}
	}
	bars := newBars(w)
	bar := addBar(bars, name, total)
	var sum atomic.Int64
	return func(n int64) { bar.SetCurrent(sum.Add(n)) }, func() {
		if !bar.Completed() {
			bar.Abort(false)
		}
		bars.Wait()
	}
}

func residencyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "residency DIR",
		Short:   "Show how much of each file is in memory (the page cache)",
		Long:    "Measure how much of each file below DIR is in the kernel's page cache. Links to one file count once.",
		Example: "  shoal residency /var/lib/shoal/models/by-name/qwen3-8b",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := pagecache.Residency(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			resident, total := pagecache.Sum(files)
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
					"resident": resident, "total": total, "files": files,
				})
			}
			return residencyTable(cmd.OutOrStdout(), files, resident, total)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func residencyTable(w io.Writer, files []pagecache.File, resident, total int64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "RESIDENT\tSIZE\t%\t  FILE")
	row := func(resident, size int64, name string) {
		fmt.Fprintf(t, "%s\t%s\t%.1f\t  %s\n", units.BytesSize(float64(resident)), units.BytesSize(float64(size)), percent(resident, size), name)
	}
	for _, f := range files {
		row(f.Resident, f.Size, f.Path)
	}
	row(resident, total, "total")
	return t.Flush()
}

func percent(part, whole int64) float64 {
	if whole == 0 {
		return 100
	}
	return 100 * float64(part) / float64(whole)
}
