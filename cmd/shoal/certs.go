package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/internal/certs"
)

func certsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make the certificates by which the parts of Shoal know each other",
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "init CA-DIR",
		Short: "Create a certificate authority",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := certs.CreateCA(args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "certificate authority in %s; keep ca.key there\n", args[0])
			return err
		},
	}, &cobra.Command{
		Use:     "issue CA-DIR DIR ROLE",
		Short:   "Issue a certificate with a role: node/NAME, mirror, tracker, controller or client",
		Example: "  shoal certs issue ca certs/node-1 node/node-1",
		Args:    cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := certs.ParseIdentity(args[2])
			if err != nil {
				return err
			}
			if err := certs.Issue(args[0], args[1], id); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "certificate of %s in %s\n", id, args[1])
			return err
		},
	})
	return cmd
}
