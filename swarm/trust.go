package swarm

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// doubtAfter is how long a known peer may have given nothing before it is doubted. To doubt costs
// little: only pieces that no other node holds are leased again, and those only when their holder did
// not fetch them just now.
const doubtAfter = 2 * time.Second

// trust notes which peers give something. What a node announces may be a lie, or its address may not
// be reachable from here: then nobody would lease what only it claims to hold, and this node would
// wait for ever. A node has one address, also for what it dials (see Config.Listener).
type trust struct {
	mu     sync.Mutex
	byConn map[any]*supplier
	hosts  map[string]time.Time // of the peers last asked about: when they gave something, or were first known
}

// supplier is a connection that has given a block.
type supplier struct {
	host string
	at   time.Time // of the last one
}

func newTrust() *trust {
	return &trust{byConn: map[any]*supplier{}, hosts: map[string]time.Time{}}
}

// delivered notes a block from conn, which leads to addr.
func (t *trust) delivered(conn any, addr fmt.Stringer, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byConn[conn]
	if s == nil {
		s = &supplier{host: hostOf(addr.String())}
		t.byConn[conn] = s
	}
	s.at = now
}

// gone notes that conn ended.
func (t *trust) gone(conn any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byConn[conn]; s != nil {
		t.heard(s)
		delete(t.byConn, conn)
	}
}

func (t *trust) heard(s *supplier) {
	if last, known := t.hosts[s.host]; known && s.at.After(last) {
		t.hosts[s.host] = s.at
	}
}

// doubts returns the names of those of peers that are banned, or known for a while and have given
// nothing in the last while. It forgets everybody else.
func (t *trust) doubts(peers []Peer, banned []string, now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	hosts := make(map[string]time.Time, len(peers))
	for _, p := range peers {
		host := hostOf(p.Addr)
		if hosts[host] = now; !t.hosts[host].IsZero() {
			hosts[host] = t.hosts[host]
		}
	}
	t.hosts = hosts
	for _, s := range t.byConn {
		t.heard(s)
	}
	var out []string
	for _, p := range peers {
		host := hostOf(p.Addr)
		if now.Sub(hosts[host]) > doubtAfter || slices.Contains(banned, host) {
			out = append(out, p.Name)
		}
	}
	return out
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
