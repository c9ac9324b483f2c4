package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

const (
	// joinMin and joinMax bound the wait between tries while the node is alone.
	joinMin, joinMax = 500 * time.Millisecond, 30 * time.Second
	// joinCheck is how often the seeds are looked up again by a node that has company: two halves of
	// a region that lost each other meet again there.
	joinCheck = time.Minute
	// joinAtOnce is how many seeds are tried in a round: each may take TCPTimeout.
	joinAtOnce = 3
)

// joinLoop joins until ctx ends.
func (g *Gossip) joinLoop(ctx context.Context) {
	if len(g.cfg.Join) == 0 {
		return
	}
	wait := joinMin
	var told bool
	for {
		err := g.join(ctx)
		alone := g.list.NumMembers() <= 1
		switch {
		case err != nil && alone && !told:
			g.log.Warn("no other node is reached yet", "err", err)
			told = true
		case !alone && told:
			g.log.Info("other nodes are reached", "members", g.list.NumMembers())
			told = false
		}
		next := joinCheck
		if alone {
			next, wait = wait, min(2*wait, joinMax)
		} else {
			wait = joinMin
		}
		timer := time.NewTimer(next/2 + rand.N(next)) // not all of a fleet at once
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// join tries some of the seeds that are no members yet.
func (g *Gossip) join(ctx context.Context) error {
	seeds, err := g.seeds(ctx)
	members := map[string]bool{}
	for _, m := range g.members.all() {
		members[m.addr] = true
	}
	seeds = slices.DeleteFunc(seeds, func(s string) bool { return members[s] })
	if len(seeds) == 0 {
		return err
	}
	rand.Shuffle(len(seeds), func(i, j int) { seeds[i], seeds[j] = seeds[j], seeds[i] })
	_, err = g.list.Join(seeds[:min(len(seeds), joinAtOnce)])
	return err
}

// seeds returns the addresses of Config.Join. The error is of a name that has none.
func (g *Gossip) seeds(ctx context.Context) (all []string, err error) {
	for _, s := range g.cfg.Join {
		host, port, splitErr := net.SplitHostPort(s)
		if splitErr != nil {
			err = fmt.Errorf("node to join %q: want HOST:port", s)
			continue
		}
		if n, portErr := strconv.ParseUint(port, 10, 16); portErr != nil || n == 0 {
			err = fmt.Errorf("node to join %q: want a port from 1 to 65535", s)
			continue
		}
		if addr, notIP := netip.ParseAddr(host); notIP == nil {
			all = append(all, hostPort(addr, port))
			continue
		}
		found, lookupErr := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if lookupErr != nil {
			err = fmt.Errorf("node to join %q: %w", s, lookupErr)
		}
		for _, addr := range found {
			all = append(all, hostPort(addr.Unmap(), port))
		}
	}
	return all, err
}
