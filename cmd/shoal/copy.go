package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
)

// barFrom is the size in bytes from which a blob is shown: half of an image's blobs are configs and
// hashes.
const barFrom = 1 << 20

func copyCommand() *cobra.Command {
	var (
		from, to imageFlags
		state    string
		parallel int
	)
	cmd := &cobra.Command{
		Use:   "copy SRC DST",
		Short: "Copy an image from one registry to another",
		Long: `Copy the image SRC (registry/repository:tag or @digest) to DST (registry/repository[:tag]). DST's
tag is SRC's where it has none.

All of the image is copied: every platform, the hash layers by which nodes verify a model, its
ModelPack manifest, and what others attached to it, such as signatures. Images that Shoal did not
pack are copied just as well. Only what DST lacks is sent; within one registry, nothing is. Every
byte is verified on the way, and the tag is written last. A copy that was killed goes on where it was
when the same command runs again.

Credentials are those of "docker login", for each registry its own.`,
		Example: `  shoal copy registry.example.com/models/qwen3-8b:v1 registry.eu.example.com/models/qwen3-8b
  shoal copy localhost:5000/qwen3-8b:v1 registry.example.com/models/qwen3-8b:v1 --from-plain-http`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := from.open(args[0])
			if err != nil {
				return err
			}
			defer src.Close()
			dst, err := to.open(args[1])
			if err != nil {
				return err
			}
			defer dst.Close()
			tag, err := copyTag(src, dst)
			if err != nil {
				return err
			}
			show, done := layerProgress(cmd.ErrOrStderr())
			res, err := model.Copy(cmd.Context(), model.CopyConfig{
				From: src, To: dst, Tag: src.Reference.Reference, ToTag: tag,
				StateDir: state, Parallel: parallel,
				Progress: func(p model.Progress) {
					if p.Size >= barFrom {
						show(p)
					}
				},
				Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
			})
			done()
			if err != nil {
				return err
			}
			return to.print(cmd.OutOrStdout(), map[string]any{
				"reference": dst.Name() + ":" + tag, "digest": res.Root.Digest, "manifests": res.Manifests, "blobs": res.Blobs,
				"bytes": res.Bytes, "bytes_sent": res.BytesSent, "bytes_mounted": res.BytesMounted, "bytes_present": res.BytesPresent,
			}, fmt.Sprintf("%s:%s@%s: %s, %s sent, %s reused", dst.Name(), tag, res.Root.Digest, units.BytesSize(float64(res.Bytes)),
				units.BytesSize(float64(res.BytesSent)), units.BytesSize(float64(res.BytesMounted+res.BytesPresent))))
		},
	}
	cmd.Flags().BoolVar(&from.plainHTTP, "from-plain-http", false, "speak HTTP, not HTTPS, to SRC's registry")
	cmd.Flags().BoolVar(&to.plainHTTP, "to-plain-http", false, "speak HTTP, not HTTPS, to DST's registry")
	cmd.Flags().BoolVar(&to.json, "json", false, "print one JSON object on the last line of stdout")
	cmd.Flags().StringVar(&state, "state", defaultState(), "directory for the state of unfinished copies")
	cmd.Flags().IntVar(&parallel, "parallel", 0, "blobs copied at once, 16 MiB of memory each (0: a good default)")
	return cmd
}

// copyTag is the tag that the copy gets.
func copyTag(src, dst *registry.Repository) (string, error) {
	isDigest := func(reference string) bool { return strings.Contains(reference, ":") }
	switch tag := dst.Reference.Reference; {
	case src.Reference.Reference == "":
		return "", fmt.Errorf("%s names no image: add :TAG or @DIGEST", src.Name())
	case isDigest(tag):
		return "", fmt.Errorf("%s@%s: a copy is written under a tag; its digest is SRC's", dst.Name(), tag)
	case tag != "":
		return tag, nil
	case isDigest(src.Reference.Reference):
		return "", fmt.Errorf("%s needs a tag: SRC is a digest and has none to take over", dst.Name())
	}
	return src.Reference.Reference, nil
}
