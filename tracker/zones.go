package tracker

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

// Each zone has a swarm of its own, with leases of its own: a piece enters it once, on a lease, and
// spreads inside. Peers of several zones would each fetch across the border what they want, in as many
// copies as the library happens to choose. The price is the mirror's, which sends the blob once a zone.
//
// A zone to which nothing comes (the mirror is gone, say) opens its border: its nodes are told of
// some that are elsewhere.

const (
	// A zone starves when no member gained a piece for starveAfter and starveFetches times what a lease
	// takes.
	starveAfter   = 10 * time.Second
	starveFetches = 4
)

// starves reports whether members lack pieces and get none. It is called with the lock held.
func (sw *swarm) starves(now time.Time) bool {
	stats := sw.table.Stats()
	return stats.Complete < stats.Nodes && now.Sub(sw.fed) > starveAfter+starveFetches*stats.Fetch
}

// beyond returns peers in other zones for the named member of sw, nil unless sw starves.
func (s *Server) beyond(sw *swarm, name string) []client.Peer {
	sw.mu.Lock()
	m := sw.members[name]
	starves := m != nil && !m.peer.Complete && sw.starves(s.cfg.Now())
	sw.mu.Unlock()
	if !starves {
		return nil
	}
	s.mu.Lock()
	zones := slices.Clone(s.zones[sw.id.blobID])
	s.mu.Unlock()
	var near ranking
	for _, other := range zones {
		if other != sw {
			other.rank(&near, m.hash)
		}
	}
	var peers []client.Peer
	for _, r := range near[:min(len(near), farShare)] {
		peers = append(peers, r.peer)
	}
	return peers
}

// rank adds the members to r, for the asker with the given hash.
func (sw *swarm) rank(r *ranking, asker uint64) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	for _, m := range sw.members {
		r.add(mix(asker, m.hash), m.peer)
	}
}
