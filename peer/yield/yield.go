package yield

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	// Unlimited is the limit in bytes a second that stands for none; the package comment says why
	// it is not rate.Inf.
	Unlimited = 1 << 40
	// DefaultFloor is 1 MiB/s: a GiB in 17 minutes, less than 1 % of a CPU for hashing it.
	DefaultFloor = 1 << 20
	// DefaultEvery is a quarter of a second: at 200 requests a second a pod has served 50 until
	// the first reaction, and the counters' microseconds still make a share exact to 1 %.
	DefaultEvery = 250 * time.Millisecond
	// Burst is what a limiter lets through at once: 1 MiB, the longest BitTorrent request that
	// the library serves, which asks for the tokens of a whole request.
	Burst = 1 << 20
	// grain is what the Wait functions take at once, so that the waits at a low limit are short
	// and a limit that rises is soon felt.
	grain = 128 << 10
)

// DefaultTargets are the shares of time that pods may stall beyond their own stalls. Waits for the
// CPU are short and many: a server of 200 requests a second whose slowest hundredth became five
// times slower beside a transfer stalled 5 % of the time more. A wait for the disk belongs to a
// request that was going to be slow. Pods that stall on memory read back their own pages, which
// slows all of their requests.
func DefaultTargets() Stalls { return Stalls{CPU: 0.03, IO: 0.05, Memory: 0.02} }

// Config says what a Governor obeys. The zero value yields to the pods of this node.
type Config struct {
	// MaxDownload and MaxUpload are bytes a second; 0 means no limit of its own.
	MaxDownload, MaxUpload int64
	// Floor is the least that a limit is lowered to, in bytes a second. 0 means DefaultFloor.
	Floor int64
	// Disable leaves the limits at MaxDownload and MaxUpload whatever the pods stall.
	Disable bool
	// YieldTo are further cgroup directories (v2) whose stalls count, beside the pods' own.
	YieldTo []string
	// Last makes Run put the threads of this process behind those that serve, in the lines for a CPU
	// and the disk, as long as that leaves it anything. It is for a daemon that does nothing else.
	Last bool
	// Source replaces the pods' cgroups, YieldTo and the canary.
	Source Source
	// Every is the time between two samples. 0 means DefaultEvery.
	Every time.Duration
	// Targets are the shares of time that pods may stall on our account; a value of 0 means that
	// of DefaultTargets.
	Targets Stalls
	// Moved returns the bytes that were downloaded and uploaded so far without the Wait
	// functions, as the BitTorrent library does, which takes the limiters themselves. It is called
	// once a period. nil means none.
	Moved func() (downloaded, uploaded int64)
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

// Governor holds the limits of a node. All methods may be called from several goroutines.
type Governor struct {
	cfg      Config
	log      *slog.Logger
	max      rates
	limiters [directions]*rate.Limiter
	passed   [directions]atomic.Int64
	groups   *groups
	canary   *canary

	mu   sync.Mutex
	last Pressure
}

// New checks the configuration. The limiters work at once, the back-off while Run runs.
func New(cfg Config) (*Governor, error) {
	switch {
	case cfg.MaxDownload < 0 || cfg.MaxUpload < 0 || cfg.Floor < 0:
		return nil, errors.New("yield: a limit is negative; 0 means none")
	case cfg.Every < 0:
		return nil, errors.New("yield: the period is negative")
	}
	if cfg.Floor == 0 {
		cfg.Floor = DefaultFloor
	}
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	for i, byDefault := range DefaultTargets() {
		switch t := cfg.Targets[i]; {
		case t == 0:
			cfg.Targets[i] = byDefault
		case t < 0 || t > 1 || math.IsNaN(t):
			return nil, fmt.Errorf("yield: the target for %s is %v, not a share between 0 and 1", Resource(i), t)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Governor{cfg: cfg, log: cfg.Logger, max: rates{ownLimit(cfg.MaxDownload), ownLimit(cfg.MaxUpload), Unlimited}}
	for d := range g.limiters {
		g.limiters[d] = rate.NewLimiter(rate.Limit(g.max[d]), Burst)
	}
	g.last = Pressure{Disabled: cfg.Disable, Limits: g.max.limits()}
	if cfg.Source == nil && !cfg.Disable {
		var err error
		if g.groups, err = newGroups(podGroups, cfg.YieldTo); err != nil {
			return nil, err
		}
		g.canary = newCanary()
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(newCollector(g)); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func ownLimit(n int64) float64 {
	if n <= 0 || n > Unlimited {
		return Unlimited
	}
	return float64(n)
}

// Run follows the pressure until ctx ends, once.
func (g *Governor) Run(ctx context.Context) error {
	if g.cfg.Disable {
		<-ctx.Done()
		return nil
	}
	line := g.lineUp()
	group, ctx := errgroup.WithContext(ctx)
	if g.canary != nil {
		group.Go(func() error {
			if err := g.canary.Run(ctx); err != nil {
				// A node whose pods can be asked does not need it.
				g.log.Info("no canary measures the CPU", "err", err)
			}
			return nil
		})
	}
	group.Go(func() error {
		g.follow(ctx, line)
		return nil
	})
	return group.Wait()
}

// lineUp puts the process's threads last, or where they cannot come back from there, at nice. It
// returns nil where they stay where they are put.
func (g *Governor) lineUp() *line {
	if !g.cfg.Last {
		return nil
	}
	to, l := placeLast, newLine(g.cfg.Every)
	if err := mayReturn(); err != nil {
		to, l = placeNice, nil
		g.log.Info("the process does not stand last in line for the CPU: it could not leave when nothing is left there (this needs CAP_SYS_NICE)", "err", err)
	}
	if err := setThreads(to, 0); err != nil {
		g.log.Info("the process keeps its priority", "err", err)
		return nil
	}
	return l
}

// move puts the threads where the line says.
func (g *Governor) move(l *line, elapsed time.Duration) {
	was := l.place
	to := l.step(elapsed)
	if to == was {
		return
	}
	if to == placeNice {
		g.log.Info("serving threads leave no CPU time at all: the process takes a ninth of theirs", "for", lastAgain)
	}
	var canary int
	if g.canary != nil {
		canary = g.canary.thread()
	}
	if err := setThreads(to, canary); err != nil {
		g.log.Warn("the process keeps its priority", "err", err)
	}
}

// follow takes samples.
func (g *Governor) follow(ctx context.Context, l *line) {
	if g.groups != nil {
		defer g.groups.Close()
	}
	c := newController(g.cfg.Targets, g.max, float64(g.cfg.Floor))
	defer g.apply(g.max) // else a transfer that outlives Run keeps the last limit
	ticker := time.NewTicker(g.cfg.Every)
	defer ticker.Stop()
	before, last := g.moved(), time.Now()
	blind := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, total := time.Now(), g.moved()
		elapsed := now.Sub(last)
		if elapsed <= 0 {
			continue
		}
		if l != nil {
			g.move(l, elapsed)
		}
		s := sample{elapsed: elapsed}
		for d := range s.moved {
			s.moved[d] = float64(max(0, total[d]-before[d])) / elapsed.Seconds()
		}
		last, before = now, total
		stalls, witness, err := g.stalls(elapsed)
		if (err != nil) != blind {
			if blind = err != nil; blind {
				g.log.Info("nothing tells how much the pods stall: transfers do not yield", "err", err)
			}
		}
		s.stalls = stalls // zeros after an error: what is slowed becomes free again
		g.apply(c.step(s))
		g.note(c, witness, blind)
	}
}

// stalls asks the pods, or where there are none the canary.
func (g *Governor) stalls(elapsed time.Duration) (Stalls, string, error) {
	if g.cfg.Source != nil {
		s, err := g.cfg.Source.Stalls(elapsed)
		return s, witnessPods, err
	}
	s, err := g.groups.Stalls(elapsed)
	if !errors.Is(err, ErrNoPressure) {
		g.canary.rest()
		return s, witnessPods, err
	}
	s, err = g.canary.Stalls(elapsed)
	return s, witnessCanary, err
}

// moved returns all bytes so far.
func (g *Governor) moved() (n [directions]int64) {
	for d := range n {
		n[d] = g.passed[d].Load()
	}
	if g.cfg.Moved != nil {
		down, up := g.cfg.Moved()
		n[download] += down
		n[upload] += up
	}
	return n
}

func (g *Governor) apply(limits rates) {
	for d, l := range limits {
		if g.limiters[d].Limit() != rate.Limit(l) {
			g.limiters[d].SetLimit(rate.Limit(l))
		}
	}
}

// note keeps what Pressure tells and logs when slowing begins and ends.
func (g *Governor) note(c *controller, witness string, blind bool) {
	p := Pressure{
		Slowed: c.phase != phaseOpen, Blind: blind, Stalls: c.smoothed, Own: c.base,
		Limits: c.limits.limits(), Cause: c.cause, Witness: witness,
	}
	g.mu.Lock()
	was := g.last.Slowed
	g.last = p
	g.mu.Unlock()
	switch {
	case p.Slowed && !was:
		g.log.Info("transfers yield to the pods", "state", p.String())
	case !p.Slowed && was:
		g.log.Info("transfers are free again")
	}
}

// Download returns the limiter of what is read from peers and mirrors, in bytes. It lives as long
// as the Governor.
func (g *Governor) Download() *rate.Limiter { return g.limiters[download] }

// Upload returns the limiter of what is sent to peers, in bytes.
func (g *Governor) Upload() *rate.Limiter { return g.limiters[upload] }

// WaitDownload waits until n bytes may be downloaded, and counts them. It returns ctx's error, or
// the limiter's where ctx would end before. n may exceed Burst.
func (g *Governor) WaitDownload(ctx context.Context, n int) error { return g.wait(ctx, download, n) }

// WaitUpload is WaitDownload for bytes sent.
func (g *Governor) WaitUpload(ctx context.Context, n int) error { return g.wait(ctx, upload, n) }

// Background waits until n bytes of the disk may be read for work that nobody waits for, such as
// warming the page cache and hashing again what is stored. It yields most.
func (g *Governor) Background(ctx context.Context, n int) error { return g.wait(ctx, background, n) }

func (g *Governor) wait(ctx context.Context, d direction, n int) error {
	for n > 0 {
		part := min(n, grain)
		if err := g.limiters[d].WaitN(ctx, part); err != nil {
			return err
		}
		g.passed[d].Add(int64(part))
		n -= part
	}
	return ctx.Err()
}
