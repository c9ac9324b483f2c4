package peer

import (
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// TestSegmentStorage runs the suite over segments of raw blobs that are marked in pieces as long as
// the swarm's, and in longer ones.
func TestSegmentStorage(t *testing.T) {
	for name, c := range map[string]struct{ size, off, n int64 }{
		"pieces alike":       {24<<20 + 12345, 16 << 20, 8<<20 + 12345},
		"longer on disk":     {272<<20 + 12345, 256 << 20, 16<<20 + 12345},
		"not the blob's own": {96 << 20, 16 << 20, 2<<20 + 12345},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			var made int
			storetest.Run(t, func(t *testing.T) storetest.Opened {
				made++
				b, err := s.Create(t.Context(), store.Spec{Digest: digest.FromString(name + strconv.Itoa(made)), Size: c.size})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := b.Close(); err != nil {
						t.Error(err)
					}
					if err := s.RemoveBlob(b.Key()); err != nil {
						t.Error(err)
					}
				})
				return storetest.Opened{Storage: newSegment(b, c.off, c.n), Size: c.n, PieceLength: model.PieceLength(c.n)}
			})
		})
	}
}

// TestSegmentAfterRestart shows that a segment knows again those pieces that are whole on disk.
func TestSegmentAfterRestart(t *testing.T) {
	const size, off, n = 272 << 20, 256 << 20, 16 << 20
	s := newStore(t, t.TempDir())
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	b, err := s.Create(t.Context(), store.Spec{Digest: digest.FromString("blob"), Size: size})
	if err != nil {
		t.Fatal(err)
	}
	seg := newSegment(b, off, n)
	inner := int(b.PieceLength() / seg.length)
	if inner < 2 {
		t.Fatalf("the blob's pieces have %d bytes, the segment's %d: the test shows nothing", b.PieceLength(), seg.length)
	}
	for i := range inner + 1 { // one whole piece of the blob, and a part of the next
		if err := seg.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
	again := newSegment(b, off, n)
	for i := range inner + 1 {
		if again.Have(i) != (i < inner) {
			t.Errorf("piece %d: %t", i, again.Have(i))
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
