package main

import (
	"context"
	"fmt"
	"time"
)

// scenario is one kind of work. It returns the nodes whose times count, all of which end with models.
type scenario struct {
	name  string
	what  string
	two   bool // models at once
	zones bool
	// registry is the registry's share of the nodes' rate; 0 means all of it.
	registry float64
	play     func(ctx context.Context, r *region, rate string, count int) ([]*node, error)
}

var scenarios = []scenario{
	{name: "cold", what: "all nodes at once", play: playCold},
	{name: "staggered", what: "a node every second", play: playStaggered},
	{name: "scale-out", what: "one node has it; then 1, 2, 4, ... more want it, each as the ones before have it (what the mirror still sends counts)", play: playScaleOut},
	{name: "two-models", what: "all nodes at once, two models", two: true, play: playCold},
	{name: "slow-node", what: "all at once, and one more with a quarter of the rate, which does not count", play: playSlowNode},
	{name: "thin-zone", what: "half of the nodes in a zone behind a link of half of the rate", zones: true, play: playCold},
	{name: "lost-node", what: "one more node dies at half, and another one takes its place", play: playLostNode},
	{name: "slow-registry", what: "the registry's uplink has half of the nodes' rate", registry: 0.5, play: playCold},
}

func playCold(ctx context.Context, r *region, _ string, _ int) ([]*node, error) {
	nodes := r.nodes
	if err := r.desire(ctx, r.run.carried(), nil); err != nil {
		return nil, err
	}
	return nodes, r.await(ctx, r.run.carried(), nodes...)
}

func playStaggered(ctx context.Context, r *region, _ string, count int) ([]*node, error) {
	nodes := r.nodes
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range count {
		if err := r.desire(ctx, r.run.carried(), nodes[:i+1]); err != nil {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nodes, r.await(ctx, r.run.carried(), nodes...)
}

// playScaleOut counts all nodes but the first, each from when it was told.
func playScaleOut(ctx context.Context, r *region, _ string, count int) ([]*node, error) {
	models := r.run.carried()
	if err := r.desire(ctx, models, r.nodes[:1]); err != nil {
		return nil, err
	}
	if err := r.await(ctx, models, r.nodes[0]); err != nil {
		return nil, err
	}
	// The mirror stays, since the nodes read the manifest there. What it sends of the layers from now on
	// counts as copies, and there should be none.
	if err := r.mark(ctx); err != nil {
		return nil, err
	}
	done := 1
	for more := 1; done < count; more *= 2 {
		next := r.nodes[done:min(done+more, count)]
		done += len(next)
		if err := r.desire(ctx, models, r.nodes[:done]); err != nil {
			return nil, err
		}
		if err := r.await(ctx, models, next...); err != nil {
			return nil, err
		}
	}
	return r.nodes[1:], nil
}

func playSlowNode(ctx context.Context, r *region, rate string, count int) ([]*node, error) {
	quarter, err := scaleRate(rate, 0.25)
	if err != nil {
		return nil, err
	}
	slow, err := r.addNodes(ctx, 1, "a", quarter)
	if err != nil {
		return nil, err
	}
	counted := r.nodes[:count]
	if err := r.desire(ctx, r.run.carried(), nil); err != nil {
		return nil, err
	}
	if err := r.await(ctx, r.run.carried(), counted...); err != nil {
		return nil, err
	}
	return counted, r.await(ctx, r.run.carried(), slow...)
}

func playLostNode(ctx context.Context, r *region, rate string, count int) ([]*node, error) {
	lost, err := r.addNodes(ctx, 1, "a", rate)
	if err != nil {
		return nil, err
	}
	counted := r.nodes[:count]
	if err := r.desire(ctx, r.run.carried(), nil); err != nil {
		return nil, err
	}
	if err := lost[0].half(ctx, r.run.size); err != nil {
		return nil, err
	}
	lost[0].Kill()
	fresh, err := r.addNodes(ctx, 1, "a", rate)
	if err != nil {
		return nil, err
	}
	r.nodes = append(r.nodes[:count:count], fresh...)
	if err := r.await(ctx, r.run.carried(), counted...); err != nil {
		return nil, err
	}
	return counted, r.await(ctx, r.run.carried(), fresh...)
}

// scaleRate multiplies a rate of tc (200mbit).
func scaleRate(rate string, by float64) (string, error) {
	perSecond, err := bytesPerSecond(rate)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%dkbit", int64(perSecond*8/1000*by)), nil
}
