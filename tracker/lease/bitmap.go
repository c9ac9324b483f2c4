package lease

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Bitmap says which pieces a node holds: piece i is bit 7-i%8 of byte i/8 (BEP 3, "bitfield").
type Bitmap []byte

// NewBitmap returns a Bitmap for n pieces, none of them held.
func NewBitmap(n int) Bitmap { return make(Bitmap, (n+7)/8) }

// FullBitmap returns a Bitmap of n pieces, all of them held.
func FullBitmap(n int) Bitmap {
	b := NewBitmap(n)
	for i := range n {
		b.Set(i)
	}
	return b
}

// ParseBitmap checks a bitmap that came from outside. An empty one means that no piece is held.
// It returns an error when the length is not the one for n pieces or a spare bit is set: such a
// bitmap was made for another piece length, and its pieces are not ours.
func ParseBitmap(wire []byte, n int) (Bitmap, error) {
	if len(wire) == 0 {
		return NewBitmap(n), nil
	}
	if want := (n + 7) / 8; len(wire) != want {
		return nil, fmt.Errorf("bitmap has %d bytes, %d pieces need %d", len(wire), n, want)
	}
	if spare := len(wire)*8 - n; wire[len(wire)-1]&(1<<spare-1) != 0 {
		return nil, fmt.Errorf("bitmap has bits set past its %d pieces", n)
	}
	return Bitmap(wire), nil
}

// Set marks piece i as held.
func (b Bitmap) Set(i int) { b[i/8] |= 0x80 >> (i % 8) }

// Clear marks piece i as not held.
func (b Bitmap) Clear(i int) { b[i/8] &^= 0x80 >> (i % 8) }

// Has reports whether piece i is held.
func (b Bitmap) Has(i int) bool { return i/8 < len(b) && b[i/8]&(0x80>>(i%8)) != 0 }

// Count returns the number of held pieces.
func (b Bitmap) Count() int {
	n := 0
	for _, c := range b {
		n += bits.OnesCount8(c)
	}
	return n
}

// set is a Bitmap in words, so that two of 10,000 pieces compare in 157 steps. Piece i is bit
// 63-i%64 of word i/64, hence the first piece of a word is its number of leading zeros.
type set []uint64

func newSet(n int) set { return make(set, (n+63)/64) }

func (s set) has(i int) bool { return s[i/64]&(1<<(63-i%64)) != 0 }
func (s set) add(i int)      { s[i/64] |= 1 << (63 - i%64) }
func (s set) remove(i int)   { s[i/64] &^= 1 << (63 - i%64) }

// load overwrites s with b.
func (s set) load(b Bitmap) {
	for w := range s {
		if rest := b[min(w*8, len(b)):]; len(rest) >= 8 {
			s[w] = binary.BigEndian.Uint64(rest)
		} else {
			var word [8]byte
			copy(word[:], rest)
			s[w] = binary.BigEndian.Uint64(word[:])
		}
	}
}

// contains reports whether every piece of other is in s.
func (s set) contains(other set) bool {
	for w := range s {
		if other[w]&^s[w] != 0 {
			return false
		}
	}
	return true
}

// next returns the first piece >= from in s, or -1.
func (s set) next(from int) int {
	for w := from / 64; w < len(s); w++ {
		word := s[w]
		if w == from/64 {
			word &= ^uint64(0) >> (from % 64)
		}
		if word != 0 {
			return w*64 + bits.LeadingZeros64(word)
		}
	}
	return -1
}
