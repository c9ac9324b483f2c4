package mirror

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/model"
)

const (
	// segmentWait is how long a question for segments that have not come yet is held.
	segmentWait = 20 * time.Second
	// segmentsAtOnce is how many segments an answer has at most.
	segmentsAtOnce = 8
	// keptSegments is how many hash layers are kept: at 16 KiB each, those of 256 GiB take 16 MiB.
	// Others are hashed again from the disk.
	keptSegments = 1024
)

// segments remembers the hash layers of the blobs' segments, the most lately used ones.
type segments struct {
	mu   sync.Mutex
	at   map[segmentKey]*list.Element
	used list.List // of keptSegment, the latest first
}

type segmentKey struct {
	digest digest.Digest
	i      int
}

type keptSegment struct {
	key segmentKey
	model.Segment
}

func (s *segments) get(key segmentKey) (model.Segment, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.at[key]
	if e == nil {
		return model.Segment{}, false
	}
	s.used.MoveToFront(e)
	return e.Value.(keptSegment).Segment, true
}

func (s *segments) put(key segmentKey, segment model.Segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		s.at = map[segmentKey]*list.Element{}
	}
	if s.at[key] != nil {
		return
	}
	s.at[key] = s.used.PushFront(keptSegment{key, segment})
	for s.used.Len() > keptSegments {
		last := s.used.Back()
		delete(s.at, s.used.Remove(last).(keptSegment).key)
	}
}

// Segments describes the segments of a blob from number from on, as many as have come, and starts
// its fill if need be. It waits for the first of them, for as long as ctx lets it. Its errors are
// those of Blob and Blob.Wait.
func (m *Mirror) Segments(ctx context.Context, src Source, d digest.Digest, from int) (model.SegmentList, error) {
	blob, err := m.Blob(ctx, src, d)
	if err != nil {
		return model.SegmentList{}, err
	}
	defer blob.Close()
	out := model.SegmentList{Size: blob.Size(), From: from}
	if from < 0 || from >= model.NumSegments(out.Size) {
		return out, fmt.Errorf("blob %s has %d segments, there is no number %d: %w", d, model.NumSegments(out.Size), from, pullapi.ErrRange)
	}
	for i := from; i < min(from+segmentsAtOnce, model.NumSegments(out.Size)); i++ {
		off, n := model.SegmentSpan(i, out.Size)
		if i > from && !blob.fill.has(off, off+n) {
			break // those that are there do not wait for it
		}
		segment, err := m.segment(ctx, blob, i)
		if err != nil {
			if i > from {
				break
			}
			return out, err
		}
		out.Segments = append(out.Segments, segment)
	}
	return out, nil
}

// segment hashes one segment as its bytes arrive. All who ask for it share the work.
func (m *Mirror) segment(ctx context.Context, blob *Blob, i int) (model.Segment, error) {
	key := segmentKey{blob.fill.digest, i}
	if s, ok := m.segments.get(key); ok {
		return s, nil
	}
	off, n := model.SegmentSpan(i, blob.Size())
	if err := blob.Wait(ctx, off); err != nil { // else one who asks early would hold a goroutine for long
		return model.Segment{}, err
	}
	v, err := m.do(ctx, fmt.Sprintf("segment %d of %s", i, key.digest), func(ctx context.Context) (any, error) {
		var hasher model.PieceHasher
		if err := m.readRange(ctx, blob.fill, off, n, func(chunk []byte) error {
			_, err := hasher.Write(chunk)
			return err
		}); err != nil {
			return nil, err
		}
		hashes, root := hasher.Sum()
		s := model.Segment{Root: root, Hashes: hashes}
		m.segments.put(key, s)
		return s, nil
	})
	if err != nil {
		return model.Segment{}, err
	}
	return v.(model.Segment), nil
}

// serveSegments answers GET /v2/<name>/_shoal/segments/<digest>?from=N with a model.SegmentList. Its
// list is empty where the segment has not come in time.
func (m *Mirror) serveSegments(w http.ResponseWriter, r *http.Request, src Source, t pullapi.Target) error {
	d, _ := t.Digest()
	from, err := strconv.Atoi(r.URL.Query().Get("from"))
	if err != nil {
		return fmt.Errorf("from=%q is not a number: %w", r.URL.Query().Get("from"), pullapi.ErrRange)
	}
	ctx, cancel := context.WithTimeout(r.Context(), segmentWait)
	defer cancel()
	found, err := m.Segments(ctx, src, d, from)
	if err != nil && (!errors.Is(err, context.DeadlineExceeded) || found.Size == 0) {
		return err
	}
	raw, err := json.Marshal(found)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	_, _ = w.Write(raw) // the client is gone where this fails
	return nil
}
