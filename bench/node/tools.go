package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/shoal-project/shoal/internal/certs"
)

// Programs that the bench runs beside shoal itself.

// got is what getTool and hashTool print.
type got struct {
	Seconds float64 `json:"seconds"`
	Sum     string  `json:"sha256"`
}

// serveTool serves one file by net/http: by sendfile where there is no TLS. DIR has its certificates.
func serveTool() *cobra.Command {
	return &cobra.Command{
		Use: "serve FILE ADDR [DIR]", Hidden: true, Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", args[1])
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, `{"msg":"listening","what":"serve","addr":%q}`+"\n", l.Addr())
			if len(args) == 3 {
				bundle, err := certs.Load(args[2])
				if err != nil {
					return err
				}
				l = tls.NewListener(l, bundle.Server())
			}
			server := &http.Server{
				ReadHeaderTimeout: time.Minute,
				Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, args[0]) }),
			}
			return server.Serve(l)
		},
	}
}

// getTool reads SIZE bytes as a range, hashes them and writes them to a file. DIR has its certificates.
func getTool() *cobra.Command {
	return &cobra.Command{
		Use: "get URL SIZE FILE [DIR]", Hidden: true, Args: cobra.RangeArgs(3, 4),
		RunE: func(cmd *cobra.Command, args []string) error {
			transport := http.DefaultTransport.(*http.Transport).Clone()
			if len(args) == 4 {
				bundle, err := certs.Load(args[3])
				if err != nil {
					return err
				}
				transport.TLSClientConfig = bundle.Client()
			}
			begin := time.Now()
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, args[0], nil)
			if err != nil {
				return err
			}
			req.Header.Set("Range", rangeOf(args[1]))
			resp, err := (&http.Client{Transport: transport}).Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusPartialContent {
				return errors.New(resp.Status)
			}
			f, err := os.Create(args[2])
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, resp.Body, make([]byte, 1<<20))
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(got{time.Since(begin).Seconds(), fmt.Sprintf("%x", h.Sum(nil))})
		},
	}
}

func rangeOf(size string) string { return "bytes=0-" + size } // one too many, which the server cuts off

// hashTool hashes a file as the store does behind the frontier.
func hashTool() *cobra.Command {
	return &cobra.Command{
		Use: "hash FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			begin, h := time.Now(), sha256.New()
			if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(got{time.Since(begin).Seconds(), fmt.Sprintf("%x", h.Sum(nil))})
		},
	}
}
