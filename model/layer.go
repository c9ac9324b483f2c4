package model

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
)

// maxMemberSize bounds a member, in bytes, so that sums of sizes read from outside cannot overflow.
const maxMemberSize = 1 << 50

// Member is one file inside a layer.
type Member struct {
	// Path is slash separated and relative.
	Path string `json:"path"`
	// Offset is that of the content's first byte in the layer, a multiple of 4096.
	Offset int64 `json:"offset"`
	// Size is the content's length in bytes.
	Size int64 `json:"size"`
	// SHA256 is the content's digest.
	SHA256 digest.Digest `json:"sha256"`
	// Source is the source's own checksum ("crc64-ecma:...") where that is not sha256. The next
	// version of the model is compared by it.
	Source string `json:"source,omitempty"`
}

// Layer is one tar layer of a model image.
type Layer struct {
	// Digest is the sha256 of the whole tar, which is its diffID too: it is not compressed.
	Digest digest.Digest `json:"digest"`
	// Size is the tar's length in bytes.
	Size int64 `json:"size"`
	// Root is the tar's BEP 52 pieces root.
	Root Hash `json:"piecesRoot"`
	// Hashes is the blob of the hash layer (32 bytes per 512 KiB of the tar).
	Hashes digest.Digest `json:"hashes"`
	// Members are the files in the order of the tar, which is that of their paths.
	Members []Member `json:"members"`
}

// LayerError says what is wrong with a layer's description.
type LayerError struct {
	Layer  digest.Digest
	Reason error
}

// Error implements error.
func (e *LayerError) Error() string { return fmt.Sprintf("layer %s: %v", e.Layer, e.Reason) }

// Unwrap returns the reason.
func (e *LayerError) Unwrap() error { return e.Reason }

// Validate checks the description by itself: digests, paths, order, and that offsets and size are
// what format 1 gives for the members. It does not look at bytes. The error is a *LayerError, which
// may wrap a *PathError.
func (l Layer) Validate() error {
	if err := l.validate(); err != nil {
		return &LayerError{l.Digest, err}
	}
	return nil
}

func (l Layer) validate() error {
	if err := checkDigest(l.Digest); err != nil {
		return err
	}
	if err := checkDigest(l.Hashes); err != nil {
		return fmt.Errorf("hash layer: %w", err)
	}
	if l.Root.IsZero() {
		return errors.New("has no pieces root")
	}
	paths := make([]string, len(l.Members))
	for i, m := range l.Members {
		paths[i] = m.Path
		if err := checkDigest(m.SHA256); err != nil {
			return fmt.Errorf("member %q: %w", m.Path, err)
		}
	}
	if err := CheckPaths(paths); err != nil {
		return err
	}
	if !slices.IsSorted(paths) {
		return errors.New("members are not sorted by path")
	}
	want := slices.Clone(l.Members)
	size, err := placeMembers(want)
	if err != nil {
		return err
	}
	for i, m := range l.Members {
		if m.Offset != want[i].Offset {
			return fmt.Errorf("member %q is said to begin at %d, format 1 puts it at %d", m.Path, m.Offset, want[i].Offset)
		}
	}
	if l.Size != size {
		return fmt.Errorf("is said to have %d bytes, its members make %d", l.Size, size)
	}
	return nil
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is not a sha256 digest", d)
	}
	return nil
}

// File is a file of a model's source.
type File struct {
	// Path is slash separated and relative to the model's root.
	Path string
	// Size is in bytes.
	Size int64
	// Checksum is the source's checksum of the content, empty when it is not known yet:
	// "sha256:<hex>", "crc64-ecma:<decimal>" and "md5:<hex>" are verified while the file is read;
	// any other "<scheme>:<value>" only tells versions apart.
	Checksum string
	// Revision tells two states of one path apart (an ETag; mtime and inode). An upload that was
	// cut off goes on only when it is the same and not empty. It never reaches the image.
	Revision string
}

// NewLayer places files as format 1 does, sorted by path. Digests, root and hashes are left empty:
// they come from the bytes. The error may be a *PathError.
func NewLayer(files []File) (Layer, error) {
	var l Layer
	for _, f := range files {
		l.Members = append(l.Members, Member{Path: f.Path, Size: f.Size})
	}
	slices.SortFunc(l.Members, func(a, b Member) int { return cmp.Compare(a.Path, b.Path) })
	paths := make([]string, len(l.Members))
	for i, m := range l.Members {
		paths[i] = m.Path
	}
	if err := CheckPaths(paths); err != nil {
		return Layer{}, err
	}
	size, err := placeMembers(l.Members)
	l.Size = size
	return l, err
}

// placeMembers sets each member's offset and returns the tar's size.
func placeMembers(members []Member) (int64, error) {
	if len(members) == 0 {
		return 0, errors.New("has no members")
	}
	at := int64(0)
	for i := range members {
		m := &members[i]
		if m.Size < 0 || m.Size > maxMemberSize || at > maxMemberSize {
			return 0, fmt.Errorf("member %q: size %d is out of range", m.Path, m.Size)
		}
		m.Offset = contentOffset(at, m.Path, m.Size)
		at = roundUp(m.Offset+m.Size, tarBlock)
	}
	return at + trailerSize, nil
}

// Extent is a run of a layer's bytes that lie in one place.
type Extent struct {
	// Offset and Size are in bytes of the layer. Size is never 0.
	Offset, Size int64
	// Member is the index of the member whose content this is, or -1 for skeleton bytes.
	Member int
}

// Extents lists the layer's extents in order; together they cover it exactly. Empty members have
// none, and neighbouring skeleton bytes are one extent. l must be valid.
func (l Layer) Extents() []Extent {
	extents := make([]Extent, 0, 2*len(l.Members)+1)
	at := int64(0)
	for i, m := range l.Members {
		if m.Size == 0 {
			continue
		}
		extents = append(extents,
			Extent{Offset: at, Size: m.Offset - at, Member: -1},
			Extent{Offset: m.Offset, Size: m.Size, Member: i})
		at = m.Offset + m.Size
	}
	return append(extents, Extent{Offset: at, Size: l.Size - at, Member: -1})
}
