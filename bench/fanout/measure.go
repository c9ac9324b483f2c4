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
	err := n.host.output(ctx, &g, append(args, dir)...)
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

// mark notes the counts of now.
func (r *region) mark(ctx context.Context) (err error) {
	m := marks{
		origin: map[string]int64{}, received: map[string]int64{}, lost: map[string]int64{}, rx: map[string]int64{},
		cpu: map[string]float64{},
	}
	for _, n := range r.nodes {
		if err := n.count(ctx, &m); err != nil {
			return err
		}
	}
	if m.registry, err = r.registrySent(ctx); err != nil {
		return err
	}
	if m.mirror, err = r.mirror.metric(ctx, "shoal_mirror_sent_bytes_total"); err != nil {
		return err
	}
	if m.mirrorCPU, err = r.mirror.cpu(); err != nil {
		return err
	}
	if r.bed.thin != "" {
		if m.thin, err = counter(r.bed.thin, "tx_bytes"); err != nil {
			return err
		}
	}
	r.run.before = m
	return nil
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
		if c.into[n.name], err = n.metric(ctx, c.name); err != nil {
			return err
		}
	}
	if m.rx[n.name], err = counter(n.host.port, "tx_bytes"); err != nil {
		return err
	}
	m.cpu[n.name], err = n.cpu()
	return err
}

func (r *region) registrySent(ctx context.Context) (int64, error) {
	raw, err := r.registry.get(ctx, "/sent")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

// maxLinkOverhead is by how much what the links carried may differ from the body bytes that the
// programs counted before the bench distrusts itself.
const maxLinkOverhead = 0.07

// measure fills in what happened since the mark. The times are those of nodes; bytes are of all.
func (r *region) measure(ctx context.Context, res *result, nodes []*node) error {
	before, models := r.run.before, r.run.carried()
	total := float64(r.run.bytes())
	var times []float64
	for _, n := range nodes {
		t, ok := n.took(models)
		if !ok {
			return fmt.Errorf("%s has not finished", n.name)
		}
		times = append(times, t)
	}
	slices.Sort(times)
	rate, err := bytesPerSecond(r.run.rate)
	if err != nil {
		return err
	}
	res.Size, res.SizeOverRate = r.run.bytes(), total/rate
	res.FirstS, res.MedianS, res.LastS = times[0], times[len(times)/2], times[len(times)-1]
	res.Ratio = res.LastS / res.BoundS

	now := marks{
		origin: map[string]int64{}, received: map[string]int64{}, lost: map[string]int64{}, rx: map[string]int64{},
		cpu: map[string]float64{},
	}
	var body, lost, links int64
	var cpu float64
	for _, n := range r.nodes {
		if err := n.count(ctx, &now); err != nil {
			return err
		}
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
	sent, err := r.registrySent(ctx)
	if err != nil {
		return err
	}
	res.OriginCopies = float64(sent-before.registry) / total
	if sent, err = r.mirror.metric(ctx, "shoal_mirror_sent_bytes_total"); err != nil {
		return err
	}
	res.MirrorCopies = float64(sent-before.mirror) / total
	mirrorCPU, err := r.mirror.cpu()
	if err != nil {
		return err
	}
	res.CPUMirror = (mirrorCPU - before.mirrorCPU) / gib
	res.RSSAnonMiB = float64(r.peak) / (1 << 20)
	res.RSSMirrorMiB = float64(r.mirror.anonymous()) / (1 << 20)
	if r.bed.thin != "" {
		thin, err := counter(r.bed.thin, "tx_bytes")
		if err != nil {
			return err
		}
		res.ThinCopies = float64(thin-before.thin) / total
	}
	if res.LinkOverhead > maxLinkOverhead || res.LinkOverhead < 0 {
		return fmt.Errorf("the nodes' links carried %.1f %% more than the %d body bytes that the nodes counted: one of the two is wrong",
			100*res.LinkOverhead, body)
	}
	return nil
}
