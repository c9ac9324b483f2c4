package model

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
)

// referenceRoot is BEP 52's pieces root by its definition: the leaves, padded with zero hashes to a
// power of two, joined in pairs.
func referenceRoot(b []byte) Hash {
	var nodes []Hash
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		nodes = append(nodes, sha256.Sum256(b[:n]))
		b = b[n:]
	}
	if len(nodes) == 0 {
		return Hash{}
	}
	for int64(len(nodes)) < powerOfTwo(int64(len(nodes))) {
		nodes = append(nodes, Hash{})
	}
	for len(nodes) > 1 {
		for i := range len(nodes) / 2 {
			nodes[i] = sha256.Sum256(append(nodes[2*i][:], nodes[2*i+1][:]...))
		}
		nodes = nodes[:len(nodes)/2]
	}
	return nodes[0]
}

func TestPieceHasher(t *testing.T) {
	raw := make([]byte, 5<<20)
	var key [32]byte
	if _, err := rand.NewChaCha8(key).Read(raw); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, BlockSize - 1, BlockSize, BlockSize + 1, 3 * BlockSize, HashLayerPiece - 1, HashLayerPiece,
		HashLayerPiece + 1, 2 * HashLayerPiece, 3*HashLayerPiece + BlockSize, 4 << 20, 5<<20 - 7, 5 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			blob := raw[:size]
			want := referenceRoot(blob)
			var whole PieceHasher
			whole.Write(blob)
			layer, root := whole.Sum()
			if root != want {
				t.Fatalf("root %s, by definition %s", root, want)
			}
			// The same in odd writes, saved and resumed at every place where that is possible.
			odd := new(PieceHasher)
			for at := 0; at < size; {
				n := min(size-at, 7001, HashLayerPiece-at%HashLayerPiece)
				odd.Write(blob[at : at+n])
				at += n
				if saved, pos, ok := odd.State(); ok {
					odd = ResumePieceHasher(saved, pos)
				}
			}
			again, oddRoot := odd.Sum()
			if oddRoot != want || len(again) != len(layer) {
				t.Errorf("in odd writes the root is %s of %d pieces", oddRoot, len(again))
			}
			wire, err := layer.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := ParseHashLayer(wire, root, int64(size))
			if err != nil {
				t.Fatal(err)
			}
			for length := int64(HashLayerPiece); length <= 8<<20; length *= 2 {
				for i, h := range parsed.Pieces(length, int64(size)) {
					piece := blob[int64(i)*length : min(int64(i+1)*length, int64(size))]
					if got := PieceHash(piece, length, int64(size)); got != h {
						t.Errorf("piece %d at %d: derived %s, hashed %s", i, length, h, got)
					}
				}
			}
		})
	}
}

func TestPieceLength(t *testing.T) {
	for size, want := range map[int64]int64{0: 512 << 10, 1: 512 << 10, 2 << 30: 512 << 10, 2<<30 + 512<<10: 1 << 20, 64 << 30: 16 << 20, 200 << 30: 32 << 20} {
		if got := PieceLength(size); got != want {
			t.Errorf("%d: %d, want %d", size, got, want)
		}
		if n := NumPieces(size); n > MaxPieces {
			t.Errorf("%d: %d pieces", size, n)
		}
	}
}
