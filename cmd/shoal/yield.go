package main

import (
	"sync/atomic"

	"github.com/spf13/pflag"

	"github.com/shoal-project/shoal/peer/yield"
	"github.com/shoal-project/shoal/swarm"
)

// yieldFlags say how much of the node transfers may take.
type yieldFlags struct {
	download, upload string
	off              bool
	to               []string

	moved atomic.Pointer[swarm.Client] // what counts BitTorrent's bytes, once it runs
}

func (f *yieldFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.download, "max-download", "0", "bytes a second that the node receives at most, such as 200MiB; 0 is no limit")
	fl.StringVar(&f.upload, "max-upload", "0", "bytes a second that the node sends to others at most; 0 is no limit")
	fl.BoolVar(&f.off, "no-yield", false, "keep the speed and the priority also while pods wait for CPU, disk or memory")
	fl.StringArrayVar(&f.to, "yield-to", nil, "cgroup (v2) directory of other services to which transfers yield, beside the pods'; may be given again")
}

// governor makes the node's limits, and lowers the process's own priority.
func (f *peerFlags) governor() (*yield.Governor, error) {
	y := &f.yield
	cfg := yield.Config{Disable: y.off, YieldTo: y.to, Last: true, Registerer: f.metrics, Logger: f.log}
	var err error
	if cfg.MaxDownload, err = bytesFlag("max-download", y.download); err != nil {
		return nil, err
	}
	if cfg.MaxUpload, err = bytesFlag("max-upload", y.upload); err != nil {
		return nil, err
	}
	cfg.Moved = func() (int64, int64) {
		if c := y.moved.Load(); c != nil {
			return c.Moved()
		}
		return 0, 0
	}
	return yield.New(cfg)
}
