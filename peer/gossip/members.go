package gossip

import (
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"
)

// members are the live nodes. memberlist tells of each change while it holds its lock; its own list is
// of pointers to what it goes on writing to.
type members struct {
	mu sync.Mutex
	by map[string]live
}

// live is a live node as it was last told of.
type live struct {
	Member
	addr    string // of gossip
	version int64  // of its inventory
}

// note takes over what memberlist says of a node.
func (s *members) note(n *memberlist.Node) {
	m, err := parseMeta(n.Meta)
	if err != nil {
		return // NotifyAlive has kept it out
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]live{}
	}
	s.by[n.Name] = live{m.member(n.Name), n.Address(), m.Version}
}

func (s *members) forget(name string) {
	s.mu.Lock()
	delete(s.by, name)
	s.mu.Unlock()
}

func (s *members) all() []live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.by))
}
