package registryserver

import (
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/faults"
)

// Fault is what goes wrong with one request; the zero value is nothing.
type Fault = faults.Fault

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
