package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// scan reads what lies in the store's folder. It opens no file of a blob: that is done when the
// blob comes into use.
func (s *Store) scan(ctx context.Context) error {
	for _, dir := range []string{s.blobs, s.models} {
		if err := clearTrash(dir); err != nil {
			return err
		}
	}
	if err := s.scanBlobs(ctx); err != nil {
		return err
	}
	if err := s.scanRecords(ctx); err != nil {
		return err
	}
	if err := s.scanTrees(); err != nil {
		return err
	}
	return s.readPins()
}

func clearTrash(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) scanBlobs(ctx context.Context) error {
	entries, err := os.ReadDir(s.blobs)
	if err != nil {
		return err
	}
	for _, found := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := s.scanBlob(filepath.Join(s.blobs, found.Name()))
		if unreadable(err) {
			return err
		}
		if err != nil {
			// Without its description nothing in the folder can be used or checked.
			s.log.WarnContext(ctx, "damaged blob removed", slog.String("folder", found.Name()), slog.Any("error", err))
			gone, err := trash(s.blobs, found.Name())
			if err == nil {
				err = removeTree(gone)
			}
			if err != nil {
				return err
			}
			continue
		}
		s.entries[e.key] = e
	}
	return nil
}

// unreadable reports whether err says nothing about the files: we could not look, or they are of a
// newer program. They stay then.
func unreadable(err error) bool {
	_, failed := errors.AsType[*fs.PathError](err)
	return failed && !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errVersion)
}

func (s *Store) scanBlob(dir string) (*entry, error) {
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(dir, specFile))
	if err != nil {
		return nil, err
	}
	e := &entry{key: spec.Key(), size: spec.Size, busy: newLock(), onDisk: true, used: info.ModTime()}
	files := 1
	if spec.Layer != nil {
		files += len(spec.Layer.Members)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, stateFile)); err == nil {
		if st, err := parseState(raw, spec.numPieces(), files); err == nil {
			e.complete = true
			for i := range spec.numPieces() {
				e.complete = e.complete && st.Pieces.has(i)
			}
			e.verified = e.complete && st.Verified
		}
	}
	e.allocated, err = allocated(dir)
	return e, err
}

// scanRecords reads the models' records and drops those whose tree or blobs are gone.
func (s *Store) scanRecords(ctx context.Context) error {
	entries, err := os.ReadDir(s.records)
	if err != nil {
		return err
	}
	for _, found := range entries {
		at := filepath.Join(s.records, found.Name())
		r, err := s.readRecord(at)
		if unreadable(err) {
			return err
		}
		if err != nil {
			s.log.WarnContext(ctx, "model forgotten", slog.String("record", found.Name()), slog.Any("error", err))
			if err := os.Remove(at); err != nil {
				return err
			}
			continue
		}
		s.known[r.Digest] = r
	}
	return nil
}

func (s *Store) readRecord(at string) (*record, error) {
	raw, err := os.ReadFile(at)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(at)
	if err != nil {
		return nil, err
	}
	r := record{used: info.ModTime()}
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if r.Version != formatVersion {
		return nil, fmt.Errorf("%s: version %d: %w", at, r.Version, errVersion)
	}
	if err := checkDigest(r.Digest); err != nil {
		return nil, err
	}
	if recordName(r.Digest) != filepath.Base(at) {
		return nil, fmt.Errorf("describes model %s", r.Digest)
	}
	if _, err := os.Stat(s.TreePath(r.Digest)); err != nil {
		return nil, err
	}
	for _, key := range r.Layers {
		if s.entries[key] == nil {
			return nil, fmt.Errorf("blob %s: %w", key, ErrNotFound)
		}
	}
	return &r, nil
}

// scanTrees removes trees without a record, and names without a tree.
func (s *Store) scanTrees() error {
	entries, err := os.ReadDir(s.models)
	if err != nil {
		return err
	}
	for _, found := range entries {
		if found.Name() == byName || s.hasTree(found.Name()) {
			continue
		}
		gone, err := trash(s.models, found.Name())
		if err == nil {
			err = removeTree(gone)
		}
		if err != nil {
			return err
		}
	}
	return s.unlink(func(tree string) bool { return !s.hasTree(tree) })
}

func (s *Store) hasTree(name string) bool {
	return s.known[digest.NewDigestFromEncoded(digest.SHA256, name)] != nil
}

func (s *Store) readPins() error {
	raw, err := os.ReadFile(filepath.Join(s.cfg.Dir, pinsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var saved map[digest.Digest][]string
	if err := json.Unmarshal(raw, &saved); err != nil {
		return fmt.Errorf("%s: %w; remove it if no mounted model may be lost", pinsFile, err)
	}
	for d, owners := range saved {
		s.pins[d] = map[string]bool{}
		for _, owner := range owners {
			s.pins[d][owner] = true
		}
	}
	return nil
}
