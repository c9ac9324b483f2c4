// Package sample makes the models that a bench carries, and checks what became of them.
package sample

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
)

// Make writes files of random bytes, size bytes together, and returns their sha256.
func Make(ctx context.Context, dir string, size int64, files int, seed byte) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for i := range files {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, files)
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		n := size / int64(files)
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(rand.NewChaCha8([32]byte{seed, byte(i)}), n), make([]byte, 1<<20))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		if sums[name], err = Sum(ctx, f.Name()); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

// sparseHead is how much of a sparse file is not a hole, in bytes.
const sparseHead = 1 << 20

// MakeSparse is Make with files that are holes but for their first bytes: large models for small disks.
func MakeSparse(ctx context.Context, dir string, size int64, files int, seed byte) (map[string]string, error) {
	sums, err := Make(ctx, dir, sparseHead*int64(files), files, seed)
	if err != nil {
		return nil, err
	}
	for name := range sums {
		file := filepath.Join(dir, name)
		if err := os.Truncate(file, size/int64(files)); err != nil {
			return nil, err
		}
		if sums[name], err = Sum(ctx, file); err != nil {
			return nil, err
		}
	}
	return sums, nil
}

// Dig makes holes of the zeros in the files under dir, with fallocate(1).
func Dig(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if out, err := exec.CommandContext(ctx, "fallocate", "--dig-holes", p).CombinedOutput(); err != nil {
			return fmt.Errorf("fallocate --dig-holes %s: %w: %s", p, err, out)
		}
		return nil
	})
}

// Sum returns the sha256 of a file.
func Sum(ctx context.Context, file string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// Remove removes dir with its read-only folders.
func Remove(dir string) error {
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700) //nolint:gosec // a folder
		}
		return nil
	})
	return os.RemoveAll(dir)
}
