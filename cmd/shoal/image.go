package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
)

// imageFlags are common to the commands that speak to a registry.
type imageFlags struct {
	plainHTTP bool
	json      bool
}

func (f *imageFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.plainHTTP, "plain-http", false, "speak HTTP, not HTTPS, to the registry")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object on the last line of stdout")
}

// open returns the repository of reference, with the credentials of the docker configuration.
func (f *imageFlags) open(reference string) (*registry.Repository, error) {
	return registry.Open(reference, registry.Config{PlainHTTP: f.plainHTTP})
}

func (f *imageFlags) print(w io.Writer, v any, text string) error {
	if !f.json {
		_, err := fmt.Fprintln(w, text)
		return err
	}
	return json.NewEncoder(w).Encode(v)
}

func pushCommand() *cobra.Command {
	var (
		flags    imageFlags
		from     sourceFlags
		state    string
		previous []string
		parallel int
	)
	cmd := &cobra.Command{
		Use:   "push SOURCE REF",
		Short: "Pack a model's files as an OCI image and push it",
		Long: `Pack the files of SOURCE as an OCI image and push it to REF (registry/repository:tag). SOURCE is a
directory, or oss://bucket/path for the objects below a path of an Alibaba Cloud OSS bucket, with the
credentials of OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and, for STS, OSS_SESSION_TOKEN.

The files are streamed: each byte is read once, and nothing is stored but a small state. A push
that was killed goes on where it was. With --previous, layers whose files have not changed since
those tags are neither read nor sent.`,
		Example: `  shoal push ./qwen3-8b registry.example.com/models/qwen3-8b:v2 --previous v1
  shoal push oss://models/qwen3-8b/v2 registry.example.com/models/qwen3-8b:v2 --oss-region cn-hangzhou`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := flags.open(args[1])
			if err != nil {
				return err
			}
			defer repo.Close()
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			src, closeSource, err := from.open(args[0], state, log)
			if err != nil {
				return err
			}
			defer closeSource()
			show, done := layerProgress(cmd.ErrOrStderr())
			res, err := model.Pack(cmd.Context(), model.PackConfig{
				Source: src, Target: repo, Tag: repo.Reference.Reference, Previous: previous,
				StateDir: filepath.Join(state, "pack"), Parallel: parallel,
				Progress: show, Log: log,
			})
			done()
			if err != nil {
				return err
			}
			return flags.print(cmd.OutOrStdout(), map[string]any{
				"digest": res.Image.Index.Digest, "layers": len(res.Image.Layers),
				"layers_reused": res.LayersReused, "bytes_read": res.BytesRead, "bytes_sent": res.BytesSent,
			}, fmt.Sprintf("%s@%s: %d layers, %d reused, %s read, %s sent", args[1], res.Image.Index.Digest,
				len(res.Image.Layers), res.LayersReused,
				units.BytesSize(float64(res.BytesRead)), units.BytesSize(float64(res.BytesSent))))
		},
	}
	flags.register(cmd)
	from.register(cmd)
	cmd.Flags().StringVar(&state, "state", defaultState(), "directory for the state of unfinished pushes and known checksums")
	cmd.Flags().StringSliceVar(&previous, "previous", nil, "tags of the repository whose unchanged layers are used again")
	cmd.Flags().IntVar(&parallel, "parallel", 0, "layers packed at once (0: a good default)")
	return cmd
}

func pullCommand() *cobra.Command {
	var (
		flags    imageFlags
		parallel int
	)
	cmd := &cobra.Command{
		Use:   "pull REF DIR",
		Short: "Restore the files of a model image into a new directory",
		Long: `Restore the files of the model image REF into DIR, which must not exist yet. Every byte is
verified, and DIR appears only when all of it is there.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, err := flags.open(args[0])
			if err != nil {
				return err
			}
			defer repo.Close()
			show, done := layerProgress(cmd.ErrOrStderr())
			image, err := model.Pull(cmd.Context(), repo, repo.Reference.Reference, args[1],
				model.PullConfig{Parallel: parallel, Progress: show})
			done()
			if err != nil {
				return err
			}
			files, size := image.Files()
			return flags.print(cmd.OutOrStdout(),
				map[string]any{"digest": image.Index.Digest, "files": files, "bytes": size},
				fmt.Sprintf("%s: %d files, %s, verified", args[1], files, units.BytesSize(float64(size))))
		},
	}
	flags.register(cmd)
	cmd.Flags().IntVar(&parallel, "parallel", 0, "layers pulled at once (0: a good default)")
	return cmd
}

func inspectCommand() *cobra.Command {
	var flags imageFlags
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show the layers and files of a model image",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect(cmd.Context(), cmd.OutOrStdout(), &flags, args[0])
		},
	}
	flags.register(cmd)
	return cmd
}

func inspect(ctx context.Context, w io.Writer, flags *imageFlags, reference string) error {
	repo, err := flags.open(reference)
	if err != nil {
		return err
	}
	defer repo.Close()
	image, err := model.Resolve(ctx, repo, repo.Reference.Reference)
	if err != nil {
		return err
	}
	if flags.json {
		return json.NewEncoder(w).Encode(map[string]any{"digest": image.Index.Digest, "layers": image.Layers})
	}
	files, size := image.Files()
	fmt.Fprintf(w, "%s@%s\n%d layers, %d files, %s\n\n", reference, image.Index.Digest,
		len(image.Layers), files, units.BytesSize(float64(size)))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LAYER\tSIZE\tFILE\tSHA256")
	for _, l := range image.Layers {
		for _, m := range l.Members {
			fmt.Fprintf(t, "%.12s\t%s\t%s\t%.12s\n", l.Digest.Encoded(),
				units.BytesSize(float64(m.Size)), m.Path, m.SHA256.Encoded())
		}
	}
	return t.Flush()
}

// defaultState is the user's cache directory, as os.UserCacheDir finds it.
func defaultState() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "shoal")
}
