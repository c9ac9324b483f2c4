package swarm

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// doubtAfter is how long a known peer may at least have given nothing before it is doubted. To doubt costs
	// little: only pieces that no other node holds are leased again, and those only when their holder did
	// not fetch them just now.
	doubtAfter = 2 * time.Second
	// maxDoubtAfter bounds what it becomes with a peer that gives a block now and then.
	maxDoubtAfter = 20 * time.Second
)

// Pace is when a peer gave its last block, and with which longest pause of late. Where many share slow links,
// seconds pass from one block of a peer to its next; who doubted all of them for it would fetch everything anew.
type Pace struct {
	at    time.Time // of the last block, or since when the peer is known
	pause time.Duration
}

// NewPace returns that of a peer which is known since now.
func NewPace(now time.Time) Pace { return Pace{at: now} }

// Give notes a block. An earlier pause loses an eighth of its weight with each.
func (p *Pace) Give(now time.Time) {
	p.pause = max(min(now.Sub(p.at), maxDoubtAfter/4), p.pause-p.pause/8)
	p.at = now
}

// Doubtful reports whether the peer has given nothing for longer than its pauses explain.
func (p Pace) Doubtful(now time.Time) bool {
	return now.Sub(p.at) > min(doubtAfter+4*p.pause, maxDoubtAfter)
}

// Later returns of two paces of one peer that which knows more.
func (p Pace) Later(other Pace) Pace {
	if other.at.After(p.at) {
		return other
	}
	return p
}

// trust notes which peers give something. What a node announces may be a lie, or its address may not
// be reachable from here: then nobody would lease what only it claims to hold, and this node would
// wait for ever. A node has one address, also for what it dials (see Config.Listener).
type trust struct {
	mu     sync.Mutex
	byConn map[any]*supplier
	hosts  map[string]Pace // of the peers last asked about
}

// supplier is a connection that has given a block.
type supplier struct {
	host string
	Pace
}

func newTrust() *trust {
	return &trust{byConn: map[any]*supplier{}, hosts: map[string]Pace{}}
}

// delivered notes a block from conn, which leads to addr.
func (t *trust) delivered(conn any, addr fmt.Stringer, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byConn[conn]
	if s == nil {
		host := hostOf(addr.String())
		s = &supplier{host, t.paceOf(host, now)}
		t.byConn[conn] = s
	}
	s.Give(now)
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

func (t *trust) paceOf(host string, now time.Time) Pace {
	if pace, known := t.hosts[host]; known {
		return pace
	}
	return NewPace(now)
}

func (t *trust) heard(s *supplier) {
	if last, known := t.hosts[s.host]; known {
		t.hosts[s.host] = last.Later(s.Pace)
	}
}

// doubts returns the names of those of peers that are banned, or known for a while and have given
// nothing for longer than is their way. It forgets everybody else.
func (t *trust) doubts(peers []Peer, banned []string, now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	hosts := make(map[string]Pace, len(peers))
	for _, p := range peers {
		host := hostOf(p.Addr)
		hosts[host] = t.paceOf(host, now)
	}
	t.hosts = hosts
	for _, s := range t.byConn {
		t.heard(s)
	}
	var out []string
	for _, p := range peers {
		host := hostOf(p.Addr)
		if hosts[host].Doubtful(now) || slices.Contains(banned, host) {
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
