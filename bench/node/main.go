// Command node measures what one node can carry: one real peer gives a model to another one on loopback,
// beside a range download by net/http and curl from the same files. It needs Linux and no root; an
// interrupted one leaves nothing on the machine, a killed one a folder that the next removes.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

type flags struct {
	size      string
	runs      int
	transport string
	dir       string
	shoal     string
	profiles  string
	logs      string
	cpus      int
}

func main() {
	// Children are killed with the thread that started them (PR_SET_PDEATHSIG), so that one has to stay.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use:   "node",
		Short: "Measure how fast one node gives a model to another, and the processor time of both",
		Long: `Measure how fast one node gives a model to another one on loopback, and the processor time of both.

A registry, a tracker, a mirror and a first node that has the model are started. Then, --runs times, one
after the other: a second node gets the model from the first one (shoal); net/http serves the first
node's file to a client that asks for it as a range, hashes it and writes it (http); curl writes it
without hashing. The same over mutual TLS 1.3, which is what Shoal speaks by default, and over plain TCP.

  MB/S       1e6 bytes a second; for shoal from the start until the model is complete, each piece
             checked, and visible
  CHECKED    the same until the sha256 of the whole was checked too, which the node does behind that
  SENDER     CPU seconds, user and system, of the process that sends, for each GiB
  RECEIVER   the same of the process that receives, its start included
  BOTH       their sum. shoal hashes everything twice: each piece as it arrives, and the whole blob
             for its digest. "less digest" is without the second, which is measured by itself: reading
             the file from the page cache and hashing it
  MEMORY     the most anonymous memory of the receiving node (shoal only)

Each figure is the median of the runs, a ratio that of the runs' own. The bounds are: less digest, shoal
takes at most 1.25 x the CPU of http, and it is at least 0.8 x as fast. What a program does on several CPUs
at once takes more CPU seconds than on one, above all in a virtual machine; --cpus 1 shows the work
alone. The last line of stdout is a JSON object.`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := confine(f.cpus); err != nil {
				return fmt.Errorf("--cpus %d: %w", f.cpus, err)
			}
			return bench(cmd.Context(), f)
		},
	}
	fl := root.Flags()
	fl.StringVar(&f.size, "size", "2GiB", "size of the model; four times as much is used")
	fl.IntVar(&f.runs, "runs", 3, "runs of each, of which the median is reported")
	fl.StringVar(&f.transport, "transport", "mtls,plain", "over what, a comma-separated list: mtls, plain")
	fl.StringVar(&f.dir, "dir", "", "folder for all data, removed at the end (default: memory, /dev/shm, so that no disk is measured)")
	fl.StringVar(&f.shoal, "shoal", "bin/shoal", "the program that is measured")
	fl.StringVar(&f.profiles, "profiles", "", "folder for CPU profiles of both nodes (go tool pprof); the figures are worth less then")
	fl.IntVar(&f.cpus, "cpus", 0, "CPUs to run everything on; 0 means all")
	fl.StringVar(&f.logs, "logs", "", "folder for the logs of all programs")
	root.AddCommand(serveTool(), getTool(), hashTool())
	return root
}

// confine starts this program anew on the first cpus of its CPUs, unless it has no more; its children have the
// same. 0 means all.
func confine(cpus int) error {
	if cpus < 0 || cpus > runtime.NumCPU() {
		return fmt.Errorf("want 0 to %d", runtime.NumCPU())
	}
	if cpus == 0 || cpus == runtime.NumCPU() {
		return nil
	}
	var all, some unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := 0; some.Count() < cpus; cpu++ {
		if all.IsSet(cpu) {
			some.Set(cpu)
		}
	}
	// Of this thread, which main has locked: exec leaves no other.
	if err := unix.SchedSetaffinity(0, &some); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, os.Environ())
}
