package tracker

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

// swarmID names a swarm inside the tracker. The size is part of it because nothing here proves a
// size: a node that lies about it is alone with its lie.
type swarmID struct {
	key  client.Key
	size int64
}

// swarm is the state of one blob.
type swarm struct {
	server *Server
	id     swarmID
	pieces int
	born   time.Time

	mu      sync.Mutex
	gone    bool // dropped; whoever waited for the lock looks for another
	table   *lease.Table
	stats   lease.Stats
	members map[string]*member
	version int                 // of the members' names and places
	joined  map[string]struct{} // who was here before, while grace looks at it
	old     bool                // for grace
	left    time.Time           // when the last member was seen
}

// member is a live node of a swarm.
type member struct {
	peer client.Peer
	hash uint64
	sent sentPeers
}

// find returns the swarm with the given id. When it is missing, find makes it, or returns nil for a
// node that only leaves.
func (s *Server) find(id swarmID, leaves bool) (*swarm, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sw := s.swarms[id]; sw != nil || leaves {
		return sw, nil
	}
	if len(s.swarms) >= s.cfg.MaxSwarms && !s.evict() {
		return nil, refuse(http.StatusServiceUnavailable,
			"tracker has %d live swarms, its limit: raise it, or run a second tracker", len(s.swarms))
	}
	now := s.cfg.Now()
	sw := &swarm{
		server:  s,
		id:      id,
		pieces:  model.NumPieces(id.size),
		born:    now,
		members: map[string]*member{},
		joined:  map[string]struct{}{},
		left:    now,
	}
	sw.table = lease.New(sw.pieces, s.cfg.Lease, s.grace.end(now, false))
	sw.stats = sw.table.Stats()
	s.swarms[id] = sw
	s.metrics.swarms.Set(float64(len(s.swarms)))
	s.log.Info("swarm begins", keyDigest, id.key.Digest, keyBytes, id.size, "pieces", sw.pieces)
	return sw, nil
}

// evict makes room by dropping the swarm that has been empty for longest. It is called with the
// lock held and reports whether there was one.
func (s *Server) evict() bool {
	var oldest *swarm
	var since time.Time
	for _, sw := range s.swarms {
		left, empty := sw.emptySince()
		if empty && (oldest == nil || left.Before(since)) {
			oldest, since = sw, left
		}
	}
	if oldest == nil || !oldest.retire(since) {
		return false
	}
	delete(s.swarms, oldest.id)
	return true
}

// drop forgets a swarm that was retired.
func (s *Server) drop(sw *swarm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.swarms[sw.id] == sw {
		delete(s.swarms, sw.id)
		s.metrics.swarms.Set(float64(len(s.swarms)))
		s.log.Info("swarm ends", keyDigest, sw.id.key.Digest, keyBytes, sw.id.size)
	}
}

func (s *Server) allSwarms() []*swarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*swarm, 0, len(s.swarms))
	for _, sw := range s.swarms {
		all = append(all, sw)
	}
	return all
}

func (sw *swarm) emptySince() (time.Time, bool) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return sw.left, len(sw.members) == 0
}

// retire ends a swarm that has had no live member since before, or reports false.
func (sw *swarm) retire(before time.Time) bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return sw.end(before)
}

func (sw *swarm) end(before time.Time) bool {
	if !sw.gone && len(sw.members) == 0 && !sw.left.After(before) {
		sw.gone = true
	}
	return sw.gone
}

// expire forgets lost nodes, and retires the swarm when it has been empty since before.
func (sw *swarm) expire(before time.Time) bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	sw.forgetLost(sw.server.cfg.Now())
	sw.count()
	return sw.end(before)
}

func (sw *swarm) forgetLost(now time.Time) {
	for _, name := range sw.table.Expire(now) {
		delete(sw.members, name)
		sw.version++
		sw.server.metrics.lostNodes.Inc()
		sw.server.log.Info("node lost", keyPeer, name, keyDigest, sw.id.key.Digest)
	}
}

// count brings the metrics up to date.
func (sw *swarm) count() {
	now := sw.table.Stats()
	sw.server.metrics.count(sw.stats, now)
	sw.stats = now
}

// take handles one announce that was checked, and reports false when the swarm is gone.
func (sw *swarm) take(a announced) (reply client.AnnounceReply, ok bool, err error) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.gone {
		return reply, false, nil
	}
	defer sw.count()
	now := sw.server.cfg.Now() // under the lock: the table wants times in order
	sw.forgetLost(now)
	reply = sw.server.newReply()
	name := a.peer.Node
	if a.left {
		if _, was := sw.members[name]; was {
			delete(sw.members, name)
			sw.table.Forget(name)
			sw.version++
		}
		return reply, true, nil
	}
	m, err := sw.join(a, now)
	if err != nil {
		return reply, true, err
	}
	sw.left = now
	sw.table.Report(name, a.peer.Zone, a.have, a.open, a.stuck, now)
	sw.table.Doubt(name, a.doubts, a.alone)
	if wanted := a.want.Origin + a.want.Imports; wanted > 0 {
		leases, retry := sw.table.Grant(name, a.want, now)
		for _, l := range leases {
			out := client.Lease{Piece: l.Piece}
			if from := sw.members[l.From]; from != nil {
				out.Node, out.Addr = l.From, from.peer.Addr
			}
			reply.Leases = append(reply.Leases, out)
		}
		if len(reply.Leases) < wanted {
			reply.RetryMS = max(1, (retry + time.Millisecond - 1).Milliseconds())
		}
	}
	reply.Holders = sw.table.Stats().Complete
	if sw.table.Complete(name) {
		reply.Holders--
	}
	if m.peer.Complete {
		reply.IntervalMS = sw.server.cfg.Lease.IdleInterval.Milliseconds()
	}
	reply.Peers = sw.peersFor(m, a.fresh, now)
	return reply, true, nil
}

// join makes the announcer a member, or brings what is known about it up to date.
func (sw *swarm) join(a announced, now time.Time) (*member, error) {
	m := sw.members[a.peer.Node]
	if m == nil {
		if len(sw.members) >= sw.server.cfg.MaxNodes {
			return nil, refuse(http.StatusServiceUnavailable,
				"swarm has %d nodes, the tracker's limit: raise it, or fetch from the registry", len(sw.members))
		}
		m = &member{hash: stringHash(sw.server.secret + a.peer.Node)}
		sw.members[a.peer.Node] = m
		sw.version++
	} else if m.peer.Addr != a.peer.Addr || m.peer.Zone != a.peer.Zone || m.peer.Rack != a.peer.Rack {
		sw.version++
	}
	m.peer = a.peer
	sw.await(a, now)
	return m, nil
}

// await looks for signs that leases of a tracker before us are about. What a node holds that has
// been here before is none: it fetched that on leases of ours.
func (sw *swarm) await(a announced, now time.Time) {
	if sw.joined == nil {
		return
	}
	grace := &sw.server.grace
	if !grace.open(now) {
		sw.joined = nil
	} else if _, was := sw.joined[a.peer.Node]; !was {
		sw.joined[a.peer.Node] = struct{}{}
		sw.old = sw.old || a.peer.Complete || len(a.open) > 0 || a.have.Count() > 0
	}
	sw.table.GrantAfter(grace.end(sw.born, sw.old))
}

// listSwarms answers GET /v1/swarms.
func (s *Server) listSwarms(w http.ResponseWriter, _ *http.Request, _ caller) error {
	list := []client.Swarm{}
	for _, sw := range s.allSwarms() {
		list = append(list, sw.state())
	}
	slices.SortFunc(list, func(a, b client.Swarm) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Size, b.Size))
	})
	return writeJSON(w, http.StatusOK, list)
}

func (sw *swarm) state() client.Swarm {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	sw.forgetLost(sw.server.cfg.Now())
	sw.count()
	st := sw.stats
	return client.Swarm{
		Key:      sw.id.key.String(),
		Size:     sw.id.size,
		Pieces:   st.Pieces,
		Held:     st.Held,
		Leased:   st.Leased,
		Nodes:    st.Nodes,
		Complete: st.Complete,
		Granted:  st.Granted,
		Imports:  st.Imports,
		Seconds:  st.Seconds,
		Rescues:  st.Rescues,
		Adopted:  st.Adopted,
		Lapsed:   st.Lapsed,
		Dropped:  st.Dropped,
		Lost:     st.Lost,
		FetchMS:  float64(st.Fetch) / float64(time.Millisecond),
	}
}
