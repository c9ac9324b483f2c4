// Package storetest holds what the tests of several packages need of piece storage: the one
// conformance suite that every implementation passes, a small one in memory, and layers to put in.
package storetest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

// Storage is the place of a blob's bytes, as package swarm uses it. It is safe for concurrent use.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	// Have reports whether piece i is marked.
	Have(i int) bool
	// MarkPiece records that the bytes of piece i, written before, were checked.
	MarkPiece(i int) error
	// Bitmap returns the marked pieces; piece i is bit 7-i%8 of byte i/8 (BEP 3).
	Bitmap() []byte
}

// Opened is an empty Storage for a blob of Size bytes in pieces of PieceLength bytes. The suite
// wants at least three pieces, the last of them short.
type Opened struct {
	Storage
	Size, PieceLength int64
}

func (o Opened) pieces() int { return int((o.Size + o.PieceLength - 1) / o.PieceLength) }

// piece returns the offset of piece i, and its part of content.
func (o Opened) piece(i int, content []byte) (int64, []byte) {
	off := int64(i) * o.PieceLength
	return off, content[off:min(off+o.PieceLength, o.Size)]
}

// Run runs the suite. open makes a new Storage for each test and removes it with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Opened) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, o Opened, content []byte)
	}{
		{"empty", testEmpty},
		{"any order", testAnyOrder},
		{"small writes across every border", testBorders},
		{"a marked piece does not change", testMarked},
		{"the end", testEnd},
		{"a bitmap is a copy", testBitmapCopy},
		{"wrong pieces", testWrongPieces},
		{"many at once", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := open(t)
			if o.pieces() < 3 || o.Size%o.PieceLength == 0 {
				t.Fatalf("%d bytes in pieces of %d: the suite wants three pieces and a short last one", o.Size, o.PieceLength)
			}
			content := make([]byte, o.Size)
			Fill(content, 1)
			c.run(t, o, content)
		})
	}
}

// Fill fills b with bytes that look random and depend on seed alone.
func Fill(b []byte, seed uint64) {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
}

func write(t *testing.T, o Opened, b []byte, off int64) {
	t.Helper()
	if n, err := o.WriteAt(b, off); err != nil || n != len(b) {
		t.Fatalf("write of %d bytes at %d: %d, %v", len(b), off, n, err)
	}
}

func expect(t *testing.T, o Opened, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := o.ReadAt(got, off); n != len(got) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read of %d bytes at %d: %d, %v", len(got), off, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("the %d bytes at %d are not those that were written", len(want), off)
	}
}

func testEmpty(t *testing.T, o Opened, _ []byte) {
	for i := range o.pieces() {
		if o.Have(i) {
			t.Errorf("has piece %d", i)
		}
	}
	if got, want := o.Bitmap(), make([]byte, (o.pieces()+7)/8); !bytes.Equal(got, want) {
		t.Errorf("bitmap %x, want %x", got, want)
	}
}

func testAnyOrder(t *testing.T, o Opened, content []byte) {
	want := make([]byte, (o.pieces()+7)/8)
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(o.pieces()) {
		off, b := o.piece(i, content)
		write(t, o, b, off)
		if o.Have(i) {
			t.Fatalf("piece %d counts before it was marked", i)
		}
		expect(t, o, b, off) // readable at once: it is checked before it is marked
		for range 2 {        // a second mark changes nothing
			if err := o.MarkPiece(i); err != nil {
				t.Fatal(err)
			}
		}
		want[i/8] |= 0x80 >> (i % 8)
		if got := o.Bitmap(); !o.Have(i) || !bytes.Equal(got, want) {
			t.Fatalf("bitmap %x after piece %d, want %x", got, i, want)
		}
	}
	expect(t, o, content, 0)
}

func testBorders(t *testing.T, o Opened, content []byte) {
	const step = 10_007 // a prime: it meets no border
	for off := int64(0); off < o.Size; off += step {
		write(t, o, content[off:min(off+step, o.Size)], off)
	}
	expect(t, o, content, 0)
	for off := int64(0); off+3*step < o.Size; off += 7919 {
		expect(t, o, content[off:off+3*step], off)
	}
}

func testMarked(t *testing.T, o Opened, content []byte) {
	off, b := o.piece(1, content)
	write(t, o, b, off)
	if err := o.MarkPiece(1); err != nil {
		t.Fatal(err)
	}
	// A late block, wrong, over the marked piece and half of its neighbours.
	late := make([]byte, o.PieceLength*2)
	write(t, o, late[:min(int64(len(late)), o.Size-o.PieceLength/2)], o.PieceLength/2)
	expect(t, o, b, off)
	expect(t, o, late[:o.PieceLength/2], o.PieceLength/2)
}

func testEnd(t *testing.T, o Opened, content []byte) {
	if _, err := o.WriteAt([]byte{1, 2}, o.Size-1); err == nil {
		t.Error("a write past the end passes")
	}
	if _, err := o.WriteAt([]byte{1}, -1); err == nil {
		t.Error("a write before the beginning passes")
	}
	if _, err := o.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a read before the beginning passes")
	}
	last, b := o.piece(o.pieces()-1, content)
	write(t, o, b, last)
	buf := make([]byte, len(b)+10)
	if n, err := o.ReadAt(buf, last); n != len(b) || !errors.Is(err, io.EOF) || !bytes.Equal(buf[:n], b) {
		t.Errorf("read across the end: %d, %v; want %d, EOF", n, err, len(b))
	}
	for _, off := range []int64{o.Size, o.Size + 100} {
		if n, err := o.ReadAt(buf, off); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("read at %d of %d: %d, %v; want 0, EOF", off, o.Size, n, err)
		}
	}
}

func testBitmapCopy(t *testing.T, o Opened, _ []byte) {
	o.Bitmap()[0] = 0xff
	if o.Have(0) || o.Bitmap()[0] != 0 {
		t.Error("a change of the returned bitmap marked a piece")
	}
}

func testWrongPieces(t *testing.T, o Opened, _ []byte) {
	for _, i := range []int{-1, o.pieces()} {
		if err := o.MarkPiece(i); err == nil {
			t.Errorf("piece %d can be marked", i)
		}
		if o.Have(i) {
			t.Errorf("has piece %d", i)
		}
	}
}

func testConcurrent(t *testing.T, o Opened, content []byte) {
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := worker; i < o.pieces(); i += 4 {
				off, b := o.piece(i, content)
				for len(b) > 0 {
					n := min(len(b), 16<<10)
					if _, err := o.WriteAt(b[:n], off); err != nil {
						t.Error(err)
					}
					off, b = off+int64(n), b[n:]
				}
				if err := o.MarkPiece(i); err != nil {
					t.Error(err)
				}
				_ = o.Bitmap()
			}
		})
	}
	wg.Wait()
	expect(t, o, content, 0)
}
