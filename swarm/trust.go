package swarm

import (
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// doubtAfter is how long a known peer may have given nothing before it is doubted. To doubt costs
	// little: only pieces that no other node holds are leased again, and those only when their
	// holder did not fetch them just now.
	doubtAfter = 2 * time.Second
	// maxDoubts is how many peers are doubted at once; the tracker looks at no more.
	maxDoubts = 50
)

// trust notes which peers give something. What a node announces may be a lie, or its address may not
// be reachable from here: then nobody would lease what only it claims to hold, and this node would
// wait for ever. A node has one address, also for what it dials (see Config.Listener).
type trust struct {
	mu     sync.Mutex
	byConn map[any]*supplier
	last   map[string]time.Time // when a host gave its last block, for connections that ended
	known  map[string]time.Time // since when a host is known
}

// supplier is a connection that has given a block.
type supplier struct {
	host string
	at   time.Time // of the last one
}

func newTrust() *trust {
	return &trust{byConn: map[any]*supplier{}, last: map[string]time.Time{}, known: map[string]time.Time{}}
}

// delivered notes a block from conn.
func (t *trust) delivered(conn any, host string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byConn[conn]
	if s == nil {
		s = &supplier{host: host}
		t.byConn[conn] = s
	}
	s.at = now
}

// gone notes that conn ended.
func (t *trust) gone(conn any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byConn[conn]; s != nil {
		t.last[s.host] = s.at
		delete(t.byConn, conn)
	}
}

// doubts returns the names of those peers (addresses by name) that are banned, or known for a while
// and have given nothing in the last while.
func (t *trust) doubts(peers map[string]string, banned []string, now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.byConn {
		if s.at.After(t.last[s.host]) {
			t.last[s.host] = s.at
		}
	}
	var out []string
	for name, addr := range peers {
		host := hostOf(addr)
		since, ok := t.known[host]
		if !ok {
			t.known[host], since = now, now
		}
		if last := t.last[host]; last.After(since) {
			since = last
		}
		if now.Sub(since) > doubtAfter || slices.Contains(banned, host) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out[:min(len(out), maxDoubts)]
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
