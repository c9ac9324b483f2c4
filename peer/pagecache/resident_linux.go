package pagecache

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// run is a part of a file.
type run struct{ off, n int64 } // bytes

// resident returns how many of the n bytes at off are in the page cache, to a page.
func resident(f *os.File, off, n int64) (int64, error) {
	if n <= 0 {
		return 0, nil
	}
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	if err == nil {
		return min(int64(stat.Cache)*pageSize(), n), nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) { // older than Linux 6.5; hugetlbfs
		return 0, fmt.Errorf("cachestat %s: %w", f.Name(), err)
	}
	missing, err := missingRuns(f, off, n)
	for _, r := range missing {
		n -= r.n
	}
	return n, err
}

// missingRuns returns the parts of the n bytes at off, a multiple of the page size, that are not in
// the page cache.
func missingRuns(f *os.File, off, n int64) ([]run, error) {
	pages, err := mincore(f, off, n)
	if err != nil {
		return nil, err
	}
	var out []run
	page := pageSize()
	for i, p := range pages {
		if p&1 != 0 {
			continue
		}
		at := off + int64(i)*page
		length := min(page, off+n-at)
		if last := len(out) - 1; last >= 0 && out[last].off+out[last].n == at {
			out[last].n += length
			continue
		}
		out = append(out, run{at, length})
	}
	return out, nil
}

// mincore returns a byte a page, of which bit 0 says that it is resident. Since Linux 5.2 it tells
// the truth only to who may write the file.
func mincore(f *os.File, off, n int64) ([]byte, error) {
	m, err := unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	vec := make([]byte, (n+pageSize()-1)/pageSize())
	err = minCore(m, vec)
	return vec, errors.Join(err, unix.Munmap(m))
}

func dontNeed(f *os.File) error {
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func pageSize() int64 { return int64(os.Getpagesize()) }
