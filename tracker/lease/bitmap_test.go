package lease

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseBitmap(t *testing.T) {
	tests := []struct {
		name   string
		wire   []byte
		pieces int
		count  int // -1: refused
	}{
		{"nothing held", nil, 9, 0},
		{"first and last", []byte{0x80, 0x80}, 9, 2},
		{"whole bytes", []byte{0xff, 0xff}, 16, 16},
		{"spare bit", []byte{0x80, 0x40}, 9, -1},
		{"too short", []byte{0x80}, 9, -1},
		{"too long", []byte{0, 0, 0}, 9, -1},
		{"no pieces", nil, 0, 0},
		{"no pieces but a byte", []byte{0}, 0, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := ParseBitmap(tt.wire, tt.pieces)
			if (err != nil) != (tt.count < 0) || err == nil && b.Count() != tt.count {
				t.Fatalf("%v, count %d, error %v", b, b.Count(), err)
			}
		})
	}
}

func FuzzParseBitmap(f *testing.F) {
	f.Add([]byte{0x80, 0x80}, uint16(9))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, wire []byte, pieces uint16) {
		n := int(pieces)
		b, err := ParseBitmap(bytes.Clone(wire), n)
		if err != nil {
			return
		}
		words := newSet(n)
		words.load(b)
		held := 0
		for i := range n {
			if b.Has(i) != words.has(i) {
				t.Fatalf("piece %d is %v in bytes and %v in words", i, b.Has(i), words.has(i))
			}
			if b.Has(i) {
				held++
			}
		}
		if held != b.Count() || b.Has(n+1) || len(b) != (n+7)/8 {
			t.Fatalf("%d pieces held, Count is %d, %d bytes", held, b.Count(), len(b))
		}
		if at := words.next(0); at >= n {
			t.Fatalf("next piece is %d of %d", at, n)
		}
	})
}

func TestSet(t *testing.T) {
	const n = 200
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		b := NewBitmap(n)
		for i := range n {
			if r.IntN(20) == 0 {
				b.Set(i)
			}
		}
		s := newSet(n)
		s.load(b)
		if !s.contains(s) || !s.contains(newSet(n)) {
			t.Fatal("a set does not contain itself, or nothing")
		}
		for from := range n {
			want := -1
			for i := from; i < n && want < 0; i++ {
				if b.Has(i) {
					want = i
				}
			}
			if got := s.next(from); got != want {
				t.Fatalf("next(%d) = %d, want %d", from, got, want)
			}
			if b.Has(from) {
				less := newSet(n)
				less.load(b)
				less.remove(from)
				if less.contains(s) || !s.contains(less) {
					t.Fatalf("contains is wrong without %d", from)
				}
			}
		}
		if FullBitmap(n).Count() != n {
			t.Fatal("a full bitmap is not full")
		}
	}
}
