package model

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/shoal-project/shoal/internal/sha256lanes"
)

// Sizes of the Merkle tree over a blob (BEP 52).
const (
	// BlockSize is the size of a Merkle leaf in bytes, fixed by BEP 52.
	BlockSize = 16 << 10
	// HashLayerPiece is the piece length, in bytes, at which hash layers are stored and carried.
	// Every longer piece length derives from it.
	HashLayerPiece = 512 << 10
	// MaxPieces is what a swarm may have: the torrent library keeps all pieces under one lock.
	MaxPieces = 10_000
)

// Hash is a SHA-256 node of the Merkle tree: a leaf, a piece or a root.
type Hash [sha256.Size]byte

// String returns h in lower-case hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h was never set.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(text []byte) error {
	parsed, err := ParseHash(string(text))
	if err != nil {
		return err
	}
	*h = parsed
	return nil
}

// ParseHash reads 64 lower-case hexadecimal digits.
func ParseHash(s string) (Hash, error) {
	var h Hash
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(h) || hex.EncodeToString(raw) != s {
		return Hash{}, fmt.Errorf("%q is not a hash of 64 lower-case hexadecimal digits", s)
	}
	copy(h[:], raw)
	return h, nil
}

// PieceLength is the swarm's piece length in bytes for a blob of size bytes. It is a pure function
// of the size, because every node must derive the same info hash: about a fiftieth of what sixteen
// nodes share, from 512 KiB to 16 MiB, and more only where MaxPieces would be passed.
func PieceLength(size int64) int64 {
	length := int64(HashLayerPiece)
	for length < 16<<20 && size/length > 4096 {
		length *= 2
	}
	for pieces(size, length) > MaxPieces {
		length *= 2
	}
	return length
}

// NumPieces is how many pieces of PieceLength(size) a blob of size bytes has; an empty blob has none.
func NumPieces(size int64) int { return pieces(size, PieceLength(size)) }

func pieces(size, length int64) int { return int((size + length - 1) / length) }

// zeroTree returns the root of a subtree of n (a power of two) absent leaves. BEP 52 pads a tree
// with leaf hashes of 32 zero bytes, not with hashes of zero blocks.
func zeroTree(n int64) Hash {
	var h Hash
	for ; n > 1; n /= 2 {
		h = join(h, h)
	}
	return h
}

func join(a, b Hash) Hash {
	var buf [2 * sha256.Size]byte
	copy(buf[:], a[:])
	copy(buf[sha256.Size:], b[:])
	return sha256.Sum256(buf[:])
}

// fold reduces nodes to the root of a tree of width leaves (a power of two >= len(nodes)), where
// every absent node is pad. nodes is overwritten.
func fold(nodes []Hash, width int64, pad Hash) Hash {
	if len(nodes) == 0 {
		for ; width > 1; width /= 2 {
			pad = join(pad, pad)
		}
		return pad
	}
	for ; width > 1; width /= 2 {
		half := (len(nodes) + 1) / 2
		for i := range half {
			right := pad
			if 2*i+1 < len(nodes) {
				right = nodes[2*i+1]
			}
			nodes[i] = join(nodes[2*i], right)
		}
		nodes = nodes[:half]
		pad = join(pad, pad)
	}
	return nodes[0]
}

func powerOfTwo(n int64) int64 {
	p := int64(1)
	for p < n {
		p *= 2
	}
	return p
}

// AppendLeaves appends to leaves the hashes of the blocks of BlockSize bytes in b, of which only the last
// may be shorter. It is fastest with 16 blocks at a time, or a multiple of that.
func AppendLeaves(leaves []Hash, b []byte) []Hash {
	whole, from := len(b)/BlockSize, len(leaves)
	leaves = slices.Grow(leaves, whole+1)[:from+whole]
	sha256lanes.Sums(leaves[from:], b[:whole*BlockSize], BlockSize)
	if rest := b[whole*BlockSize:]; len(rest) > 0 {
		leaves = append(leaves, sha256.Sum256(rest))
	}
	return leaves
}

// FoldPiece reduces the leaf hashes of one piece to the piece's hash. In a blob longer than one
// piece every piece, the last too, is padded to the whole piece length; the only piece of a
// shorter blob is padded to the next power of two, so that its hash is the root (BEP 52, "pieces
// root"). leaves is overwritten.
func FoldPiece(leaves []Hash, pieceLength, blobSize int64) Hash {
	width := pieceLength / BlockSize
	if blobSize <= pieceLength {
		width = powerOfTwo(int64(len(leaves)))
	}
	return fold(leaves, width, Hash{})
}

// PieceHash hashes the bytes of one whole piece.
func PieceHash(piece []byte, pieceLength, blobSize int64) Hash {
	return FoldPiece(AppendLeaves(nil, piece), pieceLength, blobSize)
}

// Root folds the piece hashes of a blob of size bytes to its pieces root. hashes is left as it is.
// An empty blob's root is the zero Hash.
func Root(hashes []Hash, pieceLength, size int64) Hash {
	switch len(hashes) {
	case 0:
		return Hash{}
	case 1:
		return hashes[0]
	}
	nodes := append([]Hash(nil), hashes...)
	return fold(nodes, powerOfTwo(int64(len(nodes))), zeroTree(pieceLength/BlockSize))
}

// ErrRootMismatch means that a hash layer is not the one that a pieces root was made of.
var ErrRootMismatch = errors.New("hash layer does not match the pieces root")

// HashLayer is the Merkle tree's layer at HashLayerPiece of one blob: what a node needs to verify
// each piece as it arrives. Its wire form is the hashes one after the other, 32 bytes each.
type HashLayer []Hash

// MarshalBinary returns the wire form.
func (l HashLayer) MarshalBinary() ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(len(l) * sha256.Size)
	for _, h := range l {
		buf.Write(h[:])
	}
	return buf.Bytes(), nil
}

// ParseHashLayer reads the wire form of the hash layer of a blob of size bytes and checks it
// against root. Its errors are ErrRootMismatch or name the wrong length.
func ParseHashLayer(wire []byte, root Hash, size int64) (HashLayer, error) {
	want := pieces(size, HashLayerPiece)
	if len(wire) != want*sha256.Size {
		return nil, fmt.Errorf("hash layer has %d bytes, a blob of %d bytes needs %d", len(wire), size, want*sha256.Size)
	}
	layer := make(HashLayer, want)
	for i := range layer {
		copy(layer[i][:], wire[i*sha256.Size:])
	}
	if Root(layer, HashLayerPiece, size) != root {
		return nil, ErrRootMismatch
	}
	return layer, nil
}

// Pieces derives the hashes at pieceLength, a power of two of at least HashLayerPiece, for a blob
// of size bytes.
func (l HashLayer) Pieces(pieceLength, size int64) []Hash {
	group := int(pieceLength / HashLayerPiece)
	if group == 1 || len(l) <= 1 {
		return append([]Hash(nil), l...)
	}
	if size <= pieceLength {
		return []Hash{Root(l, HashLayerPiece, size)}
	}
	pad := zeroTree(HashLayerPiece / BlockSize)
	out := make([]Hash, 0, pieces(size, pieceLength))
	for i := 0; i < len(l); i += group {
		nodes := append([]Hash(nil), l[i:min(i+group, len(l))]...)
		out = append(out, fold(nodes, int64(group), pad))
	}
	return out
}

// PieceHasher computes a blob's hash layer from its bytes in order. The zero value is ready.
type PieceHasher struct {
	layer  HashLayer
	leaves []Hash
	block  []byte
	size   int64
}

// Write adds the next bytes; it never fails.
func (p *PieceHasher) Write(b []byte) (int, error) {
	n := len(b)
	p.size += int64(n)
	for len(b) > 0 {
		if len(p.block) == 0 && len(b) >= BlockSize {
			b = p.addLeaves(b)
			continue
		}
		take := min(BlockSize-len(p.block), len(b))
		p.block = append(p.block, b[:take]...)
		b = b[take:]
		if len(p.block) == BlockSize {
			p.addLeaves(p.block)
			p.block = p.block[:0]
		}
	}
	return n, nil
}

// ReadFrom implements io.ReaderFrom with reads long enough for AppendLeaves.
func (p *PieceHasher) ReadFrom(r io.Reader) (int64, error) {
	buf := make([]byte, 16*BlockSize)
	for total := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		_, _ = p.Write(buf[:n])
		total += int64(n)
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// addLeaves adds the whole blocks of b that go into one piece, at least one, and returns what is left.
func (p *PieceHasher) addLeaves(b []byte) []byte {
	if len(p.leaves) == HashLayerPiece/BlockSize {
		p.flush()
	}
	n := min(len(b)/BlockSize, HashLayerPiece/BlockSize-len(p.leaves)) * BlockSize
	p.leaves = AppendLeaves(p.leaves, b[:n])
	return b[n:]
}

// flush closes a full piece. It is called when the next leaf is known to exist, so that the last
// piece of a blob stays open until Sum knows the blob's size.
func (p *PieceHasher) flush() {
	p.layer = append(p.layer, FoldPiece(p.leaves, HashLayerPiece, HashLayerPiece+1))
	p.leaves = p.leaves[:0]
}

// Sum ends the blob and returns its hash layer and pieces root. Write must not be called after it.
func (p *PieceHasher) Sum() (HashLayer, Hash) {
	if len(p.block) > 0 {
		if len(p.leaves) == HashLayerPiece/BlockSize {
			p.flush()
		}
		p.leaves = AppendLeaves(p.leaves, p.block)
		p.block = nil
	}
	if len(p.leaves) > 0 {
		p.layer = append(p.layer, FoldPiece(p.leaves, HashLayerPiece, p.size))
		p.leaves = nil
	}
	return p.layer, Root(p.layer, HashLayerPiece, p.size)
}

// State is a PieceHasher's position at a multiple of HashLayerPiece, so that a killed upload goes on.
func (p *PieceHasher) State() (layer HashLayer, size int64, ok bool) {
	if p.size%HashLayerPiece != 0 {
		return nil, 0, false
	}
	if len(p.leaves) > 0 {
		p.flush()
	}
	return p.layer, p.size, true
}

// ResumePieceHasher continues from what State returned.
func ResumePieceHasher(layer HashLayer, size int64) *PieceHasher {
	return &PieceHasher{layer: append(HashLayer(nil), layer...), size: size}
}
