package pagecache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/docker/go-units"
	"golang.org/x/sync/errgroup"
)

// Config says how much is warmed, and how fast. Its zero value warms what memory has room for.
type Config struct {
	// Budget is how many bytes of the tree may be resident; 0 means as many as Room says.
	Budget int64
	// Reserve is how many bytes of memory stay free beside the cache; 0 means DefaultReserve.
	Reserve int64
	// Parallel is how many reads run at once; 0 means 4, which a local NVMe disk needs for its full
	// speed and a network disk does not mind.
	Parallel int
	// Wait, if any, is called before n bytes are read from the disk, and may hold the read up.
	Wait func(ctx context.Context, n int) error
	// Progress, if any, is told of bytes that are resident now, from several goroutines.
	Progress func(n int64)
}

const (
	// DefaultReserve is what stays free: kubelet begins to evict pods below 100 MiB by default
	// (memory.available), and a node that is that close is slow before.
	DefaultReserve = 1 << 30
	// chunk is what is looked at as one: with 16 MiB the questions to the kernel cost nothing, and a
	// disk is read in long runs.
	chunk = 16 << 20
	// readSize is what one read asks for: Parallel times this is all the memory that warming takes.
	readSize = 1 << 20
)

// Result is what Warm reached.
type Result struct {
	Files    []File
	Resident int64 // bytes, measured at the end
	Total    int64 // bytes
	Read     int64 // bytes that were read because they were missing
	// Stopped says why Resident is less than Total, in a sentence; "" where it is not.
	Stopped string
}

// Warm reads what is missing of the files below dir into the page cache, in the order of their
// paths, and measures the outcome.
func Warm(ctx context.Context, dir string, cfg Config) (Result, error) {
	before, err := Residency(ctx, dir)
	if err != nil {
		return Result{}, err
	}
	have, total := Sum(before)
	limit, why, err := cfg.limit(have)
	if err != nil {
		return Result{}, err
	}
	w := &warmer{cfg: cfg}
	w.left.Store(limit - have)
	if cfg.Progress != nil {
		cfg.Progress(min(have, total))
	}
	err = walk(ctx, dir, func(f *os.File, file File) error { return w.file(ctx, f, file.Size) })
	if err != nil && !errors.Is(err, errBudget) {
		return Result{}, err
	}
	out := Result{Read: w.read.Load()}
	if out.Files, err = Residency(ctx, dir); err != nil {
		return out, err
	}
	out.Resident, out.Total = Sum(out.Files)
	switch {
	case out.Resident >= out.Total:
	case limit < total:
		out.Stopped = fmt.Sprintf("stopped at %s: %s of %s are resident", why, size(out.Resident), size(out.Total))
	default:
		out.Stopped = fmt.Sprintf("the kernel has taken pages away again: %s of %s are resident; free memory, or set a budget", size(out.Resident), size(out.Total))
	}
	return out, nil
}

// limit is how many bytes of the tree may be resident, of which have are now, and what bounds them.
func (c Config) limit(have int64) (int64, string, error) {
	reserve := c.Reserve
	if reserve <= 0 {
		reserve = DefaultReserve
	}
	room, err := Room(reserve)
	if err != nil {
		return 0, "", err
	}
	if c.Budget > 0 && c.Budget <= room {
		return c.Budget, "the budget of " + size(c.Budget), nil
	}
	return max(have, room), fmt.Sprintf("what memory has room for, %s with %s in reserve", size(room), size(reserve)), nil
}

func size(n int64) string { return units.BytesSize(float64(n)) }

var errBudget = errors.New("the budget is used up")

type warmer struct {
	cfg  Config
	left atomic.Int64 // bytes of the budget
	read atomic.Int64
	bufs sync.Pool
}

// file reads the missing parts of one file, several chunks at once.
func (w *warmer) file(ctx context.Context, f *os.File, total int64) error {
	parallel := w.cfg.Parallel
	if parallel <= 0 {
		parallel = 4
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for off := int64(0); off < total && ctx.Err() == nil; off += chunk {
		group.Go(func() error { return w.chunk(ctx, f, off, min(chunk, total-off)) })
	}
	return group.Wait()
}

func (w *warmer) chunk(ctx context.Context, f *os.File, off, n int64) error {
	have, err := resident(f, off, n)
	if err != nil || have == n {
		return err
	}
	missing := []run{{off, n}}
	if have > 0 {
		if missing, err = missingRuns(f, off, n); err != nil {
			return err
		}
	}
	for _, r := range missing {
		for at := r.off; at < r.off+r.n; {
			got, err := w.readAt(ctx, f, at, min(readSize, r.off+r.n-at))
			if err != nil || got == 0 {
				return err
			}
			at += got
		}
	}
	return nil
}

// readAt reads n bytes into nowhere. 0 means that the file has become shorter.
func (w *warmer) readAt(ctx context.Context, f *os.File, off, n int64) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if w.left.Add(-n) < 0 {
		return 0, errBudget
	}
	if w.cfg.Wait != nil {
		if err := w.cfg.Wait(ctx, int(n)); err != nil {
			return 0, err
		}
	}
	buf, _ := w.bufs.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, readSize)
		buf = &b
	}
	defer w.bufs.Put(buf)
	got, err := f.ReadAt((*buf)[:n], off)
	w.read.Add(int64(got))
	if w.cfg.Progress != nil {
		w.cfg.Progress(int64(got))
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return int64(got), err
}
