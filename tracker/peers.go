package tracker

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// farShare is how many of an asker's peers stand in other racks, if there are so many, and how
	// many in other zones when it is told of those. With near ones only, a rack would be a swarm of
	// its own, and what is leased elsewhere would never come in.
	farShare = client.MaxPeers / 5
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
	for i, p := range near {
		hashes[i] = stringHash(p.Node) ^ stringHash(p.Addr)
	}
	m.sent.version = sw.version
	if !due && slices.Equal(hashes, m.sent.hashes) {
		return nil
	}
	m.sent.at, m.sent.hashes = now, hashes
	return near
}

// sameRack reports whether two nodes of one zone stand in one rack.
func sameRack(a, b client.Peer) bool { return a.Rack != "" && a.Rack == b.Rack }

// nearest chooses at most client.MaxPeers members for m, near ones first. Among equally near ones
// each asker has an order of its own, so that not everybody dials the same fifty; it is stable, so
// that a join far behind changes nothing.
func nearest(m *member, all map[string]*member) []client.Peer {
	var rack, others ranking
	for _, other := range all {
		switch {
		case other == m:
		case sameRack(m.peer, other.peer):
			rack.add(mix(m.hash, other.hash), other.peer)
		default:
			others.add(mix(m.hash, other.hash), other.peer)
		}
	}
	near := min(len(rack), client.MaxPeers-min(len(others), farShare))
	chosen := make([]client.Peer, 0, client.MaxPeers)
	for _, r := range rack[:near] {
		chosen = append(chosen, r.peer)
	}
	for _, r := range others[:min(len(others), client.MaxPeers-near)] {
		chosen = append(chosen, r.peer)
	}
	return chosen
}

// ranking holds the members with the lowest ranks, client.MaxPeers at most, in order.
type ranking []ranked

type ranked struct {
	rank uint64
	peer client.Peer
}

func (r *ranking) add(rank uint64, p client.Peer) {
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
	*r = slices.Insert(*r, at, ranked{rank, p})
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
