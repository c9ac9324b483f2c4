package main

import (
	"crypto/rand"
	"encoding/base64"
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
	cmd.AddCommand(&cobra.Command{
		Use:   "gossip-key",
		Short: "Print a new key for the nodes' gossip",
		Long: `Print a new key for the nodes' gossip. A key file (shoal peer --gossip-keys) has one a line; the first
one encrypts, all of them decrypt. Nodes read the file again when it changes. To rotate a key without
a gap, on all nodes in turn: add the new one at the end, then move it to the front, then drop the old.`,
		Example: "  shoal certs gossip-key >> gossip.keys",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := make([]byte, 32)
			if _, err := rand.Read(key); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), base64.StdEncoding.EncodeToString(key))
			return err
		},
	})
	return cmd
}
