// Package sha256lanes computes many SHA-256 digests at once. One digest is a chain in which each
// instruction waits for the one before; sixteen chains side by side, a lane of an AVX-512 register each,
// keep the processor busy: two to three times the bytes a second of its SHA instructions. A processor
// without AVX-512 computes one digest after the other.
package sha256lanes

import (
	"crypto/sha256"
	"encoding/binary"
)

const (
	lanes = 16
	block = 64 // bytes, the unit of FIPS 180-4
	// worthwhile is from how many messages on all lanes are faster than one message after the other.
	worthwhile = 8
)

// Sums sets dst[i] to the SHA-256 of message i, the bytes of messages from i*size on. There are len(dst)
// of them, of size bytes each, more than 0; Sums panics where messages has another length.
func Sums[H ~[sha256.Size]byte](dst []H, messages []byte, size int) {
	if size <= 0 || len(messages) != len(dst)*size {
		panic("sha256lanes: not a message for each digest")
	}
	for wide && size%block == 0 && len(dst) >= worthwhile {
		n := min(len(dst), lanes)
		sums(dst[:n], messages, size)
		dst, messages = dst[n:], messages[n*size:]
	}
	for i := range dst {
		dst[i] = sha256.Sum256(messages[i*size : (i+1)*size])
	}
}

// state is the eight words of each lane's hash.
type state [8][lanes]uint32

// sums computes at most one digest a lane.
func sums[H ~[sha256.Size]byte](dst []H, messages []byte, size int) {
	var s state
	var at [lanes]*byte
	for l := range lanes {
		for w, v := range initial {
			s[w][l] = v
		}
		at[l] = &messages[min(l, len(dst)-1)*size] // a lane too many repeats the last message
	}
	compress(&s, &at, size/block)
	// What FIPS 180-4, 5.1.1, appends: a one bit, zeros, and the length in bits.
	var pad [block]byte
	pad[0] = 0x80
	binary.BigEndian.PutUint64(pad[block-8:], uint64(size)*8)
	for l := range at {
		at[l] = &pad[0]
	}
	compress(&s, &at, 1)
	for l := range dst {
		for w := range s {
			binary.BigEndian.PutUint32(dst[l][4*w:], s[w][l])
		}
	}
}

// initial is that of FIPS 180-4, 5.3.3.
var initial = [8]uint32{
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
}
