package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shoal-project/shoal/internal/probe"
)

// marks are counts from which those of the measured work are taken.
type marks struct {
	registry, mirror           int64
	mirrorCPU                  float64
	thin                       int64
	origin, received, lost, rx map[string]int64
	cpu                        map[string]float64
}

// alone is the bound: seconds that one node takes for the models by plain HTTP from the registry.
func (r *region) alone(ctx context.Context, n *node) (float64, error) {
	dir := filepath.Join(r.dir, "alone")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	args := []string{r.run.self, "get"}
	for _, m := range r.run.carried() {
		args = append(args, r.reference(m))
	}
	var g got
	err := n.host.Output(ctx, &g, append(args, dir)...)
	return g.Seconds, err
}

// graceTime is longer than the tracker grants nothing after its start because nodes may hold leases of
// a tracker before it. A region's tracker was not started a moment ago.
const graceTime = 7 * time.Second

// settle brings the warm-up model to all nodes and lets the tracker's start pass.
func (r *region) settle(ctx context.Context) error {
	over := time.NewTimer(graceTime)
	defer over.Stop()
	if err := r.desire(ctx, []string{warmUp}, nil); err != nil {
		return err
	}
	if err := r.await(ctx, []string{warmUp}, r.nodes...); err != nil {
		return err
	}
	select {
	case <-over.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mark makes the counts of now those from which measure counts.
func (r *region) mark(ctx context.Context) (err error) {
	r.before, err = r.count(ctx)
	return err
}

// count reads all counts.
func (r *region) count(ctx context.Context) (m marks, err error) {
	m = marks{
		origin: map[string]int64{}, received: map[string]int64{}, lost: map[string]int64{}, rx: map[string]int64{},
		cpu: map[string]float64{},
	}
	for _, n := range r.nodes {
		if err := n.count(ctx, &m); err != nil {
			return m, err
		}
	}
	sent, err := r.registry.Get(ctx, "/sent")
	if err != nil {
		return m, err
	}
	if m.registry, err = strconv.ParseInt(strings.TrimSpace(string(sent)), 10, 64); err != nil {
		return m, err
	}
	if m.mirror, err = r.mirror.Metric(ctx, "shoal_mirror_sent_bytes_total"); err != nil {
		return m, err
	}
	if m.mirrorCPU, err = r.mirror.CPU(); err != nil {
		return m, err
	}
	if r.bed.thin != "" {
		m.thin, err = counter(r.bed.thin, "tx_bytes")
	}
	return m, err
}

func (n *node) count(ctx context.Context, m *marks) (err error) {
	for _, c := range []struct {
		into map[string]int64
		name string
	}{
		{m.origin, "shoal_peer_origin_bytes_total"},
		{m.received, "shoal_peer_received_bytes_total"},
		{m.lost, "shoal_peer_wasted_bytes_total"},
	} {
		if c.into[n.name], err = n.Metric(ctx, c.name); err != nil {
			return err
		}
	}
	// The processor time that this takes is the node's too.
	if err := n.AwaitChecked(ctx); err != nil {
		return err
	}
	if m.rx[n.name], err = counter(n.host.port, "tx_bytes"); err != nil {
		return err
	}
	m.cpu[n.name], err = n.CPU()
	return err
}

// cpuTimes returns how much the machine's CPUs have worked since it started, and how long they were there, in
// ticks of all of them (proc_stat(5)). What the hypervisor took away counts as work.
func cpuTimes() (used, all float64, err error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	words := strings.Fields(line)
	if len(words) < 9 || words[0] != "cpu" {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	for i, word := range words[1:9] { // the guests' times behind them are in the first two
		ticks, err := strconv.ParseFloat(word, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", err)
		}
		all += ticks
		if i != 3 && i != 4 { // idle, iowait
			used += ticks
		}
	}
	return used, all, nil
}

// maxLinkOverhead is by how much what the links carried may differ from the body bytes that the
// programs counted before the bench distrusts itself.
const maxLinkOverhead = 0.07

// measure fills in what happened since the mark. The times are those of nodes; bytes are of all.
func (r *region) measure(ctx context.Context, res *result, nodes []*node) error {
	before, models := r.before, r.run.carried()
	total := float64(r.run.bytes())
	var times []float64
	for _, n := range nodes {
		t, ok := n.Took(models)
		if !ok {
			return fmt.Errorf("%s has not finished", n.name)
		}
		times = append(times, t)
	}
	slices.Sort(times)
	rate, err := bytesPerSecond(r.run.flags.rate)
	if err != nil {
		return err
	}
	res.Size, res.SizeOverRate = r.run.bytes(), total/rate
	res.FirstS, res.MedianS, res.LastS = times[0], times[len(times)/2], times[len(times)-1]
	res.Ratio = res.LastS / res.BoundS

	now, err := r.count(ctx)
	if err != nil {
		return err
	}
	var body, lost, links int64
	var cpu float64
	for _, n := range r.nodes {
		origin := now.origin[n.name] - before.origin[n.name]
		res.Shares = append(res.Shares, origin)
		body += origin + now.received[n.name] - before.received[n.name]
		lost += now.lost[n.name] - before.lost[n.name]
		links += now.rx[n.name] - before.rx[n.name]
		cpu += now.cpu[n.name] - before.cpu[n.name]
	}
	gib := total / (1 << 30)
	res.DuplicateRatio = float64(lost) / float64(max(body, 1))
	res.CPUNode = cpu / gib / float64(len(r.nodes))
	res.LinkOverhead = float64(links)/float64(max(body, 1)) - 1
	res.OriginCopies = float64(now.registry-before.registry) / total
	res.MirrorCopies = float64(now.mirror-before.mirror) / total
	res.CPUMirror = (now.mirrorCPU - before.mirrorCPU) / gib
	res.ThinCopies = float64(now.thin-before.thin) / total
	mirrorMemory, err := probe.Anonymous(r.mirror.Pid())
	if err != nil {
		return err
	}
	res.RSSAnonMiB = float64(r.peak) / (1 << 20)
	res.RSSMirrorMiB = float64(mirrorMemory) / (1 << 20)
	if res.LinkOverhead > maxLinkOverhead || res.LinkOverhead < 0 {
		return fmt.Errorf("the nodes' links carried %.1f %% more than the %d body bytes that the nodes counted: one of the two is wrong",
			100*res.LinkOverhead, body)
	}
	return nil
}
