package registryserver

import (
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Fault is what goes wrong with one request; the zero value is nothing.
type Fault struct {
	// Status, where it is not 0, is answered in the registry's place, with Header.
	Status int
	Header http.Header
	// At is the byte of the response's body at which the following happens.
	At int64
	// Wait, if any, stops the response there until the channel is closed or the client hangs up. At
	// byte 0 the header waits too.
	Wait <-chan struct{}
	// Flip inverts the byte.
	Flip bool
	// Cut breaks the connection off before the byte.
	Cut bool
}

// counters are bytes of bodies.
type counters struct {
	mu       sync.Mutex
	blobs    map[digest.Digest]*atomic.Int64
	other    atomic.Int64
	received atomic.Int64
}

// of returns the counter for what r's answer carries.
func (c *counters) of(r *http.Request) *atomic.Int64 {
	_, tail, ok := strings.Cut(r.URL.Path, "/blobs/")
	d := digest.Digest(tail)
	if !ok || d.Validate() != nil || r.Method != http.MethodGet {
		return &c.other
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blobs == nil {
		c.blobs = map[digest.Digest]*atomic.Int64{}
	}
	if c.blobs[d] == nil {
		c.blobs[d] = new(atomic.Int64)
	}
	return c.blobs[d]
}

// Sent returns the body bytes that were sent of the blob, over all requests.
func (s *Server) Sent(d digest.Digest) int64 { return s.SentBlobs()[d] }

// SentBlobs returns the body bytes that were sent of every blob which was asked for.
func (s *Server) SentBlobs() map[digest.Digest]int64 {
	s.counters.mu.Lock()
	defer s.counters.mu.Unlock()
	sent := make(map[digest.Digest]int64, len(s.counters.blobs))
	for d, n := range s.counters.blobs {
		sent[d] = n.Load()
	}
	return sent
}

// SentTotal returns the body bytes of all responses: blobs, manifests, errors.
func (s *Server) SentTotal() int64 {
	sum := s.counters.other.Load()
	for n := range maps.Values(s.SentBlobs()) {
		sum += n
	}
	return sum
}

// Received returns the body bytes of all requests: what was pushed.
func (s *Server) Received() int64 { return s.counters.received.Load() }

// Requests returns how many requests there were, refused ones included.
func (s *Server) Requests() int64 { return s.requests.Load() }

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// response counts the body on its way out and brings the request's fault into it.
type response struct {
	http.ResponseWriter
	request *http.Request
	fault   Fault
	counter *atomic.Int64
	at      int64
	status  int
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	done := 0
	if split := w.fault.At - w.at; split >= 0 && split < int64(len(p)) {
		n, err := w.send(p[:split])
		if err != nil {
			return n, err
		}
		done = n
		w.wait(w.at)
		if w.fault.Cut {
			w.breakOff()
		}
		p = p[done:]
		if w.fault.Flip {
			p = append([]byte{^p[0]}, p[1:]...)
		}
	}
	n, err := w.send(p)
	return done + n, err
}

// send counts before it writes: a client that has the last byte finds it counted.
func (w *response) send(p []byte) (int, error) {
	w.counter.Add(int64(len(p)))
	n, err := w.ResponseWriter.Write(p)
	w.counter.Add(int64(n - len(p)))
	w.at += int64(n)
	return n, err
}

// wait stops at the fault's byte.
func (w *response) wait(at int64) {
	if w.fault.Wait == nil || w.fault.At != at {
		return
	}
	if at > 0 { // the client is to have what comes before
		_ = http.NewResponseController(w.ResponseWriter).Flush()
	}
	select {
	case <-w.fault.Wait:
	case <-w.request.Context().Done():
		panic(http.ErrAbortHandler) // what nobody reads is not to be counted
	}
	w.fault.Wait = nil
}

// breakOff sends what was written and closes the connection.
func (w *response) breakOff() {
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}
