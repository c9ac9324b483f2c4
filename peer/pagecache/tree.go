package pagecache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is the residency of one file.
type File struct {
	Path     string `json:"path"`     // relative to the tree; the file's own name where the tree is one file
	Size     int64  `json:"size"`     // bytes
	Resident int64  `json:"resident"` // bytes in the page cache
}

// Sum adds files up.
func Sum(files []File) (resident, size int64) {
	for _, f := range files {
		resident += f.Resident
		size += f.Size
	}
	return resident, size
}

// Residency measures the regular files below dir, which may be a file itself, in the order of their
// paths; of several links to one inode the first.
func Residency(ctx context.Context, dir string) ([]File, error) {
	var out []File
	err := walk(ctx, dir, func(f *os.File, file File) error {
		var err error
		file.Resident, err = resident(f, 0, file.Size)
		out = append(out, file)
		return err
	})
	return out, err
}

// Drop writes the files below dir to the disk and takes them out of the page cache, as far as nobody
// has them mapped: to see what a cold start costs.
func Drop(ctx context.Context, dir string) error {
	return walk(ctx, dir, func(f *os.File, _ File) error {
		if err := f.Sync(); err != nil {
			return err
		}
		return dontNeed(f)
	})
}

// walk opens the regular files below dir, one after another, each inode once. Links are not followed,
// but for dir itself.
func walk(ctx context.Context, dir string, fn func(f *os.File, file File) error) error {
	top, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	seen := map[inode]bool{}
	return filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			if path == top && !d.IsDir() {
				return fmt.Errorf("%s is neither a folder nor a file", dir)
			}
			return nil
		}
		name, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		if name == "." {
			name = filepath.Base(path)
		}
		return visit(path, name, seen, fn)
	})
}

func visit(path, name string, seen map[inode]bool, fn func(f *os.File, file File) error) (err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since its folder was read
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if id := inodeOf(info); seen[id] {
		return nil
	} else {
		seen[id] = true
	}
	if err := fn(f, File{Path: name, Size: info.Size()}); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
