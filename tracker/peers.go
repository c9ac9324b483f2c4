package tracker

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// otherRacks is how many of an asker's peers stand in other racks of its zone, if there are so many.
	// With near ones only, a rack would be a swarm of its own, and what is leased elsewhere would
	// never come in. What other zones have comes in by leases (package lease).
	otherRacks = client.MaxPeers / 5
	// resendPeers is how often an unchanged list is sent all the same: a reply may have been lost.
	resendPeers = 10 * time.Second
)

// sentPeers is what a member was sent last.
type sentPeers struct {
	at      time.Time
	version int      // of the swarm's members
	hashes  []uint64 // of the peers' names and addresses
}

// peersFor returns the peers of m, or nil when m knows them. fresh says that m knows nothing.
func (sw *swarm) peersFor(m *member, fresh bool, now time.Time) []client.Peer {
	due := fresh || m.sent.at.IsZero() || now.Sub(m.sent.at) >= resendPeers
	if !due && m.sent.version == sw.version {
		return nil
	}
	near := nearest(m, sw.members)
	hashes := make([]uint64, len(near))
	for i, n := range near {
		hashes[i] = n.hash ^ stringHash(n.peer.Addr)
	}
	m.sent.version = sw.version
	if !due && slices.Equal(hashes, m.sent.hashes) {
		return nil
	}
	m.sent.at, m.sent.hashes = now, hashes
	peers := make([]client.Peer, len(near))
	for i, n := range near {
		peers[i] = n.peer
	}
	return peers
}

// nearest chooses at most client.MaxPeers members of m's zone for it, those of its rack first. Among equally
// near ones each asker has an order of its own, so that not everybody dials the same fifty; it is stable, so
// that a join far behind changes nothing.
func nearest(m *member, all map[string]*member) []*member {
	var rack, zone ranking
	for _, other := range all {
		switch rank := mix(m.hash, other.hash); {
		case other == m || other.peer.Zone != m.peer.Zone:
		case m.peer.Rack != "" && other.peer.Rack == m.peer.Rack:
			rack.add(rank, other)
		default:
			zone.add(rank, other)
		}
	}
	fromRack := min(len(rack), client.MaxPeers-min(len(zone), otherRacks))
	chosen := make([]*member, 0, client.MaxPeers)
	for _, c := range rack[:fromRack] {
		chosen = append(chosen, c.member)
	}
	for _, c := range zone[:min(len(zone), client.MaxPeers-fromRack)] {
		chosen = append(chosen, c.member)
	}
	return chosen
}

// ranking holds the members with the lowest ranks, client.MaxPeers at most, in order.
type ranking []ranked

type ranked struct {
	rank   uint64
	member *member
}

func (r *ranking) add(rank uint64, m *member) {
	full := len(*r) == client.MaxPeers
	if full && rank >= (*r)[len(*r)-1].rank {
		return
	}
	if full {
		*r = (*r)[:len(*r)-1]
	}
	at, _ := slices.BinarySearchFunc(*r, rank, func(c ranked, rank uint64) int {
		if c.rank < rank {
			return -1
		}
		return 1
	})
	*r = slices.Insert(*r, at, ranked{rank, m})
}

// mix ranks peer for asker (the finalizer of splitmix64).
func mix(asker, peer uint64) uint64 {
	x := asker*0x9e3779b97f4a7c15 ^ peer
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// stringHash is FNV-1a.
func stringHash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
