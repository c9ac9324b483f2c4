package storetest

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// Layer is a layer of a model with its bytes.
type Layer struct {
	model.Layer
	// HashLayer is what Layer.Hashes is the digest of.
	HashLayer model.HashLayer
	// Bytes is the tar.
	Bytes []byte
}

// NewLayer packs files of the given sizes, whose content depends on seed alone.
func NewLayer(tb testing.TB, seed uint64, sizes map[string]int64) Layer {
	tb.Helper()
	var files []model.File
	for path, size := range sizes {
		files = append(files, model.File{Path: path, Size: size})
	}
	l, err := model.NewLayer(files)
	if err != nil {
		tb.Fatal(err)
	}
	content := make([]byte, l.Size)
	Fill(content, seed)
	for i, m := range l.Members {
		l.Members[i].SHA256 = digest.FromBytes(content[m.Offset : m.Offset+m.Size])
	}
	if err := l.Skeleton(func(offset int64, b []byte) error {
		copy(content[offset:], b)
		return nil
	}); err != nil {
		tb.Fatal(err)
	}
	var hasher model.PieceHasher
	if _, err := hasher.Write(content); err != nil {
		tb.Fatal(err)
	}
	hashes, root := hasher.Sum()
	wire, err := hashes.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	l.Digest, l.Root, l.Hashes = digest.FromBytes(content), root, digest.FromBytes(wire)
	if err := l.Validate(); err != nil {
		tb.Fatal(err)
	}
	return Layer{l, hashes, content}
}

// Piece returns where piece i lies, and its bytes.
func (l Layer) Piece(i int) (int64, []byte) {
	length := model.PieceLength(l.Size)
	off := int64(i) * length
	return off, l.Bytes[off:min(off+length, l.Size)]
}

// File returns the content of member i.
func (l Layer) File(i int) []byte {
	m := l.Members[i]
	return l.Bytes[m.Offset : m.Offset+m.Size]
}
