package main

import (
	"math"
	"time"
)

// server is something that bytes pass in the order in which they come: a downlink, a zone's uplink, a
// processor. The zero value is infinitely fast.
type server struct {
	rate float64 // bytes a second, 0 for no limit
	free moment  // when it is done with all that it was given
}

// pass gives the server n bytes at now, and returns when they are through.
func (s *server) pass(n int64, now moment) moment {
	if s.rate == 0 {
		return now
	}
	s.free = max(s.free, now) + spend(n, s.rate)
	return s.free
}

// spend is how long n bytes take at rate.
func spend(n int64, rate float64) moment {
	return moment(float64(n) / rate * float64(time.Second))
}

// host is a machine with its link. Its uplink sends one block at a time, the connections that have
// something to send in turns, which shares it evenly among them. A block then passes the zone's link,
// the receiver's downlink and its processor, in the order of coming, each of which it occupies from the
// moment it was begun to be sent (cut-through). A connection whose way has more than the window queued is
// passed over, as TCP's congestion control would have it: so no uplink idles while somebody can take
// something, and shares come out close to max-min.
type host struct {
	id    int32
	zone  int32
	up    float64 // bytes a second
	down  server
	cpu   *server // of the machine; several hosts of a bench share one
	cost  float64 // of a byte that it receives, for cpu: 1 for a node
	busy  moment  // until when the uplink sends
	shut  moment  // until when nobody in the ring can take anything
	wake  moment  // when a hostFree event is queued for, if that is later than now
	ring  []int32 // connections with requests, next one first
	sent  int64   // body bytes
	alive bool
}

// cpuOnWay is where on a way the processor is.
const cpuOnWay = 1

// wayOf lists what a block of c passes after the uplink of from.
func (w *world) wayOf(from *host, c *conn) [4]*server {
	to := w.members[c.member].node.host
	way := [4]*server{&to.down, cpuOnWay: to.cpu}
	if from.zone != to.zone {
		way[2], way[3] = &w.zones[from.zone].out, &w.zones[to.zone].in
	}
	return way
}

// openAt returns when the way has less than the window queued.
func openAt(way [4]*server, window moment) moment {
	var at moment
	for _, s := range way {
		if s != nil && s.rate > 0 {
			at = max(at, s.free-window)
		}
	}
	return at
}

// kick lets the host send, if its uplink is free and somebody can take something.
func (w *world) kick(h *host) {
	if !h.alive {
		return
	}
	if until := max(h.busy, h.shut); w.now < until {
		w.wakeAt(h, until)
		return
	}
	soonest := moment(math.MaxInt64)
	for range len(h.ring) {
		id := h.ring[0]
		h.ring = h.ring[1:]
		c := w.conns[id]
		way := w.wayOf(h, c)
		if at := openAt(way, w.cfg.Window); at > w.now {
			h.ring = append(h.ring, id)
			soonest = min(soonest, at)
			continue
		}
		if r, ok := w.next(c); ok {
			w.send(h, c, id, r, way)
			return
		}
		c.ready = false
	}
	if len(h.ring) > 0 {
		h.shut = soonest
		w.wakeAt(h, soonest)
	}
}

// send begins to send a block of c, which was taken from the front of the ring.
func (w *world) send(h *host, c *conn, id int32, r request, way [4]*server) {
	n := w.blockBytes(c, r)
	c.queue = c.queue[1:]
	c.flying++
	h.sent += n
	h.busy = w.now + spend(n, h.up)
	done := h.busy
	cost := w.members[c.member].node.host.cost
	for i, s := range way {
		switch {
		case s == nil:
		case i == cpuOnWay:
			done = max(done, s.pass(int64(float64(n)*cost), w.now))
		default:
			done = max(done, s.pass(n, w.now))
		}
	}
	// The request's way is added to the answer's: it saves an event each.
	w.at(done+2*w.cfg.Latency, event{kind: blockArrives, a: id, b: r.piece, block: r.block})
	if len(c.queue) > 0 {
		h.ring = append(h.ring, id)
	} else {
		c.ready = false
	}
	w.wakeAt(h, h.busy)
}

// wakeAt has the host kicked at that moment, or before it and then again.
func (w *world) wakeAt(h *host, at moment) {
	at = max(at, w.now)
	if h.wake > w.now && h.wake <= at {
		return
	}
	h.wake = at
	w.at(at, event{kind: hostFree, a: h.id})
}

// next drops the requests of c that nobody needs any more, and returns the first other one.
func (w *world) next(c *conn) (request, bool) {
	if !c.open {
		return request{}, false
	}
	m := w.members[c.member]
	for len(c.queue) > 0 {
		r := c.queue[0]
		if m.left || m.has(int(r.piece)) && !c.origin {
			c.queue = c.queue[1:]
			continue
		}
		if c.peer == m.layer.mirror && int(r.piece) >= m.layer.filled {
			m.layer.parked = append(m.layer.parked, c.id)
			return r, false // kept, until the mirror has it
		}
		return r, true
	}
	return request{}, false
}

// ready says that c has requests for its supplier.
func (w *world) ready(c *conn) {
	h := w.members[c.peer].node.host
	if !c.ready {
		c.ready = true
		h.ring = append(h.ring, c.id)
		if w.now < h.shut { // all others wait: it alone can change that
			if at := openAt(w.wayOf(h, c), w.cfg.Window); at < h.shut {
				h.shut = at
				w.wakeAt(h, at)
			}
		}
	}
	w.kick(h)
}
