// Package source holds the places that a model's files come from, each a model.Source. Commands make
// one and hand it to model.Pack; the other components never import it.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// ErrChanged means that a file is no longer the one that List saw.
var ErrChanged = errors.New("the file changed while it was packed; pack it again when nothing writes to it")

// Dir is a directory of this machine. Symbolic links are followed while they stay below the
// directory (a Hugging Face snapshot needs its cache directory as a whole, or `--local-dir`).
type Dir struct {
	root  string // absolute, without links
	cache *checksums
	read  atomic.Int64

	mu     sync.Mutex
	listed map[string]identity
}

// NewDir opens the directory root. stateDir keeps the checksums of the files between runs, so that
// an unchanged file is not read for the next version; empty means that nothing is kept.
func NewDir(root, stateDir string, log *slog.Logger) (*Dir, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("model directory: %w", err)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("model directory: %w", err)
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("model directory %s is not a directory", root)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Dir{root: abs, cache: openChecksums(stateDir, abs, log), listed: make(map[string]identity)}, nil
}

// String names the directory.
func (d *Dir) String() string { return "directory " + d.root }

// BytesRead is how many bytes of content were read so far.
func (d *Dir) BytesRead() int64 { return d.read.Load() }

// identity tells two states of a file apart without reading it.
type identity struct {
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds since the epoch
	Inode uint64 `json:"inode"`
	CTime int64  `json:"ctime"` // nanoseconds; catches a write whose mtime was set back
}

func identityOf(info fs.FileInfo) identity {
	id := identity{Size: info.Size(), MTime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.Inode = st.Ino
		id.CTime = ctime(st)
	}
	return id
}

// List implements model.Source. Links that leave the tree, links to directories and special files
// are errors that name the file.
func (d *Dir) List(ctx context.Context) ([]model.File, error) {
	var files []model.File
	err := filepath.WalkDir(d.root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(d.root, name)
		if err != nil {
			return err
		}
		info, err := d.stat(name, entry)
		if err != nil {
			return fmt.Errorf("model file %q: %w", rel, err)
		}
		slashed := filepath.ToSlash(rel)
		id := identityOf(info)
		d.mu.Lock()
		d.listed[slashed] = id
		d.mu.Unlock()
		files = append(files, model.File{
			Path:     slashed,
			Size:     id.Size,
			Checksum: d.cache.get(slashed, id),
			Revision: fmt.Sprintf("%d-%d-%d-%d", id.Inode, id.Size, id.MTime, id.CTime),
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

func (d *Dir) stat(name string, entry fs.DirEntry) (fs.FileInfo, error) {
	if entry.Type()&fs.ModeSymlink != 0 {
		target, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil, err
		}
		if target != d.root && !strings.HasPrefix(target, d.root+string(filepath.Separator)) {
			return nil, fmt.Errorf("is a link out of the model's directory, to %s: copy the file into it", target)
		}
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("is not a regular file (%s)", info.Mode().Type())
	}
	return info, nil
}

// Open implements model.Source; its errors wrap ErrChanged where the file is not the one listed.
func (d *Dir) Open(_ context.Context, name string, offset int64) (io.ReadCloser, error) {
	d.mu.Lock()
	id, ok := d.listed[name]
	d.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("model file %q was not listed", name)
	}
	// os.Root refuses a link out of the tree that was put there after List.
	root, err := os.OpenRoot(d.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(filepath.FromSlash(path.Clean(name)), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("model file %q: %w", name, err)
	}
	r := &reader{File: f, dir: d, name: name, id: id}
	if err := r.check(); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("model file %q: %w", name, err)
	}
	return r, nil
}

// Learn implements model.Learner.
func (d *Dir) Learn(sums map[string]digest.Digest) {
	stored := false
	for name, sum := range sums {
		d.mu.Lock()
		id, ok := d.listed[name]
		d.mu.Unlock()
		if ok && d.cache.put(name, id, sum) {
			stored = true
		}
	}
	if !stored {
		return
	}
	if err := d.cache.save(); err != nil {
		d.cache.log.Warn("checksum cache is not writable, files will be read again for the next version", "error", err)
	}
}

// reader checks at the end of the file that it is still the one that was listed: whoever reads to
// io.EOF knows that all bytes are of one version.
type reader struct {
	*os.File
	dir  *Dir
	name string
	id   identity
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.File.Read(p)
	r.dir.read.Add(int64(n))
	if err == io.EOF {
		if changed := r.check(); changed != nil {
			return n, changed
		}
	}
	return n, err
}

func (r *reader) check() error {
	info, err := r.File.Stat()
	if err != nil {
		return fmt.Errorf("model file %q: %w", r.name, err)
	}
	if identityOf(info) != r.id || !info.Mode().IsRegular() {
		return fmt.Errorf("model file %q: %w", r.name, ErrChanged)
	}
	return nil
}
