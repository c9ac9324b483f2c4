package mirror

import (
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
)

// BenchmarkFill reads a blob through a mirror that does not have it, verification included; its
// upstream runs in the same process.
func BenchmarkFill(b *testing.B) {
	benchmark(b, true)
}

// BenchmarkHit reads a blob that the mirror has.
func BenchmarkHit(b *testing.B) {
	benchmark(b, false)
}

func benchmark(b *testing.B, cold bool) {
	r := newRig(b)
	const size = 256 * mib
	d, _ := r.push(size)
	src := Source{"reg.example.com", repo}
	b.SetBytes(size)
	read := func() {
		blob, err := r.mirror.Blob(b.Context(), src, d)
		if err != nil {
			b.Fatal(err)
		}
		if err := blob.CopyRange(b.Context(), io.Discard, 0, size); err != nil {
			b.Fatal(err)
		}
		blob.Close()
	}
	if !cold {
		read()
	}
	for b.Loop() {
		if cold {
			b.StopTimer()
			drop(b, r.mirror, d)
			b.StartTimer()
		}
		read()
	}
}

func drop(b *testing.B, m *Mirror, d digest.Digest) {
	b.Helper()
	until(b, "the blob is idle", func() bool { m.closeIdle(0); return m.fillOf(d) == nil })
	for _, info := range m.store.Blobs() {
		if err := m.store.RemoveBlob(info.Key); err != nil {
			b.Fatal(err)
		}
	}
}
