package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
)

// Freed says what GC removed.
type Freed struct {
	Models []digest.Digest
	Blobs  []Key
}

// GC removes the blobs that nobody has needed for longer than Config.KeepOrphans, and then, until
// the quota and the bytes to keep free hold, what was used least recently: models that are not
// pinned, and blobs that belong to no model and are neither pinned nor in use. The error is
// ErrNoSpace where that is not enough.
func (s *Store) GC(ctx context.Context) (Freed, error) {
	s.space.Lock()
	defer s.space.Unlock()
	var freed Freed
	if s.cfg.KeepOrphans > 0 {
		limit := time.Now().Add(-s.cfg.KeepOrphans)
		for {
			v, ok := s.victim(func(v victim) bool { return v.model == nil && v.used.Before(limit) })
			if !ok {
				break
			}
			if err := s.evict(ctx, v, &freed); err != nil {
				return freed, err
			}
		}
	}
	for {
		short, err := s.short(nil)
		if err != nil || short <= 0 {
			return freed, err
		}
		v, ok := s.victim(nil)
		if !ok {
			return freed, fmt.Errorf("%d bytes over the limit: %w", short, ErrNoSpace)
		}
		if err := s.evict(ctx, v, &freed); err != nil {
			return freed, err
		}
	}
}

// reserve sets room aside for all of a blob before its first byte is written, and makes it if need
// be. e.busy is held.
func (s *Store) reserve(ctx context.Context, e *entry) error {
	s.mu.Lock()
	whole := e.complete || e.reserved
	s.mu.Unlock()
	if whole {
		return nil
	}
	s.space.Lock()
	defer s.space.Unlock()
	var freed Freed
	for {
		short, err := s.short(e)
		if err != nil {
			return err
		}
		if short <= 0 {
			s.mu.Lock()
			e.reserved = true
			s.mu.Unlock()
			return nil
		}
		// Nothing is removed for a blob that will not fit in the end.
		v, ok := s.victim(nil)
		if !ok || s.reclaimable() < short {
			return fmt.Errorf("blob %s of %d bytes: %d bytes more would have to be free, as some are to stay so: %w", e.key.Digest, e.size, short, ErrNoSpace)
		}
		if err := s.evict(ctx, v, &freed); err != nil {
			return err
		}
	}
}

// short is how many bytes are missing for the quota and KeepFree to hold once the blobs in use, and
// e if it is not nil, are whole. It is negative where there is room.
func (s *Store) short(e *entry) (int64, error) {
	free, err := freeBytes(s.cfg.Dir)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var charged, coming int64 // against the quota; still to be written
	for _, other := range s.entries {
		switch {
		case other == e || other.reserved:
			held := other.allocated
			if other.blob != nil {
				held = other.blob.Held()
			}
			charged += other.size
			coming += max(0, other.size-held)
		case other.complete:
			charged += other.size
		default:
			charged += other.allocated
		}
	}
	for _, r := range s.known {
		charged += r.Extra
	}
	missing := s.cfg.KeepFree + coming - free
	if coming == 0 && s.cfg.KeepFree == 0 {
		missing = 0 // a full disk harms nobody who writes nothing
	}
	if s.cfg.Quota > 0 {
		missing = max(missing, charged-s.cfg.Quota)
	}
	return missing, nil
}

// victim is what may be removed.
type victim struct {
	model *record
	blob  *entry // if model is nil
	used  time.Time
}

// victim returns the least recently used of what may be removed and pick, if not nil, picks.
func (s *Store) victim(pick func(victim) bool) (victim, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest victim
	found := false
	consider := func(v victim) {
		if (pick == nil || pick(v)) && (!found || v.used.Before(oldest.used)) {
			oldest, found = v, true
		}
	}
	needed := s.needed(nil)
	pinned := s.needed(s.pinned)
	for _, e := range s.entries {
		if s.idle(e) && !needed[e.key] {
			consider(victim{blob: e, used: e.used})
		}
	}
	for _, r := range s.known {
		if s.pinned(r) {
			continue
		}
		for _, key := range r.Layers {
			if !pinned[key] && s.freeable(s.entries[key]) {
				consider(victim{model: r, used: r.used}) // else its end would free nothing
				break
			}
		}
	}
	return oldest, found
}

func (s *Store) pinned(r *record) bool { return len(s.pins[r.Digest]) > 0 }

// idle reports whether nobody uses or pins a blob; s.mu is held.
func (s *Store) idle(e *entry) bool {
	return e.onDisk && e.refs == 0 && e.blob == nil && len(s.pins[e.key.Digest]) == 0
}

// freeable reports whether a model's blob is freed by the model's end: when it is idle, or when
// Config.Evicted makes its users give it up. s.mu is held.
func (s *Store) freeable(e *entry) bool {
	if e == nil || len(s.pins[e.key.Digest]) > 0 {
		return false
	}
	return s.idle(e) || s.cfg.Evicted != nil
}

// reclaimable is how many bytes the end of all victims would free at most.
func (s *Store) reclaimable() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := s.needed(nil)
	pinned := s.needed(s.pinned)
	var sum int64
	for key, e := range s.entries {
		switch {
		case pinned[key], needed[key] && !s.freeable(e), !needed[key] && !s.idle(e):
		case e.complete || e.blob != nil:
			sum += e.size
		default:
			sum += e.allocated
		}
	}
	return sum
}

// evict removes v and adds it to freed. s.space is held, so that no two make room at once.
func (s *Store) evict(ctx context.Context, v victim, freed *Freed) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if v.model == nil {
		err := s.removeBlob(v.blob)
		if errors.Is(err, ErrInUse) {
			return nil // taken into use meanwhile; it is no victim any more
		}
		if err == nil {
			freed.Blobs = append(freed.Blobs, v.blob.key)
			s.log.InfoContext(ctx, "blob removed", slog.String("digest", v.blob.key.Digest.String()), slog.Int64("bytes", v.blob.size))
		}
		return err
	}
	s.trees.Lock()
	s.mu.Lock()
	stay := s.known[v.model.Digest] != v.model || s.pinned(v.model)
	s.mu.Unlock()
	var err error
	if !stay {
		err = s.withdraw(v.model.Digest)
	}
	s.trees.Unlock()
	if err != nil || stay {
		return err
	}
	s.log.InfoContext(ctx, "model removed", slog.String("digest", v.model.Digest.String()), slog.String("model", v.model.Name))
	freed.Models = append(freed.Models, v.model.Digest)
	err = s.removeUnneeded(v.model.Layers)
	if s.cfg.Evicted != nil {
		s.cfg.Evicted(v.model.Digest, v.model.Layers)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range v.model.Layers {
		if s.entries[key] == nil {
			freed.Blobs = append(freed.Blobs, key)
		}
	}
	return err
}
