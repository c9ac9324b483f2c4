package sha256lanes_test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/shoal-project/shoal/internal/sha256lanes"
)

// TestSums compares with crypto/sha256: all numbers of messages around the lanes', lengths in whole blocks
// and others, all alignments.
func TestSums(t *testing.T) {
	random := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 40*1024+64)
	_, _ = random.Read(buf)
	for n := range 40 {
		for _, size := range []int{1, 55, 63, 64, 65, 128, 192, 640, 1000, 1024} {
			check(t, buf[n:n+n*size], size)
		}
	}
	for shift := range 64 {
		check(t, buf[shift:shift+16*64], 64)
	}
}

func check(t *testing.T, messages []byte, size int) {
	t.Helper()
	got := make([][sha256.Size]byte, len(messages)/size)
	sha256lanes.Sums(got, messages, size)
	for i := range got {
		if want := sha256.Sum256(messages[i*size : (i+1)*size]); got[i] != want {
			t.Fatalf("message %d of %d, %d bytes each, has the digest %x, not %x", i, len(got), size, got[i], want)
		}
	}
}

func FuzzSums(f *testing.F) {
	f.Add([]byte{}, uint16(64))
	f.Add(make([]byte, 5000), uint16(192))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		if size == 0 {
			return
		}
		check(t, b[:len(b)/int(size)*int(size)], int(size))
	})
}

func TestSumsRefuses(t *testing.T) {
	for _, c := range []struct{ sums, bytes, size int }{{1, 63, 64}, {1, 128, 64}, {0, 64, 64}, {1, 0, 0}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is accepted", c)
				}
			}()
			sha256lanes.Sums(make([][sha256.Size]byte, c.sums), make([]byte, c.bytes), c.size)
		}()
	}
}

// BenchmarkSums hashes leaves of 16 KiB; 1 is one after the other.
func BenchmarkSums(b *testing.B) {
	const size = 16 << 10
	for _, n := range []int{1, 8, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			messages, got := make([]byte, n*size), make([][sha256.Size]byte, n)
			b.SetBytes(int64(len(messages)))
			for b.Loop() {
				sha256lanes.Sums(got, messages, size)
			}
		})
	}
}
