package swarm

import (
	"time"

	"github.com/anacrolix/torrent"
)

const (
	// windowTime is how long a peer should take for what is asked from it at once. The library asks for more
	// when all of it is there, so it is well above a round trip.
	windowTime = 250 * time.Millisecond
	// firstWindow and minWindow are in blocks.
	firstWindow, minWindow = 4, 2
)

// Window is how many blocks are asked from one peer at once: as many as it gives in windowTime. A block that is
// asked from one peer is asked from no other, and waits there for the blocks that others asked before. Where as
// much as possible is asked, the node that has a piece first sends all copies of it, while those that have got
// it since send nothing; and nodes that come late hold up those which were there.
type Window struct {
	limit int // blocks
	most  int // that the peer takes
	open  int // asked, and neither there nor taken back yet
	asked int // since none was open
	since time.Time
}

// NewWindow returns the window of a peer that takes most requests at once.
func NewWindow(most int) *Window {
	most = max(1, most)
	return &Window{limit: min(firstWindow, most), most: most}
}

// Limit is how many blocks may be asked for at once.
func (w *Window) Limit() int { return w.limit }

// Ask notes that a block was asked for.
func (w *Window) Ask(now time.Time) {
	if w.open == 0 {
		w.asked, w.since = 0, now
	}
	w.open++
	w.asked++
}

// End notes that a block came, or is not waited for any more. With the last one the limit follows.
func (w *Window) End(now time.Time) {
	if w.open == 0 {
		return // it was asked for before there was a window
	}
	if w.open--; w.open > 0 {
		return
	}
	took := max(now.Sub(w.since), time.Millisecond)
	if took < windowTime && w.asked < w.limit {
		return // nothing more was wanted
	}
	fit := int(time.Duration(w.asked) * windowTime / took)
	w.limit = min(max(minWindow, fit), 2*w.limit, w.most)
}

// asked sees every request, with the library's lock held.
func (c *Client) asked(e torrent.PeerRequestEvent) {
	if s := c.sessionOf(e.Peer.Torrent()); s != nil {
		now := time.Now()
		s.offers.ask(int(e.Index), now)
		if w := s.windowOf(e.Peer); w != nil {
			w.Ask(now)
		}
	}
}

// ended sees the end of every request, with the library's lock held, before it asks for more.
func (c *Client) ended(e torrent.PeerRequestEvent) {
	s := c.sessionOf(e.Peer.Torrent())
	if s == nil {
		return
	}
	conn, ok := e.Peer.TryAsPeerConn()
	if w := s.windowOf(e.Peer); w != nil && ok {
		w.End(time.Now())
		conn.PeerMaxRequests = w.Limit()
	}
}
