package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// Programs that the bench runs on its hosts, beside shoal itself.

// registryTool is a distribution registry. Its admin answers /sent with the body bytes that it sent.
func registryTool() *cobra.Command {
	return &cobra.Command{
		Use: "registry DIR ADDR", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", args[1])
			if err != nil {
				return err
			}
			s, err := registryserver.New(registryserver.Config{Dir: args[0], Listener: l})
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, `{"msg":"listening","what":"registry","addr":%q}`+"\n", l.Addr())
			mux := http.NewServeMux()
			mux.HandleFunc("/sent", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, s.SentTotal()) })
			admin := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
			al, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, `{"msg":"listening","what":"admin","addr":%q}`+"\n", al.Addr())
			go func() { _ = admin.Serve(al) }()
			defer func() { _ = admin.Close() }()
			return s.Run(cmd.Context())
		},
	}
}

// got is what getTool and drainTool print.
type got struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
}

// getTool reads every layer of an image by plain HTTP, hashes it and writes it to a file: the bound.
func getTool() *cobra.Command {
	return &cobra.Command{
		Use: "get REF... DIR", Hidden: true, Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, dir := cmd.Context(), args[len(args)-1]
			begin := time.Now()
			var sum int64
			for _, ref := range args[:len(args)-1] {
				repo, err := registry.Open(ref, registry.Config{PlainHTTP: true})
				if err != nil {
					return err
				}
				defer repo.Close()
				image, err := model.Resolve(ctx, repo, repo.Reference.Reference)
				if err != nil {
					return err
				}
				for _, l := range image.Layers {
					if err := getLayer(ctx, repo, l, filepath.Join(dir, l.Digest.Encoded())); err != nil {
						return err
					}
					sum += l.Size
				}
			}
			return json.NewEncoder(os.Stdout).Encode(got{time.Since(begin).Seconds(), sum})
		},
	}
}

func getLayer(ctx context.Context, repo *registry.Repository, l model.Layer, at string) error {
	url := "http://" + repo.Reference.Registry + "/v2/" + repo.Reference.Repository + "/blobs/" + l.Digest.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=0-%d", l.Size-1))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	f, err := os.Create(at)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, resp.Body, make([]byte, 1<<20)); err != nil {
		return err
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != l.Digest.Encoded() {
		return fmt.Errorf("%s: sha256 %s", url, got)
	}
	return f.Close()
}

// pourTool sends zeros to whoever connects, and drainTool reads them: what the testbed carries.
func pourTool() *cobra.Command {
	return &cobra.Command{
		Use: "pour ADDR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, `{"msg":"listening","what":"pour","addr":%q}`+"\n", l.Addr())
			for {
				conn, err := l.Accept()
				if err != nil {
					return err
				}
				go func() {
					defer conn.Close()
					buf := make([]byte, 1<<20)
					for {
						if _, err := conn.Write(buf); err != nil {
							return
						}
					}
				}()
			}
		},
	}
}

func drainTool() *cobra.Command {
	return &cobra.Command{
		Use: "drain ADDR BYTES", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return err
			}
			begin := time.Now()
			conn, err := (&net.Dialer{}).DialContext(cmd.Context(), "tcp", args[0])
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(conn, n), make([]byte, 1<<20)); err != nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(got{time.Since(begin).Seconds(), n})
		},
	}
}
