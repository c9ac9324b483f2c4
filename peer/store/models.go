package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// ModelInfo describes a published model.
type ModelInfo struct {
	Name   string
	Digest digest.Digest // of the image manifest
	Path   string        // of the tree
	Layers []Key
	Size   int64     // of the layers, in bytes
	Used   time.Time // when it was published, or last unpinned
	Owners []string  // who pins it, sorted
}

// Models lists the published models, the least recently used first.
func (s *Store) Models() []ModelInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]ModelInfo, 0, len(s.known))
	for _, r := range s.known {
		info := ModelInfo{
			Name: r.Name, Digest: r.Digest, Path: s.TreePath(r.Digest), Layers: slices.Clone(r.Layers),
			Used: r.used, Owners: slices.Sorted(maps.Keys(s.pins[r.Digest])),
		}
		for _, key := range r.Layers {
			if e := s.entries[key]; e != nil {
				info.Size += e.size
			}
		}
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b ModelInfo) int { return a.Used.Compare(b.Used) })
	return all
}

// pinsFile is where the pins are written down.
const pinsFile = "pins.json"

// Pin keeps what has this digest, a model's manifest or a blob, from being removed for owner's sake
// until Unpin. It need not be there yet.
func (s *Store) Pin(d digest.Digest, owner string) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	s.trees.Lock()
	defer s.trees.Unlock()
	s.mu.Lock()
	before := s.pins[d][owner]
	if s.pins[d] == nil {
		s.pins[d] = map[string]bool{}
	}
	s.pins[d][owner] = true
	s.mu.Unlock()
	if before {
		return nil
	}
	return s.savePins()
}

// Unpin takes back owner's Pin, and counts as a use of the model. Without such a pin it does nothing.
func (s *Store) Unpin(d digest.Digest, owner string) error {
	s.trees.Lock()
	defer s.trees.Unlock()
	s.mu.Lock()
	if !s.pins[d][owner] {
		s.mu.Unlock()
		return nil
	}
	delete(s.pins[d], owner)
	if len(s.pins[d]) == 0 {
		delete(s.pins, d)
	}
	now := time.Now()
	r := s.known[d]
	if r != nil {
		r.used = now
	}
	s.mu.Unlock()
	if r != nil {
		if err := touch(filepath.Join(s.records, recordName(d)), now); err != nil {
			return err
		}
	}
	return s.savePins()
}

// Pinned lists what owner pins, in no order.
func (s *Store) Pinned(owner string) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []digest.Digest
	for d, owners := range s.pins {
		if owners[owner] {
			all = append(all, d)
		}
	}
	return all
}

func (s *Store) savePins() error {
	s.mu.Lock()
	saved := make(map[digest.Digest][]string, len(s.pins))
	for d, owners := range s.pins {
		saved[d] = slices.Sorted(maps.Keys(owners))
	}
	s.mu.Unlock()
	raw, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	return writeFile(s.cfg.Dir, pinsFile, raw)
}

// Remove withdraws a model, whoever pins it, and removes the blobs that no other model needs: at
// once, or at their last Close where somebody still uses them. The error is ErrNotFound where there
// is no such model.
func (s *Store) Remove(manifest digest.Digest) error {
	s.mu.Lock()
	r := s.known[manifest]
	s.mu.Unlock()
	if err := s.Withdraw(manifest); err != nil {
		return err
	}
	return s.removeUnneeded(r.Layers)
}

// removeUnneeded removes those blobs that no model needs.
func (s *Store) removeUnneeded(keys []Key) error {
	var errs []error
	s.mu.Lock()
	needed := s.needed(nil)
	var idle []*entry
	for _, key := range keys {
		e := s.entries[key]
		if e == nil || needed[key] || len(s.pins[key.Digest]) > 0 {
			continue
		}
		e.doomed = true
		if e.refs == 0 && e.blob == nil {
			idle = append(idle, e)
		}
	}
	s.mu.Unlock()
	for _, e := range idle {
		if err := s.removeBlob(e); err != nil && !errors.Is(err, ErrInUse) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// needed returns the blobs of the models that pick picks, of all for nil; s.mu is held.
func (s *Store) needed(pick func(*record) bool) map[Key]bool {
	keys := map[Key]bool{}
	for _, r := range s.known {
		if pick == nil || pick(r) {
			for _, key := range r.Layers {
				keys[key] = true
			}
		}
	}
	return keys
}

// RemoveBlob removes a blob. The error is ErrNotFound, or ErrInUse while somebody has it open or a
// model is made of it.
func (s *Store) RemoveBlob(key Key) error {
	s.mu.Lock()
	e := s.entries[key]
	needed := s.needed(nil)[key]
	s.mu.Unlock()
	switch {
	case e == nil:
		return fmt.Errorf("blob %s: %w", key, ErrNotFound)
	case needed:
		return fmt.Errorf("blob %s: %w: a model is made of it", key, ErrInUse)
	}
	return s.removeBlob(e)
}

// removeBlob removes a blob at rest.
func (s *Store) removeBlob(e *entry) error {
	s.mu.Lock()
	if e.refs > 0 || e.blob != nil || s.entries[e.key] != e || s.needed(nil)[e.key] {
		s.mu.Unlock()
		return fmt.Errorf("blob %s: %w", e.key, ErrInUse)
	}
	// Under the lock: whoever creates the blob now makes a new folder.
	gone, err := trash(s.blobs, e.key.dir())
	if err == nil {
		delete(s.entries, e.key)
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("blob %s: remove: %w", e.key, err)
	}
	return removeTree(gone)
}
