package tracker

import (
	"container/list"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// hashUploads is how many hash layers are taken in at a time: each may need three times
	// client.MaxHashLayer in memory until it is checked.
	hashUploads = 2
)

// hashID names a hash layer. It depends on nothing else.
type hashID struct {
	root model.Hash
	size int64
}

// hashCache keeps the hash layers that were used last, up to a number of bytes.
type hashCache struct {
	limit   int64
	uploads chan struct{}

	mu    sync.Mutex
	size  int64
	byID  map[hashID]*list.Element
	order *list.List // of *hashEntry, the last used in front
}

type hashEntry struct {
	id   hashID
	wire []byte
}

func newHashCache(limit int64) *hashCache {
	return &hashCache{
		limit:   limit,
		uploads: make(chan struct{}, hashUploads),
		byID:    map[hashID]*list.Element{},
		order:   list.New(),
	}
}

// get returns the wire form of a layer, nil when it is not kept.
func (c *hashCache) get(id hashID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byID[id]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*hashEntry).wire
}

// put keeps a layer that was checked, and returns how many bytes are kept now.
func (c *hashCache) put(id hashID, wire []byte) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] == nil && int64(len(wire)) <= c.limit {
		c.byID[id] = c.order.PushFront(&hashEntry{id, wire})
		c.size += int64(len(wire))
	}
	for c.size > c.limit {
		last := c.order.Remove(c.order.Back()).(*hashEntry)
		delete(c.byID, last.id)
		c.size -= int64(len(last.wire))
	}
	return c.size
}

// getHashes answers GET /v1/hashes/{key}?size=.
func (s *Server) getHashes(w http.ResponseWriter, r *http.Request, _ caller) error {
	id, err := hashRequest(r)
	if err != nil {
		return err
	}
	wire := s.hashes.get(id)
	if wire == nil {
		s.metrics.hashLookups.WithLabelValues("miss").Inc()
		return refuse(http.StatusNotFound, "no hash layer of this blob is kept here: read it from the registry, then put it here")
	}
	s.metrics.hashLookups.WithLabelValues("hit").Inc()
	return writeBody(w, http.StatusOK, "application/octet-stream", wire)
}

// putHashes answers PUT /v1/hashes/{key}?size=.
func (s *Server) putHashes(w http.ResponseWriter, r *http.Request, _ caller) error {
	id, err := hashRequest(r)
	if err != nil {
		return err
	}
	want := (id.size + model.HashLayerPiece - 1) / model.HashLayerPiece * int64(len(model.Hash{}))
	switch {
	case want > client.MaxHashLayer || want > s.hashes.limit:
		return refuse(http.StatusRequestEntityTooLarge, "hash layer of %d bytes is too long to be kept here: nodes read it from the registry", want)
	case r.ContentLength >= 0 && r.ContentLength != want:
		return refuse(http.StatusBadRequest, "hash layer has %d bytes, a blob of %d bytes needs %d", r.ContentLength, id.size, want)
	case s.hashes.get(id) != nil:
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	select {
	case s.hashes.uploads <- struct{}{}:
		defer func() { <-s.hashes.uploads }()
	case <-r.Context().Done():
		return r.Context().Err()
	}
	wire, err := readHashes(w, r, want)
	if err != nil {
		return err
	}
	if _, err := model.ParseHashLayer(wire, id.root, id.size); err != nil {
		return refuse(http.StatusBadRequest, "%v: send the layer of %d-byte pieces of the blob that the key names", err, model.HashLayerPiece)
	}
	s.metrics.hashBytes.Set(float64(s.hashes.put(id, wire)))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readHashes reads a body of want bytes; ParseHashLayer refuses a shorter one.
func readHashes(w http.ResponseWriter, r *http.Request, want int64) ([]byte, error) {
	if err := limitBodyTime(w); err != nil {
		return nil, err
	}
	wire, err := io.ReadAll(http.MaxBytesReader(w, r.Body, want))
	if err != nil {
		return nil, tooLong(err, refuse(http.StatusBadRequest, "hash layer broke off after %d of %d bytes: send it again", len(wire), want))
	}
	return wire, nil
}

func hashRequest(r *http.Request) (hashID, error) {
	key, err := pathKey(r)
	if err != nil {
		return hashID{}, err
	}
	size, err := strconv.ParseInt(r.URL.Query().Get("size"), 10, 64)
	if err != nil {
		return hashID{}, refuse(http.StatusBadRequest, "size %.40q: want the blob's size in bytes", r.URL.Query().Get("size"))
	}
	return hashID{root: key.Root, size: size}, checkSize(size)
}
