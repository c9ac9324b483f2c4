// Command shoal carries large models to the machines that serve them. This file only wires: each
// subcommand is a function of its own that ends with an error or nil.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := root().ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.New("interrupted") // which of the calls under way noticed says nothing
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "shoal:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "shoal",
		Short:         "Carry large models to the machines that serve them",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.AddCommand(pushCommand(), pullCommand(), copyCommand(), inspectCommand(), certsCommand(),
		mirrorCommand(), trackerCommand(), peerCommand(), controllerCommand(), packJobCommand(), desiredCommand(), warmCommand(), residencyCommand(), demoCommand(),
		planCommand(), applyCommand(), statusCommand(), explainCommand())
	return cmd
}
