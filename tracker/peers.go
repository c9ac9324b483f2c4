package tracker

import (
	"slices"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// farShare is how many of an asker's peers come from each farther place, if it has so many.
	// With near ones only, a rack would be a swarm of its own, and what is leased elsewhere would
	// never come in.
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

// Places, near to far.
const (
	sameRack = iota
	sameZone
	elsewhere
	places
)

func place(a, b client.Peer) int {
	switch {
	case a.Zone == "" || a.Zone != b.Zone:
		return elsewhere
	case a.Rack == "" || a.Rack != b.Rack:
		return sameZone
	}
	return sameRack
}

// nearest chooses at most client.MaxPeers members for m, near ones first. Among equally near ones
// each asker has an order of its own, so that not everybody dials the same fifty; it is stable, so
// that a join far behind changes nothing.
func nearest(m *member, all map[string]*member) []*member {
	var byPlace [places]ranking
	for _, other := range all {
		if other != m {
			p := place(m.peer, other.peer)
			byPlace[p].add(mix(m.hash, other.hash), other)
		}
	}
	var have [places]int
	for p := range byPlace {
		have[p] = len(byPlace[p])
	}
	chosen := make([]*member, 0, client.MaxPeers)
	for p, n := range quotas(have) {
		for _, c := range byPlace[p][:n] {
			chosen = append(chosen, c.member)
		}
	}
	return chosen
}

// quotas shares client.MaxPeers among the places of which have members are there: near ones
// first, but farShare are kept for each farther place.
func quotas(have [places]int) (take [places]int) {
	left := client.MaxPeers
	for p := sameRack + 1; p < places; p++ {
		take[p] = min(have[p], farShare)
		left -= take[p]
	}
	for p := range have {
		more := min(have[p]-take[p], left)
		take[p] += more
		left -= more
	}
	return take
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
