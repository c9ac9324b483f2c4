package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/bench/internal/sample"
)

// benchRun is what all runs share.
type benchRun struct {
	flags  flags
	dir    string // for everything, removed at the end
	shoal  string // the program that is measured
	self   string // this one
	size   int64  // of a model, in bytes
	models []string
	sums   map[string]map[string]string // sha256 of the files by model
	two    bool                         // this scenario carries both
}

// bench runs inside the private namespaces.
func bench(ctx context.Context, f flags, dir string) error {
	if os.Getpid() != 1 { // the mounts of settle would be those of the machine
		return fmt.Errorf("%s is set, which is for the bench's own process: unset it", inside)
	}
	if err := settle(); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if f.dir == "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=90%"); err != nil {
			return fmt.Errorf("memory for the nodes' data: %w", err)
		}
	}
	b := &benchRun{flags: f, dir: dir, sums: map[string]map[string]string{}}
	var err error
	if b.size, err = units.RAMInBytes(f.size); err != nil {
		return err
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
	chosen, err := choose(f.scenario)
	if err != nil {
		return err
	}
	if err := b.makeModels(ctx, chosen); err != nil {
		return err
	}
	var all []result
	var bases []baseline
	for _, s := range chosen {
		var runs []result
		for range f.runs {
			r, err := b.play(ctx, s)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			runs = append(runs, r)
			fmt.Fprintf(os.Stderr, "%-14s ratio %.3f, mirror %.3f, last %.2f s\n", s.name, r.Ratio, r.MirrorCopies, r.LastS)
		}
		all = append(all, median(runs))
	}
	if f.baselines {
		if bases, err = b.baselines(ctx); err != nil {
			return err
		}
		for _, x := range bases {
			fmt.Printf("%s, %d nodes: %.2f s, %.2f x the bound\n", x.Name, x.Nodes, x.LastS, x.Ratio)
		}
	}
	if err := table(os.Stdout, all); err != nil {
		return err
	}
	if err := b.keep(all, bases); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(all[len(all)-1])
}

// keep appends the results to the file of --out.
func (b *benchRun) keep(all []result, bases []baseline) (err error) {
	if b.flags.out == "" {
		return nil
	}
	f, err := os.OpenFile(b.flags.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	lines := json.NewEncoder(f)
	for _, r := range all {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	for _, r := range bases {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

func choose(names string) ([]scenario, error) {
	if names == "all" {
		return scenarios, nil
	}
	var out []scenario
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no scenario %q; there are\n%s", name, describe())
		}
		out = append(out, scenarios[i])
	}
	return out, nil
}

// warmUp is a small model that every region carries first.
const warmUp = "warm-up"

// makeModels writes the models that the scenarios need.
func (b *benchRun) makeModels(ctx context.Context, chosen []scenario) (err error) {
	b.models = []string{warmUp, "one"}
	if slices.ContainsFunc(chosen, func(s scenario) bool { return s.two }) {
		b.models = append(b.models, "two")
	}
	for i, m := range b.models {
		size, files := b.size, b.flags.files
		if m == warmUp {
			size, files = 1<<20, 1
		}
		write := sample.Make
		if b.flags.sparse {
			write = sample.MakeSparse
		}
		if b.sums[m], err = write(ctx, filepath.Join(b.dir, "models", m), size, files, byte(i)); err != nil {
			return err
		}
	}
	return nil
}

// carried are the models that the scenario carries.
func (b *benchRun) carried() []string {
	if b.two {
		return []string{"one", "two"}
	}
	return []string{"one"}
}

func (b *benchRun) bytes() int64 { return b.size * int64(len(b.carried())) }

// runTime bounds one run.
const runTime = 10 * time.Minute

// play runs a scenario once, the bound first.
func (b *benchRun) play(ctx context.Context, s scenario) (res result, err error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	b.two = s.two
	registryRate := b.flags.rate
	if s.registry > 0 {
		if registryRate, err = scaleRate(b.flags.rate, s.registry); err != nil {
			return res, err
		}
	}
	bed, err := newBed(ctx, b.flags.logs)
	if err != nil {
		return res, err
	}
	r, err := b.newRegion(ctx, bed, registryRate, b.flags.rate)
	if r != nil {
		defer func() { err = errors.Join(err, r.stop(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return res, err
	}
	if err := r.push(ctx); err != nil {
		return res, err
	}
	if s.zones {
		half, err := scaleRate(b.flags.rate, 0.5)
		if err != nil {
			return res, err
		}
		if err := bed.join(ctx, "a", "b", half); err != nil {
			return res, err
		}
	}
	for i := range b.flags.nodes {
		zone := "a"
		if s.zones && i >= b.flags.nodes/2 {
			zone = "b"
		}
		if _, err := r.addHost(ctx, zone, b.flags.rate); err != nil {
			return res, err
		}
	}
	if res.BoundS, err = r.alone(ctx, r.nodes[0]); err != nil {
		return res, err
	}
	for _, n := range r.nodes {
		if err := r.startNode(ctx, n); err != nil {
			return res, err
		}
	}
	if err := r.settle(ctx); err != nil {
		return res, err
	}
	if err := r.mark(ctx); err != nil {
		return res, err
	}
	tracing, err := r.startTrace(ctx)
	if err != nil {
		return res, err
	}
	profiled := r.startProfiles(ctx)
	used, all, err1 := cpuTimes()
	nodes, err := s.play(ctx, r, b.flags.rate, b.flags.nodes)
	usedThen, allThen, err2 := cpuTimes()
	if err := errors.Join(err, err1, err2, tracing(), profiled()); err != nil {
		return res, err
	}
	res.CPUBusy = (usedThen - used) / (allThen - all)
	if err := r.measure(ctx, &res, nodes); err != nil {
		return res, err
	}
	res.Scenario, res.Rate, res.Nodes, res.Transport = s.name, b.flags.rate, b.flags.nodes, "mTLS"
	res.Commit, res.Machine = revision, machine()
	if b.flags.plaintext {
		res.Transport = "none"
	}
	if err := r.verify(ctx, b.carried(), nodes); err != nil {
		return res, err
	}
	res.Verified = true
	return res, nil
}

var ratePattern = regexp.MustCompile(`^([0-9.]+)(k|m|g)bit$`)

// bytesPerSecond understands the rates of tc that the bench is given.
func bytesPerSecond(rate string) (float64, error) {
	m := ratePattern.FindStringSubmatch(rate)
	if m == nil {
		return 0, fmt.Errorf("rate %q: want kbit, mbit or gbit, such as 200mbit", rate)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	return n * map[string]float64{"k": 1e3, "m": 1e6, "g": 1e9}[m[2]] / 8, err
}
