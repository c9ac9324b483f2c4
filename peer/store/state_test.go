package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

func sealed(body string) []byte {
	sum := sha256.Sum256([]byte(body))
	return []byte(hex.EncodeToString(sum[:]) + "\n" + body)
}

func TestParseState(t *testing.T) {
	good := state{Version: 1, Pieces: bitmap{0xa0, 0x80}, Stamps: []int64{1, 2}, Verified: true}
	raw, err := good.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseState(raw, 9, 2)
	if err != nil || !cmp.Equal(got, good) {
		t.Errorf("%v, %v", cmp.Diff(good, got), err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		if _, err := parseState(bad, 9, 2); err == nil {
			t.Errorf("byte %d changed: passes", i)
		}
	}
	for name, body := range map[string]string{
		"not JSON":                  `{`,
		"other version":             `{"version":2,"pieces":"oIA=","stamps":[1,2]}`,
		"short bitmap":              `{"version":1,"pieces":"oA==","stamps":[1,2]}`,
		"spare bits":                `{"version":1,"pieces":"oP8=","stamps":[1,2]}`,
		"other files":               `{"version":1,"pieces":"oIA=","stamps":[1]}`,
		"frontier past the end":     `{"version":1,"pieces":"oIA=","stamps":[1,2],"frontier":10}`,
		"frontier without a sum":    `{"version":1,"pieces":"oIA=","stamps":[1,2],"frontier":1}`,
		"sum of something else":     `{"version":1,"pieces":"oIA=","stamps":[1,2],"frontier":1,"sum":"AAAA"}`,
		"verified and contradicted": `{"version":1,"pieces":"oIA=","stamps":[1,2],"verified":true,"contradicted":true}`,
	} {
		if _, err := parseState(sealed(body), 9, 2); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func FuzzState(f *testing.F) {
	sum, err := saveSum(sha256.New())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []state{
		{Version: 1, Pieces: newBitmap(9), Stamps: []int64{1, 2}},
		{Version: 1, Pieces: bitmap{0xff, 0x80}, Stamps: []int64{1, 2}, Frontier: 9, Sum: sum, Verified: true, Skeleton: true},
	} {
		raw, err := s.encode()
		if err != nil {
			f.Fatal(err)
		}
		_, body, _ := bytes.Cut(raw, []byte{'\n'})
		f.Add(string(body))
	}
	f.Fuzz(func(t *testing.T, body string) {
		s, err := parseState(sealed(body), 9, 2)
		if err != nil {
			return
		}
		raw, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseState(raw, 9, 2)
		if err != nil || !cmp.Equal(s, again) {
			t.Errorf("%v, %v", cmp.Diff(s, again), err)
		}
	})
}

func FuzzSpec(f *testing.F) {
	d := digest.FromString("x")
	l, err := model.NewLayer([]model.File{{Path: "a", Size: 5}, {Path: "b/c", Size: 0}})
	if err != nil {
		f.Fatal(err)
	}
	l.Digest, l.Hashes, l.Root = d, d, model.Hash{1}
	for i := range l.Members {
		l.Members[i].SHA256 = d
	}
	for _, s := range []Spec{{Digest: d, Size: 5}, {Digest: d, Size: l.Size, Root: l.Root, Layer: &l}} {
		raw, err := s.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseSpec(raw)
		if err != nil {
			return
		}
		places := layoutFor(s)
		var at int64
		for _, e := range places.extents {
			if e.off != at || e.size <= 0 || e.at+e.size > places.files[e.file].size {
				t.Fatalf("extent %+v after %d", e, at)
			}
			at += e.size
		}
		if at != s.Size {
			t.Fatalf("extents cover %d of %d bytes", at, s.Size)
		}
		if name := s.Key().dir(); filepath.Base(name) != name || len(name) > 255 {
			t.Fatalf("folder %q", name)
		}
		again, err := s.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseSpec(again); err != nil || back.Key() != s.Key() {
			t.Fatalf("%v, %v", back, err)
		}
	})
}

func TestFileCache(t *testing.T) {
	dir := t.TempDir()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	for i := range 10 {
		if err := os.WriteFile(path(i), []byte{byte(i)}, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	c := newFileCache(3)
	held, err := c.get(path(0), true)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for n := range 200 {
				i := (n*7 + worker) % 10
				f, err := c.get(path(i), n%5 == 0)
				if err != nil {
					t.Error(err)
					return
				}
				b := make([]byte, 1)
				if _, err := f.ReadAt(b, 0); err != nil || b[0] != byte(i) {
					t.Errorf("file %d: %v, %v", i, b, err)
				}
				c.put(f)
			}
		})
	}
	wg.Wait()
	if n := c.recent.Len(); n > 3 {
		t.Errorf("%d files stay open", n)
	}
	c.forget(dir)
	if _, err := held.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("a file in use was closed: %v", err)
	}
	c.put(held)
	c.close()
	if _, err := held.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("the last user did not close a forgotten file")
	}
	if _, err := c.get(path(1), false); err == nil {
		t.Error("a closed cache opens files")
	}
	if info, err := os.Stat(path(0)); err != nil || info.Mode() != 0o444 {
		t.Errorf("after writing: %v, %v", info, err)
	}
}
