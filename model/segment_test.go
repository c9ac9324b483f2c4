package model

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func segmentList(t testing.TB, size int64) SegmentList {
	t.Helper()
	l := SegmentList{Size: size}
	for i := range NumSegments(size) {
		var h PieceHasher
		_, n := SegmentSpan(i, size)
		if _, err := h.Write(bytes.Repeat([]byte{byte(i)}, int(n))); err != nil {
			t.Fatal(err)
		}
		hashes, root := h.Sum()
		l.Segments = append(l.Segments, Segment{root, hashes})
	}
	return l
}

func TestSegmentLength(t *testing.T) {
	for size, want := range map[int64]int64{
		0: 16 << 20, 512 << 20: 16 << 20, 512<<20 + 1: 32 << 20, 2 << 30: 64 << 20, 8 << 30: 256 << 20, 1 << 40: 256 << 20,
	} {
		if got := SegmentLength(size); got != want {
			t.Errorf("%d bytes: segments of %d, want %d", size, got, want)
		}
	}
}

func TestSegmentList(t *testing.T) {
	const size = minSegment + 3
	want := segmentList(t, size)
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseSegmentList(raw, size)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for name, wrong := range map[string]string{
		"another blob":       strings.Replace(string(raw), `"size":16777219`, `"size":7`, 1),
		"another first one":  strings.Replace(string(raw), `"from":0`, `"from":1`, 1),
		"a negative one":     strings.Replace(string(raw), `"from":0`, `"from":-1`, 1),
		"another root":       strings.Replace(string(raw), want.Segments[1].Root.String(), want.Segments[0].Root.String(), 1),
		"hashes cut off":     string(raw[:len(raw)/2]),
		"base64 that is not": strings.Replace(string(raw), `"hashes":"`, `"hashes":"*`, 1),
	} {
		if _, err := ParseSegmentList([]byte(wrong), size); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzSegmentList(f *testing.F) {
	raw, err := json.Marshal(segmentList(f, 3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, int64(3))
	f.Add([]byte(`{"size":9,"from":1,"segments":[]}`), int64(9))
	f.Fuzz(func(t *testing.T, raw []byte, size int64) {
		l, err := ParseSegmentList(raw, min(max(size, 0), 1<<40))
		if err == nil && l.From+len(l.Segments) > NumSegments(l.Size) {
			t.Errorf("%d segments from %d on in a blob of %d bytes", len(l.Segments), l.From, l.Size)
		}
	})
}
