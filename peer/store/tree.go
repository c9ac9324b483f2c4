package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Tree is what PublishTree makes visible: an image that Shoal did not pack.
type Tree struct {
	// Name is as in Model.
	Name string
	// Digest is that of the image manifest.
	Digest digest.Digest
	// Layers are the raw blobs of which the tree is made.
	Layers []Key
	// Build fills an empty folder. data opens nothing: it returns where a layer's bytes lie, as a
	// read-only file that may be linked into the folder and must not be written to.
	Build func(ctx context.Context, dir string, data func(Key) string) error
}

// PublishTree makes what t.Build writes visible, by one rename and after it was synced, and returns
// its path. A tree that is there already stays as it is. What was written, beside links to blobs,
// counts against the quota.
//
// The error is Build's, or ErrNotFound or ErrIncomplete where a layer is not there, not whole, or not
// verified.
func (s *Store) PublishTree(ctx context.Context, t Tree) (_ string, err error) {
	if err := (Model{Name: t.Name, Digest: t.Digest}).validate(); err != nil {
		return "", err
	}
	paths := map[Key]string{}
	for _, key := range t.Layers {
		b, err := s.OpenBlob(ctx, key)
		if err != nil {
			return "", fmt.Errorf("model %s: %w", t.Digest, err)
		}
		defer func() { err = errors.Join(err, b.Close()) }()
		if key.Root.IsZero() && !b.Verified() {
			return "", fmt.Errorf("model %s: blob %s: %w", t.Digest, key.Digest, ErrIncomplete)
		}
		paths[key] = b.path(0)
		if err := b.own(); err != nil {
			return "", fmt.Errorf("model %s: %w", t.Digest, err)
		}
		if err := os.Chmod(paths[key], 0o444); err != nil {
			return "", fmt.Errorf("model %s: %w", t.Digest, err)
		}
	}
	s.trees.Lock()
	defer s.trees.Unlock()
	at := s.TreePath(t.Digest)
	if !s.builtStands(at, t) {
		if err := s.withdraw(t.Digest); err != nil && !errors.Is(err, ErrNotFound) {
			return "", err
		}
		if err := s.buildTree(ctx, at, t, paths); err != nil {
			return "", fmt.Errorf("model %s: publish: %w", t.Digest, err)
		}
	}
	if t.Name != "" {
		if err := s.link(t.Name, t.Digest); err != nil {
			return "", fmt.Errorf("model %s: publish: %w", t.Digest, err)
		}
	}
	return at, nil
}

// builtStands reports whether the tree is there, made of these blobs.
func (s *Store) builtStands(at string, t Tree) bool {
	s.mu.Lock()
	known := s.known[t.Digest]
	s.mu.Unlock()
	if known == nil || !known.Built || !slices.Equal(known.Layers, t.Layers) {
		return false
	}
	_, err := os.Lstat(at)
	return err == nil
}

// buildTree builds beside the trees and renames; s.trees is held.
func (s *Store) buildTree(ctx context.Context, at string, t Tree, paths map[Key]string) error {
	tmp, err := os.MkdirTemp(s.models, trashPrefix)
	if err != nil {
		return err
	}
	r := &record{Version: formatVersion, Digest: t.Digest, Name: t.Name, Layers: t.Layers, Built: true}
	err = t.Build(ctx, tmp, func(k Key) string { return paths[k] })
	if err == nil {
		r.Extra, err = ownBytes(tmp)
	}
	if err == nil {
		err = syncTree(tmp)
	}
	if err == nil {
		err = os.Chmod(tmp, 0o555)
	}
	if err == nil {
		err = s.saveRecord(r)
	}
	if err == nil {
		err = os.Rename(tmp, at)
	}
	if err != nil {
		return errors.Join(err, s.dropRecord(t.Digest), removeTree(tmp))
	}
	return syncDir(s.models)
}

// ownBytes is what the files below dir take that are no links to something else.
func ownBytes(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink == 1 {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// syncTree syncs everything below dir: with thousands of small files, the file system at once is
// faster than each by itself.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Room returns how many bytes can be written beside the blobs without passing the quota or the bytes
// to keep free.
func (s *Store) Room() (int64, error) {
	short, err := s.short(nil)
	if err != nil {
		return 0, err
	}
	if s.cfg.Quota == 0 {
		free, err := freeBytes(s.cfg.Dir)
		return max(0, min(free-s.cfg.KeepFree, -short)), err
	}
	return max(0, -short), nil
}
