// Command fanout measures how fast many nodes get a model: real registry, mirror, tracker and nodes on
// hosts of their own (network namespaces), whose links are shaped both ways. It needs root and iproute2;
// whatever happens to it, nothing of it stays on the machine.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

type flags struct {
	nodes     int
	size      string
	files     int
	rate      string
	scenario  string
	runs      int
	plaintext bool
	baselines bool
	dir       string
	shoal     string
	out       string
	logs      string
	trace     string
	profiles  string
}

// benchRun is what all runs share.
type benchRun struct {
	flags
	dir    string
	self   string
	size   int64
	models []string
	sums   map[string]map[string]string // sha256 of the files by model
	two    bool                         // this scenario carries both
	before marks
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := execute(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fanout:", err)
		code = 1
	}
	os.Exit(code)
}

func execute(ctx context.Context) (code int, err error) {
	var f flags
	root := &cobra.Command{
		Use:   "fanout",
		Short: "Measure how fast many nodes get a model over shaped links",
		Long: "Measure how fast many nodes get a model over shaped links. The last line of stdout is a JSON object.\n\nScenarios:\n" +
			describe(),
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { //nolint:contextcheck // the run inside gets it
			if dir := os.Getenv(inside); dir != "" {
				return bench(cmd.Context(), f, dir)
			}
			var err error
			code, err = isolate(cmd.Context(), cmp.Or(f.dir, os.TempDir()))
			return err
		},
	}
	fl := root.Flags()
	fl.IntVar(&f.nodes, "nodes", 8, "number of nodes")
	fl.StringVar(&f.size, "size", "128MiB", "size of the model")
	fl.IntVar(&f.files, "files", 1, "files of the model")
	fl.StringVar(&f.rate, "rate", "200mbit", "rate of each link, each way, as tc(8) writes it")
	fl.StringVar(&f.scenario, "scenario", "cold", "what to play, or a comma-separated list, or all")
	fl.IntVar(&f.runs, "runs", 1, "runs of each scenario, of which the median is reported")
	fl.BoolVar(&f.plaintext, "plaintext", false, "without TLS between the parts")
	fl.BoolVar(&f.baselines, "baselines", false, "also: every node pulls from the registry, and a ring")
	fl.StringVar(&f.dir, "dir", "", "folder on a disk for the nodes' data, removed at the end (default: memory, as one disk cannot play many)")
	fl.StringVar(&f.shoal, "shoal", "bin/shoal", "the program that is measured")
	fl.StringVar(&f.out, "out", "", "file to which each result is appended as a line of JSON")
	fl.StringVar(&f.logs, "logs", "", "folder for the logs of all programs, a file a host")
	fl.StringVar(&f.trace, "trace", "", "file for what each link carries in MB/s, a line each 100 ms (CSV)")
	fl.StringVar(&f.profiles, "profiles", "", "folder for CPU profiles of mirror, tracker and nodes (go tool pprof)")
	root.AddCommand(registryTool(), getTool(), pourTool(), drainTool())
	return code, root.ExecuteContext(ctx)
}

func describe() string {
	var lines strings.Builder
	for _, s := range scenarios {
		fmt.Fprintf(&lines, "  %-14s %s\n", s.name, s.what)
	}
	return lines.String()
}

// bench runs inside the private namespaces.
func bench(ctx context.Context, f flags, dir string) error {
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
	if b.out == "" {
		return nil
	}
	f, err := os.OpenFile(b.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
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
		size, files := b.size, b.files
		if m == warmUp {
			size, files = 1<<20, 1
		}
		if b.sums[m], err = makeModel(ctx, filepath.Join(b.dir, "models", m), size, files, byte(i)); err != nil {
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
	registryRate := b.rate
	if s.registry > 0 {
		if registryRate, err = scaleRate(b.rate, s.registry); err != nil {
			return res, err
		}
	}
	bed, err := newBed(ctx, b.logs)
	if err != nil {
		return res, err
	}
	r, err := b.newRegion(ctx, bed, registryRate, b.rate)
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
		half, err := scaleRate(b.rate, 0.5)
		if err != nil {
			return res, err
		}
		if err := bed.join(ctx, "a", "b", half); err != nil {
			return res, err
		}
	}
	for i := range b.nodes {
		zone := "a"
		if s.zones && i >= b.nodes/2 {
			zone = "b"
		}
		if _, err := r.addHost(ctx, zone, b.rate); err != nil {
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
	nodes, err := s.play(ctx, r, b.rate, b.nodes)
	if err := errors.Join(err, tracing(), profiled()); err != nil {
		return res, err
	}
	if err := r.measure(ctx, &res, nodes); err != nil {
		return res, err
	}
	res.Scenario, res.Rate, res.Nodes, res.Transport = s.name, b.rate, b.nodes, "mTLS"
	if b.plaintext {
		res.Transport = "none"
	}
	if err := r.verify(ctx, b.carried(), nodes); err != nil {
		return res, err
	}
	res.Verified = true
	return res, nil
}

// baselines measures what the links carry without Shoal: all nodes read from the registry, and each
// node reads from the one before it.
func (b *benchRun) baselines(ctx context.Context) (out []baseline, err error) {
	b.two = false
	bed, err := newBed(ctx, b.logs)
	if err != nil {
		return nil, err
	}
	r, err := b.newRegion(ctx, bed, b.rate, b.rate)
	if r != nil {
		defer func() { err = errors.Join(err, r.stop(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return nil, err
	}
	if err := r.push(ctx); err != nil {
		return nil, err
	}
	for range b.nodes {
		if _, err := r.addHost(ctx, "a", b.rate); err != nil {
			return nil, err
		}
	}
	bound, err := r.alone(ctx, r.nodes[0])
	if err != nil {
		return nil, err
	}
	all := make([]got, b.nodes)
	each := func(name string, args func(i int) []string) error {
		group, ctx := errgroup.WithContext(ctx)
		for i, n := range r.nodes {
			group.Go(func() error { return n.host.output(ctx, &all[i], append([]string{b.self}, args(i)...)...) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		last := slices.MaxFunc(all, func(a, b got) int { return int(1e6 * (a.Seconds - b.Seconds)) }).Seconds
		out = append(out, baseline{name, b.nodes, last, last / bound})
		return nil
	}
	err = each("every node from the registry", func(i int) []string {
		dir := filepath.Join(r.dir, "pull", strconv.Itoa(i))
		_ = os.MkdirAll(dir, 0o755) // get says what is wrong with it
		return []string{"get", r.reference("one"), dir}
	})
	if err != nil {
		return nil, err
	}
	for _, n := range r.nodes {
		p, err := n.host.startTool(ctx, "pour", b.self, "pour", n.host.ip+":7000")
		if err != nil {
			return nil, err
		}
		defer p.kill()
	}
	err = each("a ring, no checks and no disk", func(i int) []string {
		from := r.nodes[(i+1)%len(r.nodes)]
		return []string{"drain", from.host.ip + ":7000", strconv.FormatInt(b.size, 10)}
	})
	return out, err
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
