// Command sim plays the distribution of a large model to many more nodes than one machine can hold, in
// virtual time. The tracker in it is the product's own handler, with its leases, expiry, grace and choice
// of peers, called without a network. Nodes, links and the torrent library's piece choice are models of
// what swarm.Session and the library do. Each run plays the bench's own measured runs first and prints
// how far the simulation is from them.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

type flags struct {
	nodes, zones, racks int
	bytes               string
	layers, played      int
	rate                string
	mirrorRate          string
	registryRate        string
	zoneRate            string
	latency             time.Duration
	cores, cpu          float64
	every               time.Duration
	slow                int
	lost                float64
	blocks              bool
	calibrate           bool
	measured            string
	seed                uint64
}

func main() {
	if err := command(os.Stdout, os.Stderr).Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

const long = `Play a distribution in virtual time. The last line of stdout is a JSON object.

The tracker is the product's own code; nodes, links and the torrent library are models. Links share
their rate evenly among the connections that have something to send, block by block, and a connection
whose receiver is busy is passed over.

Of a large model only the first layers are played (--played), by all nodes: a node fetches three layers
side by side, each of which is a swarm of its own, so the others repeat what these show. "ratio" and
"origin_copies" are those of the part that was played, with its start and its end, which weigh less in
the whole; "whole_ratio" extrapolates. The lost nodes die within the part that was played. Every second
one is replaced by a new node, which starts cold; "replacement_ratio" is the last such node's, from when
it came.

Not modelled: the time that the library holds its lock, TCP's slow start and loss, disks, machines that
vanish without closing their connections, request stealing, dials between complete nodes, a tracker that
is too busy to answer at once.`

func command(out, progress io.Writer) *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use: "sim", Short: "Play a distribution to a thousand nodes in virtual time", Long: long,
		Example: `  sim                                        1000 nodes, 1 TB, 5 % lost on the way
  sim --calibrate                            only the comparison with what bench/fanout measured
  sim --nodes 100 --bytes 70GB --layers 15 --played 15 --rate 25gbit --lost 0`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error { return play(f, out, progress) },
	}
	fl := c.Flags()
	fl.IntVar(&f.nodes, "nodes", 1000, "number of nodes, all cold and told at once")
	fl.StringVar(&f.bytes, "bytes", "1TB", "size of the model")
	fl.IntVar(&f.layers, "layers", 200, "layers of the model, of one size: a file of 16 MiB or more is a layer")
	fl.IntVar(&f.played, "played", 12, "layers that are played")
	fl.StringVar(&f.rate, "rate", "10gbit", "rate of each node's link, each way, headers included")
	fl.StringVar(&f.mirrorRate, "mirror-rate", "", "rate of the mirror's link (default: a node's)")
	fl.StringVar(&f.registryRate, "registry-rate", "", "rate at which the mirror reads from the registry (default: a node's)")
	fl.StringVar(&f.zoneRate, "zone-rate", "", "rate of each zone's link to the others, each way (default: no limit)")
	fl.IntVar(&f.zones, "zones", 3, "zones; the mirror is in the first")
	fl.IntVar(&f.racks, "racks", 50, "racks, spread over the zones; they decide which peers the tracker names")
	fl.DurationVar(&f.latency, "latency", 200*time.Microsecond, "one way between any two hosts, with the work at both ends")
	fl.Float64Var(&f.cores, "cores", 16, "processors of a node that Shoal may use")
	fl.Float64Var(&f.cpu, "cpu", 5, "processor seconds to receive, verify and pass on a GiB: measured are 2.6 and 0.9 in blocks of 256 KiB without TLS, for which half as much again is assumed")
	fl.Float64Var(&f.lost, "lost", 0.05, "share of the nodes that die on the way")
	fl.DurationVar(&f.every, "every", 0, "time between two nodes' being told (default: all at once)")
	fl.IntVar(&f.slow, "slow", 0, "further nodes with a quarter of the rate, whose times do not count")
	fl.BoolVar(&f.blocks, "blocks", false, "peers send blocks, as the library does, instead of whole pieces: eight times the events")
	fl.BoolVar(&f.calibrate, "calibrate", false, "only compare with the measured runs")
	fl.StringVar(&f.measured, "measured", "", "lines that bench/fanout printed, to compare with (default: those that were built in)")
	fl.Uint64Var(&f.seed, "seed", 1, "seed; the same one gives the same run")
	return c
}

// framing is what the headers add to the bytes of bodies: one node alone needs 1.01 of size/rate in
// bench/fanout, at an MTU of 9000.
const framing = 1.01

// dataCentreQueue is what a port of a switch queues before TCP slows down.
const dataCentreQueue = 5 * time.Millisecond

func (f flags) config() (cfg config, err error) {
	size, err := units.FromHumanSize(f.bytes)
	if err != nil {
		return cfg, fmt.Errorf("bytes: %w", err)
	}
	switch {
	case f.nodes < 1 || f.nodes > 50_000:
		return cfg, errors.New("nodes: want 1 to 50000")
	case f.layers < 1 || size < int64(f.layers):
		return cfg, errors.New("layers: want at least one, of at least one byte")
	case f.lost < 0 || f.lost >= 1:
		return cfg, errors.New("lost: want a share of the nodes, 0 to less than 1")
	case f.cores <= 0 || f.cpu <= 0:
		return cfg, errors.New("cores and cpu have to be more than 0")
	}
	cfg = config{
		Nodes: f.nodes, Zones: f.zones, Racks: f.racks,
		Layers: max(1, min(f.played, f.layers)), LayerBytes: size / int64(f.layers), Parallel: 3, Coarse: !f.blocks,
		Latency: f.latency, Window: dataCentreQueue, Start: startTime,
		CPURate: f.cores * units.GiB / f.cpu, MirrorCost: 1, Every: f.every, Slow: f.slow, Lost: f.lost, Seed: f.seed,
	}
	for _, r := range []struct {
		into *float64
		text string
	}{
		{&cfg.Rate, f.rate},
		{&cfg.MirrorRate, cmp.Or(f.mirrorRate, f.rate)},
		{&cfg.RegistryRate, cmp.Or(f.registryRate, f.rate)},
		{&cfg.ZoneRate, f.zoneRate},
	} {
		if r.text == "" {
			continue
		}
		if *r.into, err = bodyRate(r.text); err != nil {
			return cfg, err
		}
	}
	cfg.LostWithin = spend(cfg.LayerBytes*int64(cfg.Layers), cfg.Rate)
	return cfg, nil
}

// bodyRate is how many bytes of bodies a second a link of the given rate carries.
func bodyRate(text string) (float64, error) {
	for _, u := range []struct {
		unit string
		bits float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}} {
		var n float64
		if _, err := fmt.Sscanf(text, "%g"+u.unit, &n); err == nil && n > 0 {
			return n * u.bits / 8 / framing, nil
		}
	}
	return 0, fmt.Errorf("rate %q: want kbit, mbit or gbit, such as 10gbit", text)
}

func play(f flags, out, progress io.Writer) error {
	cfg, err := f.config()
	if err != nil {
		return err
	}
	lines, err := readMeasured(f.measured)
	if err != nil {
		return err
	}
	trust, err := calibrate(lines, f.seed)
	if err != nil {
		return err
	}
	if err := compare(out, trust.Calibration); err != nil {
		return err
	}
	if f.calibrate {
		return json.NewEncoder(out).Encode(trust)
	}
	r, err := playLarge(f, cfg, progress)
	if err != nil {
		return err
	}
	r.calibration = trust
	var whole string
	if r.WholeRatio > 0 {
		whole = fmt.Sprintf("whole %.3f, ", r.WholeRatio)
	}
	fmt.Fprintf(out, "\n%d of %d layers of %s in pieces of %s, %d nodes at %s, %d lost: ratio %.3f (%sreplacements %.3f), copies %.3f; tracker %.0f messages/s, %.2f cores\n",
		r.Layers, f.layers, units.HumanSize(float64(cfg.LayerBytes)), units.BytesSize(float64(r.PieceBytes)), r.Nodes, r.Rate, r.LostNodes,
		r.Ratio, whole, r.SpareRatio, r.OriginCopies, r.MessagesS, r.TrackerCPU)
	return json.NewEncoder(out).Encode(r)
}

func playLarge(f flags, cfg config, progress io.Writer) (r result, err error) {
	begin := time.Now()
	w, err := newWorld(cfg)
	if err != nil {
		return r, err
	}
	w.report = func(now moment, done float64) {
		fmt.Fprintf(progress, "\r%5.1f %% of the bytes at %7.1f s, %d nodes to go, %.0f s of ours  ",
			100*done, now.Seconds(), w.waiting, time.Since(begin).Seconds())
	}
	err = w.run()
	fmt.Fprintln(progress)
	if err != nil {
		return r, err
	}
	if r, err = w.result(f.layers); err != nil {
		return r, err
	}
	r.Rate, r.WallS = f.rate, time.Since(begin).Seconds()
	return r, nil
}
