package store

import (
	"fmt"
	"path/filepath"
	"sort"
)

// layout says where a blob's bytes lie.
type layout struct {
	files   []place
	extents []extent // in the order of the blob, without gaps
}

// place is a file of a blob, its name relative to the blob's folder.
type place struct {
	name string
	size int64 // bytes
}

// extent is a run of a blob's bytes in one file.
type extent struct {
	off, size int64 // in the blob
	file      int
	at        int64 // in the file
}

// skeletonFile is the file of a layer's header and padding bytes; member i is file i+1.
const skeletonFile = 0

func layoutFor(s Spec) *layout {
	if s.Layer == nil {
		l := &layout{files: []place{{"data", s.Size}}}
		if s.Size > 0 {
			l.extents = []extent{{0, s.Size, 0, 0}}
		}
		return l
	}
	l := &layout{files: make([]place, 1, len(s.Layer.Members)+1)}
	for i, m := range s.Layer.Members {
		l.files = append(l.files, place{memberFile(i), m.Size})
	}
	skeleton := int64(0) // side by side, so that the side file is no longer than its bytes
	for _, e := range s.Layer.Extents() {
		if e.Member >= 0 {
			l.extents = append(l.extents, extent{e.Offset, e.Size, e.Member + 1, 0})
			continue
		}
		l.extents = append(l.extents, extent{e.Offset, e.Size, skeletonFile, skeleton})
		skeleton += e.Size
	}
	l.files[skeletonFile] = place{"skeleton", skeleton}
	return l
}

func memberFile(i int) string { return filepath.Join("files", fmt.Sprint(i)) }

// each calls fn for the parts of the n bytes at off, in order, until it returns false or an error.
func (l *layout) each(off, n int64, fn func(file int, at, n int64) (bool, error)) error {
	i := sort.Search(len(l.extents), func(i int) bool { return l.extents[i].off+l.extents[i].size > off })
	for ; n > 0 && i < len(l.extents); i++ {
		e := l.extents[i]
		skip := off - e.off
		take := min(n, e.size-skip)
		if more, err := fn(e.file, e.at+skip, take); err != nil || !more {
			return err
		}
		off += take
		n -= take
	}
	return nil
}

// bitmap holds a bit a piece: piece i is bit 7-i%8 of byte i/8 (BEP 3, "bitfield").
type bitmap []byte

func newBitmap(n int) bitmap { return make(bitmap, (n+7)/8) }

func (b bitmap) has(i int) bool { return b[i/8]&(0x80>>(i%8)) != 0 }
func (b bitmap) set(i int)      { b[i/8] |= 0x80 >> (i % 8) }
func (b bitmap) clear(i int)    { b[i/8] &^= 0x80 >> (i % 8) }

// valid reports whether b is a bitmap of n pieces.
func (b bitmap) valid(n int) bool {
	if len(b) != (n+7)/8 {
		return false
	}
	spare := len(b)*8 - n
	return spare == 0 || b[len(b)-1]&(1<<spare-1) == 0
}
