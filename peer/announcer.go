package peer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// Neighbours finds nodes without a tracker. It is asked at every step of a session and so answers
// from what it knows, or within about a second. cmd makes one of gossip.
type Neighbours interface {
	// Find returns the live nodes that take part in the swarm key ("<sha256 hex>-<root hex>"), near
	// ones first, without the asker.
	Find(ctx context.Context, key string) []swarm.Peer
	// Changed says that the node joined or left a swarm.
	Changed()
}

const (
	// trackerLost is after how long without an answer the node goes on without the tracker.
	trackerLost = 3 * time.Second
	// trackerAgain is how often a lost tracker is tried by an announce, when no other call of the
	// node has reached it before.
	trackerAgain = 10 * time.Second
	// settle is how long a node that never had a tracker waits before it takes its share of a blob:
	// others begin at the same time, and shares over different sets of members overlap.
	settle = 2 * time.Second
	// shareBusy and shareDone are the times between two looks at the neighbours, before and after
	// the blob is whole.
	shareBusy, shareDone = 500 * time.Millisecond, 5 * time.Second
)

// contact is when the tracker last answered any call of the node.
type contact struct {
	mu   sync.Mutex
	last time.Time
}

func (c *contact) heard() {
	c.mu.Lock()
	c.last = time.Now()
	c.mu.Unlock()
}

func (c *contact) after(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.After(t)
}

// announcer is what a session announces to: the tracker, and the neighbours while it is lost. It is
// used by one goroutine.
type announcer struct {
	cfg     Config
	contact *contact
	key     client.Key
	size    int64

	born  time.Time
	lost  time.Time // the first announce in a row that the tracker did not answer
	tried time.Time // the last one
	why   error     // what the tracker said then, or that it said nothing
}

func newAnnouncer(cfg Config, c *contact, key client.Key, size int64) *announcer {
	return &announcer{cfg: cfg, contact: c, key: key, size: size, born: time.Now()}
}

var errNoTracker = errors.New("the node has neither a tracker nor neighbours")

// Announce implements swarm.Leaser.
func (a *announcer) Announce(ctx context.Context, r swarm.Report) (swarm.Reply, error) {
	err := errNoTracker
	if a.cfg.Tracker != nil {
		if now := time.Now(); a.worthATry(now) {
			reply, err := a.toTracker(ctx, r)
			if err == nil {
				return reply, nil
			}
			a.why = err
			if a.lost.IsZero() {
				a.lost = now
			}
		}
		err = a.why
		if time.Since(a.lost) <= trackerLost {
			return swarm.Reply{}, err
		}
	}
	if a.cfg.Neighbours == nil {
		return swarm.Reply{}, err
	}
	reply := swarm.Reply{
		Peers:    a.cfg.Neighbours.Find(ctx, a.key.String()),
		Share:    a.cfg.Tracker != nil || time.Since(a.born) > settle,
		Interval: shareBusy,
	}
	if r.Complete {
		reply.Interval = shareDone
	}
	return reply, ctx.Err()
}

// worthATry reports whether the tracker may answer: it is not lost, or something else reached it, or
// it is time to look again. A dead address would otherwise hold up every step of the session.
func (a *announcer) worthATry(now time.Time) bool {
	return a.lost.IsZero() || now.Sub(a.lost) <= trackerLost ||
		a.contact.after(a.tried) || now.Sub(a.tried) > trackerAgain
}

func (a *announcer) toTracker(ctx context.Context, r swarm.Report) (swarm.Reply, error) {
	a.tried = time.Now()
	reply, err := a.cfg.Tracker.Announce(ctx, a.key, client.Announce{
		Node: a.cfg.Name, Addr: a.cfg.Swarm.Addr(), Zone: a.cfg.Zone, Rack: a.cfg.Rack, Size: a.size,
		Have: r.Have, Complete: r.Complete, Open: r.Open, Stuck: r.Stuck, Doubts: r.Doubts, Alone: r.Alone,
		Want: r.Want, WantImports: r.WantImports, Left: r.Left,
	})
	if err != nil {
		return swarm.Reply{}, fmt.Errorf("tracker: %w", err)
	}
	a.lost = time.Time{}
	a.contact.heard()
	out := swarm.Reply{Retry: reply.Retry(), Interval: reply.Interval()}
	for _, l := range reply.Leases {
		out.Leases = append(out.Leases, swarm.Lease{Piece: l.Piece, From: swarm.Peer{Name: l.Node, Addr: l.Addr}})
	}
	for _, p := range reply.Peers {
		out.Peers = append(out.Peers, swarm.Peer{Name: p.Node, Addr: p.Addr})
	}
	return out, nil
}
