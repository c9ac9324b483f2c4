package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/shoal-project/shoal/bench/internal/program"
)

// used runs a program to its end and returns its processor time in seconds and what it printed.
func (r *region) used(ctx context.Context, args ...string) (cpu float64, stdout []byte, err error) {
	cmd := r.place.Command(args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := cmd.Wait(); err != nil {
		return 0, nil, fmt.Errorf("%v: %w\n%s", args, err, stderr.String())
	}
	state := cmd.ProcessState
	return (state.UserTime() + state.SystemTime()).Seconds(), out.Bytes(), nil
}

// serve starts a server of the sender's file; url is where it is.
func (r *region) serve(ctx context.Context) (p *program.Program, url string, err error) {
	args := []string{r.run.self, "serve", r.file, "127.0.0.1:0"}
	scheme := "http://"
	if r.transport != plain {
		dir, err := r.certs("mirror")
		if err != nil {
			return nil, "", err
		}
		args, scheme = append(args, dir), "https://"
	}
	if p, err = r.place.StartTool(ctx, "serve", args...); err != nil {
		return nil, "", err
	}
	return p, scheme + p.Addr() + "/", nil
}

// download measures a client of a server; args are the client's, which writes to the file at.
func (r *region) download(ctx context.Context, args func(url, at string) ([]string, error)) (f figures, stdout []byte, err error) {
	p, url, err := r.serve(ctx)
	if err != nil {
		return f, nil, err
	}
	defer p.Kill()
	at := r.path("download")
	defer os.Remove(at)
	words, err := args(url, at)
	if err != nil {
		return f, nil, err
	}
	before, err := p.CPU()
	if err != nil {
		return f, nil, err
	}
	begin := time.Now()
	client, stdout, err := r.used(ctx, words...)
	if err != nil {
		return f, nil, err
	}
	f.MBs = r.mbs(time.Since(begin).Seconds())
	after, err := p.CPU()
	f.Sender, f.Receiver = r.perGiB(after-before), r.perGiB(client)
	return f, stdout, err
}

// http is the download by net/http.
func (r *region) http(ctx context.Context) (figures, error) {
	f, stdout, err := r.download(ctx, func(url, at string) ([]string, error) {
		args := []string{r.run.self, "get", url, strconv.FormatInt(r.run.size, 10), at}
		if r.transport == plain {
			return args, nil
		}
		dir, err := r.certs("client")
		return append(args, dir), err
	})
	if err != nil {
		return f, err
	}
	g, err := r.check(stdout)
	f.MBs = r.mbs(g.Seconds)
	return f, err
}

func (r *region) check(stdout []byte) (g got, err error) {
	if err := json.Unmarshal(stdout, &g); err != nil {
		return g, err
	}
	if g.Sum != r.run.sum {
		err = errors.New("a baseline read other bytes")
	}
	return g, err
}

// curl is the download by curl; nil where there is none.
func (r *region) curl(ctx context.Context) (*figures, error) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		return nil, nil //nolint:nilerr // it is a comparison that one can do without
	}
	f, _, err := r.download(ctx, func(url, at string) ([]string, error) {
		args := []string{curl, "--silent", "--show-error", "--fail", "--range", "0-", "--output", at, url}
		if r.transport == plain {
			return args, nil
		}
		dir, err := r.certs("client")
		// Our certificates name roles and no hosts, so that curl cannot check the server's.
		return append(args, "--insecure", "--cert", filepath.Join(dir, "tls.crt"), "--key", filepath.Join(dir, "tls.key")), err
	})
	return &f, err
}

// digest is what hashing the whole costs, CPU seconds a GiB.
func (r *region) digest(ctx context.Context) (float64, error) {
	cpu, stdout, err := r.used(ctx, r.run.self, "hash", r.file)
	if err != nil {
		return 0, err
	}
	_, err = r.check(stdout)
	return r.perGiB(cpu), err
}
