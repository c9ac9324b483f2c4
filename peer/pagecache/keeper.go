package pagecache

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Tree is a folder that is measured, and kept resident where Keep says so.
type Tree struct {
	Name     string // in metrics
	Dir      string
	Keep     bool
	Priority int // higher ones get the budget first
}

// KeeperConfig says what a Keeper looks after.
type KeeperConfig struct {
	// Trees are asked for before every round, in the order in which they get the budget.
	Trees func() []Tree
	// Budget is how many bytes all kept trees together may have resident; 0 means what Room says.
	// Reserve, Parallel and Wait are as in Config.
	Budget, Reserve int64
	Parallel        int
	Wait            func(ctx context.Context, n int) error
	// Every is the time between rounds; 0 means 10 s.
	Every time.Duration
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

// State is what the Keeper last measured of a tree.
type State struct {
	Resident, Total int64  // bytes
	Read            int64  // bytes that were read for it, all in all
	Stopped         string // as in Result
}

// Keeper measures trees and reads again what the kernel dropped of them.
type Keeper struct {
	cfg KeeperConfig
	log *slog.Logger

	mu     sync.Mutex
	states map[string]State // by Dir
	names  map[string]string
}

// maxEvery bounds the wait between rounds whose pages do not stay.
const maxEvery = 5 * time.Minute

// NewKeeper prepares a Keeper; Run does its work.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Every <= 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{cfg: cfg, log: cfg.Logger, states: map[string]State{}, names: map[string]string{}}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{k}); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// State returns what was last measured of the tree in dir.
func (k *Keeper) State(dir string) (State, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.states[dir]
	return s, ok
}

// Run works until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	wait := k.cfg.Every
	timer := time.NewTimer(0)
	defer timer.Stop()
	var lost int // rounds in a row whose pages did not stay
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		again := k.round(ctx)
		switch {
		case !again:
			lost, wait = 0, k.cfg.Every
		case lost >= 1:
			if wait == k.cfg.Every {
				k.log.Warn("the kernel drops what is kept warm: memory is short; it is read again less often")
			}
			wait = min(2*wait, maxEvery)
			lost++
		default:
			lost++
		}
		timer.Reset(wait)
	}
}

// round looks at every tree once. It reports whether most of what was read in the round before is
// gone again.
func (k *Keeper) round(ctx context.Context) (thrash bool) {
	seen := map[string]bool{}
	left := k.cfg.Budget
	for _, t := range k.cfg.Trees() {
		if ctx.Err() != nil {
			return false
		}
		seen[t.Dir] = true
		old, known := k.State(t.Dir)
		s, err := k.look(ctx, t, old, left)
		if err != nil {
			if ctx.Err() == nil {
				k.log.Warn("a model's residency is not known", "model", t.Name, "err", err)
			}
			continue
		}
		if read := s.Read - old.Read; known && t.Keep && old.Resident > 0 && read > old.Resident/2 {
			thrash = true
		}
		if s.Stopped != "" && s.Stopped != old.Stopped {
			k.log.Warn("a model is not resident as a whole", "model", t.Name, "why", s.Stopped)
		}
		if t.Keep && k.cfg.Budget > 0 {
			left = max(1, left-s.Resident)
		}
		k.mu.Lock()
		k.states[t.Dir], k.names[t.Dir] = s, t.Name
		k.mu.Unlock()
	}
	k.mu.Lock()
	maps.DeleteFunc(k.states, func(dir string, _ State) bool { return !seen[dir] })
	maps.DeleteFunc(k.names, func(dir string, _ string) bool { return !seen[dir] })
	k.mu.Unlock()
	return thrash
}

func (k *Keeper) look(ctx context.Context, t Tree, old State, budget int64) (State, error) {
	if !t.Keep {
		files, err := Residency(ctx, t.Dir)
		resident, total := Sum(files)
		return State{Resident: resident, Total: total, Read: old.Read}, err
	}
	result, err := Warm(ctx, t.Dir, Config{Budget: budget, Reserve: k.cfg.Reserve, Parallel: k.cfg.Parallel, Wait: k.cfg.Wait})
	return State{Resident: result.Resident, Total: result.Total, Read: old.Read + result.Read, Stopped: result.Stopped}, err
}

// collector shows the Keeper's states.
type collector struct{ k *Keeper }

var (
	residentDesc = prometheus.NewDesc("shoal_pagecache_resident_bytes", "Bytes of a model's files in the page cache.", []string{"model"}, nil)
	sizeDesc     = prometheus.NewDesc("shoal_pagecache_model_bytes", "Bytes of a model's files.", []string{"model"}, nil)
	readDesc     = prometheus.NewDesc("shoal_pagecache_read_bytes_total", "Bytes that were read because they were missing from the page cache.", []string{"model"}, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- residentDesc
	ch <- sizeDesc
	ch <- readDesc
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	sum := map[string]State{}
	for dir, s := range c.k.states {
		name := c.k.names[dir]
		t := sum[name] // versions of one model may have one name
		sum[name] = State{Resident: t.Resident + s.Resident, Total: t.Total + s.Total, Read: t.Read + s.Read}
	}
	for name, s := range sum {
		ch <- prometheus.MustNewConstMetric(residentDesc, prometheus.GaugeValue, float64(s.Resident), name)
		ch <- prometheus.MustNewConstMetric(sizeDesc, prometheus.GaugeValue, float64(s.Total), name)
		ch <- prometheus.MustNewConstMetric(readDesc, prometheus.CounterValue, float64(s.Read), name)
	}
}
