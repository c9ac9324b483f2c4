package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/docker/go-units"
)

// measuredLines are what bench/fanout printed, the median run of each size: make bench-fanout with
// ARGS="--runs 3 --out calibration.json" renews them.
//
//go:embed calibration.json
var measuredLines []byte

// measured is what matters here of a line of bench/fanout.
type measured struct {
	Scenario     string  `json:"scenario"`
	Nodes        int     `json:"nodes"`
	Size         int64   `json:"size"`
	Rate         string  `json:"rate"`
	BoundS       float64 `json:"bound_s"`
	Ratio        float64 `json:"ratio"`
	MirrorCopies float64 `json:"mirror_copies"`
	CPUNode      float64 `json:"cpu_s_per_gib_node"`
	CPUMirror    float64 `json:"cpu_s_per_gib_mirror"`
}

// comparison is a measured run beside its simulation.
type comparison struct {
	Nodes           int     `json:"nodes"`
	Rate            string  `json:"rate"`
	MeasuredRatio   float64 `json:"measured_ratio"`
	SimulatedRatio  float64 `json:"simulated_ratio"`
	RatioError      float64 `json:"ratio_error"` // simulated over measured, less one
	MeasuredCopies  float64 `json:"measured_copies"`
	SimulatedCopies float64 `json:"simulated_copies"`
	CopiesError     float64 `json:"copies_error"`
	Within          bool    `json:"within"` // both errors are at most tolerance
}

// calibration says how far to trust the simulation.
type calibration struct {
	Calibration []comparison `json:"calibration"`
	Calibrated  bool         `json:"calibrated"` // all of them are within
}

const (
	// tolerance is by how much a simulated figure may differ from the measured one.
	tolerance = 0.10
	// benchCores is how many processors the machine had that the lines come from, for all hosts together.
	benchCores = 2
	// benchLatency is one way between two namespaces, with a program's wake-up at the end of it. It is an
	// assumption; what waiting for a processor adds is simulated (thinking).
	benchLatency = 200 * time.Microsecond
	// benchQueue is what a shaped link of the bench queues before it drops (bed.go: latency).
	benchQueue = 200 * time.Millisecond
	// startTime is from the order to the first announce: the manifest, the hash layer, a store's folders.
	// It is what the bench's run with one node takes more than its bound.
	startTime = 100 * time.Millisecond
	// calibrationRuns is how many seeds a line is simulated with; their median counts, as in the bench.
	calibrationRuns = 5
)

func readMeasured(file string) (lines []measured, err error) {
	raw := measuredLines
	if file != "" {
		if raw, err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	for d := json.NewDecoder(bytes.NewReader(raw)); ; {
		var m measured
		err := d.Decode(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("measured lines: %w", err)
		}
		if m.Scenario == "cold" {
			lines = append(lines, m)
		}
	}
	if len(lines) == 0 {
		return nil, errors.New("no measured line of the scenario cold: take them from make bench-fanout")
	}
	return lines, nil
}

// benchConfig is the bench's own bed: one machine, whose processors all hosts share.
func benchConfig(m measured) config {
	rate := float64(m.Size) / m.BoundS
	return config{
		Nodes: m.Nodes, Layers: 1, LayerBytes: m.Size, Parallel: 1,
		Rate: rate, MirrorRate: rate, RegistryRate: rate,
		Latency: benchLatency, Window: benchQueue, Start: startTime,
		OneMachine: true, CPURate: benchCores * units.GiB / m.CPUNode, MirrorCost: m.CPUMirror / m.CPUNode,
	}
}

// calibrate simulates each measured line.
func calibrate(lines []measured, seed uint64) (all calibration, err error) {
	all.Calibrated = true
	for _, m := range lines {
		var ratios, copies []float64
		for i := range uint64(calibrationRuns) {
			cfg := benchConfig(m)
			cfg.Seed = seed + i
			w, err := newWorld(cfg)
			if err != nil {
				return all, err
			}
			if err := w.run(); err != nil {
				return all, fmt.Errorf("calibration with %d nodes: %w", m.Nodes, err)
			}
			ratios, copies = append(ratios, w.ratio(false)), append(copies, w.copies())
		}
		slices.Sort(ratios)
		slices.Sort(copies)
		c := comparison{
			Nodes: m.Nodes, Rate: m.Rate,
			MeasuredRatio: m.Ratio, SimulatedRatio: ratios[calibrationRuns/2],
			MeasuredCopies: m.MirrorCopies, SimulatedCopies: copies[calibrationRuns/2],
		}
		c.RatioError, c.CopiesError = c.SimulatedRatio/c.MeasuredRatio-1, c.SimulatedCopies/c.MeasuredCopies-1
		c.Within = math.Abs(c.RatioError) <= tolerance && math.Abs(c.CopiesError) <= tolerance
		all.Calibration = append(all.Calibration, c)
		all.Calibrated = all.Calibrated && c.Within
	}
	return all, nil
}
