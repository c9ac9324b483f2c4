package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/shoal-project/shoal/tracker/lease"
)

// result is one simulated distribution. Copies are body bytes over the model's size.
type result struct {
	Nodes int   `json:"nodes"`
	Bytes int64 `json:"bytes"` // of the model
	// Ratio is how long the last of the nodes that were there from the start, and did not die, took over
	// how long one alone would, for the part that was played. A whole model's is lower: its start and end
	// weigh less.
	Ratio        float64 `json:"ratio"`
	OriginCopies float64 `json:"origin_copies"` // sent by the mirror, from which the leases are read
	ImportCopies float64 `json:"import_copies"` // sent by nodes to other zones
	calibration

	SimulatedBytes int64 `json:"simulated_bytes"`
	// WholeRatio extrapolates to all bytes: the last node's time, and for each layer that was not played
	// what a layer took in the second half of the run. 0 where too few were played to tell.
	WholeRatio float64 `json:"whole_ratio,omitempty"`
	// SpareRatio is that of the last node that replaced a lost one, from when it came.
	SpareRatio     float64 `json:"replacement_ratio"`
	BoundS         float64 `json:"bound_s"`
	FirstS         float64 `json:"first_s"`
	MedianS        float64 `json:"median_s"`
	LastS          float64 `json:"last_s"`
	DuplicateRatio float64 `json:"duplicate_ratio"`
	LostNodes      int     `json:"lost_nodes"`
	Replaced       int     `json:"replaced_nodes"`

	Messages      int     `json:"tracker_messages"`
	MessagesS     float64 `json:"tracker_messages_per_s"`
	MessagesPeak  int     `json:"tracker_messages_per_s_max"`
	MessageBytes  int64   `json:"tracker_bytes_per_message"`
	TrackerCPU    float64 `json:"tracker_cpu_cores"` // processor seconds a second in the handler
	TrackerPeak   float64 `json:"tracker_cpu_cores_max"`
	MessageMicros float64 `json:"tracker_cpu_us_per_message"`
	// IdleMessages is what complete nodes will announce a second once all have all layers.
	IdleMessages float64 `json:"tracker_idle_messages_per_s"`
	Leases       leases  `json:"leases"`

	Layers     int     `json:"layers"`
	PieceBytes int64   `json:"piece_bytes"`
	Unit       string  `json:"unit"` // what a peer sends at once
	Rate       string  `json:"rate"`
	Seed       uint64  `json:"seed"`
	Events     uint64  `json:"events"`
	WallS      float64 `json:"wall_s"`
}

// leases are the tracker's counts, summed over the swarms.
type leases struct {
	Granted int `json:"granted"`
	Imports int `json:"imports"`
	Seconds int `json:"seconds"`
	Rescues int `json:"rescues"`
	Lapsed  int `json:"lapsed"`
	Dropped int `json:"dropped"`
	Lost    int `json:"lost"`
}

// times returns how long the live nodes took from when they were told, sorted: those of the start, or
// those that replaced lost ones.
func (w *world) times(spare bool) []time.Duration {
	var all []time.Duration
	for _, n := range w.nodes[firstNode:] {
		if n.host.alive && n.finished > 0 && n.spare == spare && !n.slow {
			all = append(all, n.finished-n.joined)
		}
	}
	slices.Sort(all)
	return all
}

// ratio is how long the last of the nodes took over the bound; 0 where there are none.
func (w *world) ratio(spare bool) float64 {
	all := w.times(spare)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1].Seconds() / w.bound().Seconds()
}

// copies is how often the mirror sent the model.
func (w *world) copies() float64 {
	return float64(w.mirror.host.sent) / float64(w.cfg.LayerBytes*int64(w.cfg.Layers))
}

// wholeRatio extrapolates the ratio to a model of the given number of layers.
func (w *world) wholeRatio(layers int) float64 {
	played := len(w.layers)
	all := w.times(false)
	last := all[len(all)-1].Seconds()
	switch {
	case layers <= played:
		return last / w.bound().Seconds()
	case played < 2*w.cfg.Parallel: // they all end together
		return 0
	}
	// When the median node had a layer: the last one's would be a lost node's replacement.
	at := func(i int) float64 { done := w.layers[i].done; return done[len(done)/2].Seconds() }
	half := played / 2
	each := (at(played-1) - at(half-1)) / float64(played-half)
	bound := w.bound().Seconds() / float64(played)
	return (last + each*float64(layers-played)) / (bound * float64(layers))
}

// result sums up a run.
func (w *world) result(wholeLayers int) (result, error) {
	times := w.times(false)
	body := w.received + w.wasted + w.mirror.host.sent
	seconds := w.now.Seconds()
	r := result{
		Nodes: w.cfg.Nodes, Bytes: w.cfg.LayerBytes * int64(wholeLayers),
		Ratio: w.ratio(false), SpareRatio: w.ratio(true), WholeRatio: w.wholeRatio(wholeLayers), OriginCopies: w.copies(), ImportCopies: float64(w.imported) / float64(w.cfg.LayerBytes*int64(w.cfg.Layers)),
		SimulatedBytes: w.cfg.LayerBytes * int64(w.cfg.Layers),
		BoundS:         w.bound().Seconds(),
		FirstS:         times[0].Seconds(), MedianS: times[len(times)/2].Seconds(), LastS: times[len(times)-1].Seconds(),
		DuplicateRatio: float64(w.wasted) / float64(max(body, 1)),
		LostNodes:      w.lost,
		Messages:       w.tracker.messages, MessagesS: float64(w.tracker.messages) / seconds,
		MessagesPeak:  slices.Max(w.load.messages),
		MessageBytes:  w.tracker.bytes / int64(w.tracker.messages),
		TrackerCPU:    w.tracker.cpu.Seconds() / seconds,
		TrackerPeak:   slices.Max(w.load.cpu).Seconds(),
		MessageMicros: float64(w.tracker.cpu.Microseconds()) / float64(w.tracker.messages),
		IdleMessages:  float64(w.cfg.Nodes*wholeLayers) / lease.DefaultConfig().IdleInterval.Seconds(),
		Layers:        w.cfg.Layers, PieceBytes: w.layers[0].length, Unit: "block", Seed: w.cfg.Seed, Events: w.queue.seq,
	}
	if w.cfg.Coarse {
		r.Unit = "piece"
	}
	for _, n := range w.nodes[firstNode:] {
		if n.spare {
			r.Replaced++
		}
	}
	swarms, err := w.tracker.swarms()
	for _, s := range swarms {
		r.Leases.Granted += s.Granted
		r.Leases.Imports += s.Imports
		r.Leases.Seconds += s.Seconds
		r.Leases.Rescues += s.Rescues
		r.Leases.Lapsed += s.Lapsed
		r.Leases.Dropped += s.Dropped
		r.Leases.Lost += s.Lost
	}
	return r, err
}

// compare prints what the simulation says of the measured runs.
func compare(out io.Writer, all []comparison) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "NODES\tRATE\tRATIO MEASURED\tSIMULATED\tERROR\tCOPIES MEASURED\tSIMULATED\tERROR\tWITHIN 10 %\t")
	for _, c := range all {
		fmt.Fprintf(t, "%d\t%s\t%.3f\t%.3f\t%+.1f %%\t%.3f\t%.3f\t%+.1f %%\t%v\t\n", c.Nodes, c.Rate,
			c.MeasuredRatio, c.SimulatedRatio, 100*c.RatioError,
			c.MeasuredCopies, c.SimulatedCopies, 100*c.CopiesError, c.Within)
	}
	return t.Flush()
}
