package main

import "time"

// moment is virtual time: nanoseconds since the start.
type moment = time.Duration

// kind says what an event is about.
type kind uint8

const (
	hostFree      kind = iota // a: host, whose uplink may begin the next block
	blockArrives              // a: conn, b: piece, block
	pieceTold                 // a: member, b: piece that its peers now know of
	announceDue               // a: member, b: its timer's number
	announceHeard             // a: member, whose announce is at the tracker
	replyHeard                // a: member, which has the tracker's answer
	peersMeet                 // a, b: members that connect
	layerBegins               // a: node, b: layer
	nodeJoins                 // a: node
	nodeDies                  // a: node
)

// event is something that happens at a moment. It has no pointers: a hundred thousand are queued at once,
// and the garbage collector need not look at them.
type event struct {
	at    moment
	seq   uint64 // of two at one moment, the one queued first comes first
	a, b  int32
	block uint8
	kind  kind
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// queue is a heap of events, four children a node, which is kinder to the caches than two.
type queue struct {
	heap []event
	seq  uint64
}

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !e.before(&q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = e
}

// pop returns the earliest event. The queue must not be empty.
func (q *queue) pop() event {
	first := q.heap[0]
	last := q.heap[len(q.heap)-1]
	q.heap = q.heap[:len(q.heap)-1]
	n := len(q.heap)
	if n == 0 {
		return first
	}
	i := 0
	for {
		child := 4*i + 1
		if child >= n {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, n); c++ {
			if q.heap[c].before(&q.heap[least]) {
				least = c
			}
		}
		if !q.heap[least].before(&last) {
			break
		}
		q.heap[i] = q.heap[least]
		i = least
	}
	q.heap[i] = last
	return first
}
