package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/docker/go-units"

	"github.com/shoal-project/shoal/bench/internal/sample"
)

// dirPrefix begins the names of the folders that killed runs leave; the next one removes them.
const dirPrefix = "shoal-bench-node-"

const mtls, plain = "mtls", "plain"

// benchRun is what all runs share.
type benchRun struct {
	flags flags
	dir   string // for everything, removed at the end
	shoal string // the program that is measured
	self  string // this one
	size  int64  // of the model's only file, in bytes
	sum   string // its sha256
}

func bench(ctx context.Context, f flags) (err error) {
	transports := strings.Split(f.transport, ",")
	for _, t := range transports {
		if t != mtls && t != plain {
			return fmt.Errorf("--transport %q: want %s, %s or %s,%s", f.transport, mtls, plain, mtls, plain)
		}
	}
	if f.runs < 1 {
		return fmt.Errorf("--runs %d: want at least 1", f.runs)
	}
	b := &benchRun{flags: f}
	if b.size, err = units.RAMInBytes(f.size); err != nil || b.size < 1<<20 {
		return errors.Join(fmt.Errorf("--size %q: want at least 1MiB", f.size), err)
	}
	if b.shoal, err = filepath.Abs(f.shoal); err != nil {
		return err
	}
	if _, err := os.Stat(b.shoal); err != nil {
		return fmt.Errorf("%w: make build", err)
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	// A name in the abstract namespace of unix(7): one bench on the machine, and nothing left when it ends.
	lock, err := (&net.ListenConfig{}).Listen(ctx, "unix", "@shoal-bench")
	if err != nil {
		return fmt.Errorf("another bench is running, and two would measure each other: %w", err)
	}
	defer lock.Close()
	if b.dir, err = freshDir(cmp.Or(f.dir, "/dev/shm")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sample.Remove(b.dir)) }()
	out := report{Size: b.size, Runs: f.runs, CPUs: runtime.NumCPU()}
	for _, t := range transports {
		r, err := b.play(ctx, t, &out)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		out.Results = append(out.Results, r)
	}
	out.Verified = true
	if err := out.table(os.Stdout); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func freshDir(parent string) (string, error) {
	left, err := filepath.Glob(filepath.Join(parent, dirPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, dir := range left {
		if err := sample.Remove(dir); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(parent, dirPrefix)
}

// play measures everything over one transport, in turns, so that a slow minute of the machine slows all.
func (b *benchRun) play(ctx context.Context, transport string, out *report) (res result, err error) {
	r, err := b.newRegion(ctx, transport)
	if r != nil {
		defer func() { err = errors.Join(err, r.stop()) }()
	}
	if err != nil {
		return res, err
	}
	var shoal, http, curl []figures
	var digest, cpuRatios, speedRatios []float64
	// The memory that a virtual machine touches first is dear, and that which was freed last is taken
	// first: this makes it the same for all that follow.
	if _, err := r.http(ctx); err != nil {
		return res, err
	}
	for i := range b.flags.runs {
		s, err := r.fetch(ctx, i)
		if err != nil {
			return res, err
		}
		h, err := r.http(ctx)
		if err != nil {
			return res, err
		}
		c, err := r.curl(ctx)
		if err != nil {
			return res, err
		}
		d, err := r.digest(ctx)
		if err != nil {
			return res, err
		}
		shoal, http, digest = append(shoal, s), append(http, h), append(digest, d)
		cpuRatios = append(cpuRatios, (s.both()-d)/h.both())
		speedRatios = append(speedRatios, s.MBs/h.MBs)
		if c != nil {
			curl = append(curl, *c)
		}
		fmt.Fprintf(os.Stderr, "%-5s run %d: shoal %.0f MB/s, %.2f + %.2f CPU s/GiB; http %.0f MB/s, %.2f + %.2f\n",
			transport, i+1, s.MBs, s.Sender, s.Receiver, h.MBs, h.Sender, h.Receiver)
	}
	res = result{
		Transport: transport, Shoal: median(shoal), HTTP: median(http),
		CPURatio: middle(cpuRatios), SpeedRatio: middle(speedRatios),
	}
	if len(curl) > 0 {
		c := median(curl)
		res.Curl = &c
	}
	out.Digest = middle(digest)
	return res, nil
}
