package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// byName is the folder of links to the models' trees.
const byName = "by-name"

// Model is what Publish makes a tree of.
type Model struct {
	// Name is how people call it; the link models/by-name/<Name, escaped> points to the tree. It
	// may be empty, which makes no link.
	Name string
	// Digest is that of the image manifest.
	Digest digest.Digest
	// Layers are the image's layers, whose blobs were made with the same Spec.Layer.
	Layers []model.Layer
}

// record says which blobs a model is made of. Its file's time of modification is the model's last
// use.
type record struct {
	Version int           `json:"version"`
	Digest  digest.Digest `json:"digest"`
	Name    string        `json:"name,omitempty"`
	Layers  []Key         `json:"layers"`
	// Built says that the tree was made by Tree.Build; Extra is what its own files take, in bytes.
	Built bool  `json:"built,omitempty"`
	Extra int64 `json:"extra,omitempty"`

	used time.Time
}

func (m Model) validate() error {
	if err := checkDigest(m.Digest); err != nil {
		return err
	}
	if len(escapeName(m.Name)) > 255 {
		return fmt.Errorf("model %s: its name is too long; at most 255 bytes when escaped", m.Digest)
	}
	var paths []string
	for _, l := range m.Layers {
		if err := l.Validate(); err != nil {
			return fmt.Errorf("model %s: %w", m.Digest, err)
		}
		for _, member := range l.Members {
			paths = append(paths, member.Path)
		}
	}
	if err := model.CheckPaths(paths); err != nil {
		return fmt.Errorf("model %s: %w", m.Digest, err)
	}
	return nil
}

// escapeName makes a file name of any name.
func escapeName(name string) string {
	name = url.PathEscape(name)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}

// TreePath is where the model of a manifest is, or will be, published.
func (s *Store) TreePath(manifest digest.Digest) string {
	return filepath.Join(s.models, manifest.Encoded())
}

// Publish makes the tree of m's files visible, by one rename and after they were synced, and returns
// its path. A tree that is there already stays as it is.
//
// The error is ErrNotFound or ErrIncomplete where a layer is not there or not whole, a
// *CorruptError where its root is known to contradict its digest, a *model.SkeletonError where the
// member table lies, or a *model.PathError.
func (s *Store) Publish(ctx context.Context, m Model) (_ string, err error) {
	if err := m.validate(); err != nil {
		return "", err
	}
	r := &record{Version: formatVersion, Digest: m.Digest, Name: m.Name}
	blobs := make([]*Blob, 0, len(m.Layers))
	defer func() {
		for _, b := range blobs {
			err = errors.Join(err, b.Close())
		}
	}()
	for _, l := range m.Layers {
		b, err := s.OpenBlob(ctx, KeyOf(l))
		if err != nil {
			return "", fmt.Errorf("model %s: %w", m.Digest, err)
		}
		blobs = append(blobs, b)
		if err := b.publishable(); err != nil {
			return "", fmt.Errorf("model %s: %w", m.Digest, err)
		}
		r.Layers = append(r.Layers, b.key)
	}
	s.trees.Lock()
	defer s.trees.Unlock()
	tree := s.TreePath(m.Digest)
	if !s.treeStands(tree, r, m.Layers) {
		if err := s.withdraw(m.Digest); err != nil && !errors.Is(err, ErrNotFound) {
			return "", err
		}
		if err := s.writeTree(ctx, tree, r, m.Layers); err != nil {
			return "", fmt.Errorf("model %s: publish: %w", m.Digest, err)
		}
	}
	if m.Name != "" {
		if err := s.link(m.Name, m.Digest); err != nil {
			return "", fmt.Errorf("model %s: publish: %w", m.Digest, err)
		}
	}
	return tree, nil
}

// publishable checks what a tree relies on, and syncs.
func (b *Blob) publishable() error {
	b.mu.RLock()
	missing, contradicted, sum := b.missing, b.contradicted, b.sum
	b.mu.RUnlock()
	if missing > 0 {
		return fmt.Errorf("blob %s: %d of %d pieces missing: %w", b.key.Digest, missing, b.count, ErrIncomplete)
	}
	if contradicted {
		sha, err := resumeSum(sum)
		if err != nil {
			return err
		}
		return b.corrupt(sha.Sum(nil))
	}
	if err := b.checkSkeleton(); err != nil {
		return err
	}
	return b.Sync()
}

// treeStands reports whether the tree is there, made of these very files: a file that somebody
// removed from a blob's folder was made anew there, and the tree would keep the old one.
func (s *Store) treeStands(tree string, r *record, layers []model.Layer) bool {
	s.mu.Lock()
	known := s.known[r.Digest]
	s.mu.Unlock()
	if known == nil || !slices.Equal(known.Layers, r.Layers) {
		return false
	}
	for _, l := range layers {
		for i, m := range l.Members {
			a, errA := os.Lstat(filepath.Join(tree, filepath.FromSlash(m.Path)))
			b, errB := os.Lstat(filepath.Join(s.blobs, KeyOf(l).dir(), memberFile(i)))
			if errA != nil || errB != nil || !os.SameFile(a, b) {
				return false
			}
		}
	}
	return true
}

// writeTree writes the record and then the tree; s.trees is held. A record without a tree is
// cleared away by Open.
func (s *Store) writeTree(ctx context.Context, tree string, r *record, layers []model.Layer) error {
	tmp, err := os.MkdirTemp(s.models, trashPrefix)
	if err != nil {
		return err
	}
	err = s.fillTree(ctx, tmp, layers)
	if err == nil {
		err = s.saveRecord(r)
	}
	if err == nil {
		err = os.Rename(tmp, tree)
	}
	if err != nil {
		return errors.Join(err, s.dropRecord(r.Digest), removeTree(tmp))
	}
	return syncDir(s.models)
}

func (s *Store) saveRecord(r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := writeFile(s.records, recordName(r.Digest), raw); err != nil {
		return err
	}
	r.used = time.Now()
	s.mu.Lock()
	s.known[r.Digest] = r
	s.mu.Unlock()
	return nil
}

func (s *Store) dropRecord(d digest.Digest) error {
	s.mu.Lock()
	delete(s.known, d)
	s.mu.Unlock()
	err := os.Remove(filepath.Join(s.records, recordName(d)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func recordName(d digest.Digest) string { return d.Encoded() + ".json" }

// fillTree links all members below tmp: files 0444, folders 0555. Both ends of each link are inside
// the store whatever the paths say, because os.Root follows nothing out of it.
func (s *Store) fillTree(ctx context.Context, tmp string, layers []model.Layer) error {
	root, err := os.OpenRoot(s.cfg.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	base, err := filepath.Rel(s.cfg.Dir, tmp)
	if err != nil {
		return err
	}
	dirs := []string{"."}
	seen := map[string]bool{".": true}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		from := filepath.Join("blobs", KeyOf(l).dir())
		for i, m := range l.Members {
			at := filepath.Join(base, filepath.FromSlash(m.Path))
			if err := root.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				return err
			}
			for dir := path.Dir(m.Path); !seen[dir]; dir = path.Dir(dir) {
				seen[dir] = true
				dirs = append(dirs, dir)
			}
			file := filepath.Join(from, memberFile(i))
			if err := root.Chmod(file, 0o444); err != nil {
				return err
			}
			if err := root.Link(file, at); err != nil {
				return err
			}
		}
	}
	for _, dir := range dirs {
		dir = filepath.Join(tmp, filepath.FromSlash(dir))
		if err := syncDir(dir); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o555); err != nil {
			return err
		}
	}
	return nil
}

// link points models/by-name/<name> to the tree, by one rename.
func (s *Store) link(name string, d digest.Digest) error {
	dir := filepath.Join(s.models, byName)
	target := filepath.Join("..", d.Encoded())
	at := filepath.Join(dir, escapeName(name))
	if old, err := os.Readlink(at); err == nil && old == target {
		return nil
	}
	tmp := filepath.Join(s.models, trashPrefix+"link") // s.trees is held: there is one at a time
	os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, at); err != nil {
		return err
	}
	return syncDir(dir)
}

// Withdraw makes a model's tree disappear and forgets the model. Its blobs stay until GC or Remove;
// mounts of the tree keep their files. The error is ErrNotFound where there is no such model.
func (s *Store) Withdraw(manifest digest.Digest) error {
	s.trees.Lock()
	defer s.trees.Unlock()
	return s.withdraw(manifest)
}

func (s *Store) withdraw(d digest.Digest) error {
	s.mu.Lock()
	r := s.known[d]
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("model %s: %w", d, ErrNotFound)
	}
	if err := s.removeModelTree(d); err != nil {
		return fmt.Errorf("model %s: withdraw: %w", d, err)
	}
	return s.dropRecord(d)
}

// removeModelTree removes the names of a tree and then the tree, at once for those who look.
func (s *Store) removeModelTree(d digest.Digest) error {
	if err := s.unlink(func(target string) bool { return target == d.Encoded() }); err != nil {
		return err
	}
	gone, err := trash(s.models, d.Encoded())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return removeTree(gone)
}

// unlink removes the names whose tree drop picks.
func (s *Store) unlink(drop func(tree string) bool) error {
	dir := filepath.Join(s.models, byName)
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		at := filepath.Join(dir, name.Name())
		target, err := os.Readlink(at)
		if err != nil {
			continue // not ours
		}
		if drop(filepath.Base(target)) {
			if err := os.Remove(at); err != nil {
				return err
			}
		}
	}
	return nil
}
