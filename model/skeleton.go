package model

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	tarBlock = 512
	// memberAlign is where every member's bytes begin: a page, so that a file can be reflinked to
	// or mapped from the layer.
	memberAlign = 4096
	// trailerSize is the two zero blocks that end a tar.
	trailerSize = 2 * tarBlock
	// minComment is the shortest PAX comment record, "12 comment=\n".
	minComment = 12
	// maxOctal is the largest size that the eleven octal digits of a ustar header hold.
	maxOctal = 8<<30 - 1
)

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// contentOffset is where the content of a member begins whose first header is at byte at: after
// the PAX header, PAX records and the ustar header, at the next multiple of memberAlign that leaves
// room for the records.
func contentOffset(at int64, path string, size int64) int64 {
	records := roundUp(int64(len(paxRecords(path, size)))+minComment, tarBlock)
	return roundUp(at+2*tarBlock+records, memberAlign)
}

// paxRecords returns the records that a member needs, in the order of format 1.
func paxRecords(path string, size int64) string {
	var b strings.Builder
	if len(path) > 100 || !isASCII(path) {
		b.WriteString(paxRecord("path", path))
	}
	if size > maxOctal {
		b.WriteString(paxRecord("size", fmt.Sprint(size)))
	}
	return b.String()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// paxRecord formats "<length> key=value\n", where length counts itself (POSIX.1-2001, pax).
func paxRecord(key, value string) string {
	rest := len(key) + len(value) + 3
	length := rest + len(fmt.Sprint(rest))
	if n := len(fmt.Sprint(length)); rest+n != length {
		length = rest + n
	}
	return fmt.Sprintf("%d %s=%s\n", length, key, value)
}

// commentRecord returns a PAX comment record of exactly n bytes, n at least minComment. Readers
// ignore comments; this one is the padding that puts the content on a page.
func commentRecord(n int64) string {
	const frame = len(" comment=\n")
	return fmt.Sprintf("%d comment=%s\n", n, strings.Repeat(" ", int(n)-frame-len(fmt.Sprint(n))))
}

// appendHeader appends a member's skeleton bytes, those from byte at of the layer to the content.
func appendHeader(b []byte, at int64, m Member) []byte {
	size := m.Offset - at - 2*tarBlock
	records := paxRecords(m.Path, m.Size)
	b = appendUstar(b, "././@PaxHeader", size, 'x')
	b = append(b, records...)
	b = append(b, commentRecord(size-int64(len(records)))...)

	// What the ustar header cannot say is in the records; old readers see a name cut short.
	name := []byte(m.Path)
	for i, c := range name {
		if c >= 0x80 {
			name[i] = '_'
		}
	}
	length := m.Size
	if length > maxOctal {
		length = 0
	}
	return appendUstar(b, string(name[:min(len(name), 100)]), length, '0')
}

// appendUstar appends one header block (POSIX.1-1988 ustar): mode 0444, root, the epoch.
func appendUstar(b []byte, name string, size int64, typeflag byte) []byte {
	var h [tarBlock]byte
	copy(h[0:], name)
	copy(h[100:], "0000444\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", size))
	copy(h[136:], "00000000000\x00")
	copy(h[148:], "        ")
	h[156] = typeflag
	copy(h[257:], "ustar\x0000")
	copy(h[329:], "0000000\x00")
	copy(h[337:], "0000000\x00")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, h[:]...)
}

// skeletonBefore returns the layer's skeleton bytes that lie before member i and after the content
// of member i-1, and the offset of the first. For i = len(l.Members) they are the layer's end.
func (l Layer) skeletonBefore(i int) (int64, []byte) {
	start := int64(0)
	if i > 0 {
		start = l.Members[i-1].Offset + l.Members[i-1].Size
	}
	header := roundUp(start, tarBlock)
	if i == len(l.Members) {
		return start, make([]byte, l.Size-start)
	}
	b := make([]byte, header-start, l.Members[i].Offset-start)
	return start, appendHeader(b, header, l.Members[i])
}

// Skeleton calls fn with every run of skeleton bytes in order, offset in bytes of the layer. It
// stops at fn's first error and returns it. l must be valid; b is fn's to keep.
func (l Layer) Skeleton(fn func(offset int64, b []byte) error) error {
	for i := range len(l.Members) + 1 {
		if err := fn(l.skeletonBefore(i)); err != nil {
			return err
		}
	}
	return nil
}

// SkeletonError means that a layer's header or padding bytes are not those of format 1.
type SkeletonError struct {
	Layer digest.Digest
	// Offset is that of the first wrong byte in the layer.
	Offset int64
}

// Error implements error.
func (e *SkeletonError) Error() string {
	return fmt.Sprintf("layer %s: the tar contradicts the member table at byte %d", e.Layer, e.Offset)
}

// VerifySkeleton compares the header and padding bytes read through r with those that format 1
// writes for l.Members; the content is not read. l must be valid. The error is a *SkeletonError
// where a byte differs, else r's.
func (l Layer) VerifySkeleton(r io.ReaderAt) error {
	var buf []byte
	return l.Skeleton(func(offset int64, want []byte) error {
		buf = append(buf[:0], want...)
		if n, err := r.ReadAt(buf, offset); n < len(buf) {
			return fmt.Errorf("layer %s: read the skeleton at %d: %w", l.Digest, offset, err)
		}
		if at := firstDifference(buf, want); at >= 0 {
			return &SkeletonError{l.Digest, offset + int64(at)}
		}
		return nil
	})
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
