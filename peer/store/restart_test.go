package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// folder is where the store in dir keeps layer l.
func folder(t *testing.T, dir string, l storetest.Layer) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "blobs", l.Digest.Encoded()+"-"+l.Root.String()+"-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("folders %v, %v", found, err)
	}
	return found[0]
}

// flip changes one byte of a file as a bad disk does: nothing else tells of it.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{content[at] ^ 0x10}, at); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Chmod(path, info.Mode()), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// TestRestart closes a store in mid-transfer, lets something happen to its folder, and looks what a
// new one takes for granted.
func TestRestart(t *testing.T) {
	l := small(t, 1) // five pieces: 0-2 of model.safetensors and what is before it, 2-3 and 3-4 of the others
	held := []int{0, 1, 3}
	for _, c := range []struct {
		name   string
		happen func(t *testing.T, folder string)
		want   []int
	}{
		{"nothing", func(*testing.T, string) {}, held},
		{"no state", func(t *testing.T, folder string) {
			if err := os.Remove(filepath.Join(folder, "state")); err != nil {
				t.Fatal(err)
			}
		}, held},
		{"damaged state", func(t *testing.T, folder string) { flip(t, filepath.Join(folder, "state"), 80) }, held},
		{"touched file", func(t *testing.T, folder string) {
			if err := os.Chtimes(filepath.Join(folder, "files/2"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}, held},
		{"changed file", func(t *testing.T, folder string) {
			path := filepath.Join(folder, "files/2")
			flip(t, path, 600_000)
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 3}},
		{"cut file", func(t *testing.T, folder string) {
			if err := os.Truncate(filepath.Join(folder, "files/2"), 600_000); err != nil {
				t.Fatal(err)
			}
		}, []int{0, 3}},
		{"removed file", func(t *testing.T, folder string) {
			if err := os.Remove(filepath.Join(folder, "files/2")); err != nil {
				t.Fatal(err)
			}
		}, []int{3}},
		{"damaged description", func(t *testing.T, folder string) {
			if err := os.Truncate(filepath.Join(folder, "blob.json"), 10); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"damaged hashes", func(t *testing.T, folder string) { flip(t, filepath.Join(folder, "hashes"), 5) }, held},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := store.Config{Dir: t.TempDir()}
			s := open(t, cfg)
			b := create(t, s, spec(l))
			put(t, b, l, held...)
			closeBlob(t, b)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.happen(t, folder(t, cfg.Dir, l))
			s = open(t, cfg)
			b = create(t, s, spec(l))
			defer closeBlob(t, b)
			var have []int
			for i := range b.NumPieces() {
				if b.Have(i) {
					have = append(have, i)
				}
			}
			if !slices.Equal(have, c.want) {
				t.Errorf("has %v, want %v", have, c.want)
			}
			put(t, b, l)
			if err := b.Finish(t.Context()); err != nil {
				t.Error(err)
			}
			checkTree(t, publish(t, s, "m", l), l)
		})
	}
}

func TestRepairInPlace(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir()}
	s, l := open(t, cfg), small(t, 1)
	fetch(t, s, l)
	tree := publish(t, s, "m", l)
	before, err := os.Stat(filepath.Join(tree, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	const at = 600_000 // in piece 1
	flip(t, filepath.Join(tree, "model.safetensors"), at)

	b := create(t, s, spec(l))
	if !b.Complete() {
		t.Fatal("the stamps are as they were, and it is not trusted")
	}
	bad, err := b.Verify(t.Context())
	if err != nil || !slices.Equal(bad, []int{1}) {
		t.Fatalf("wrong pieces %v, %v; want 1", bad, err)
	}
	if b.Complete() || b.Verified() {
		t.Error("still counts as complete")
	}
	closeBlob(t, b)
	if _, err := s.OpenVerified(t.Context(), l.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("open of a damaged blob: %v", err)
	}

	s = reopen(t, s, cfg) // that it is damaged was written down
	b = create(t, s, spec(l))
	defer closeBlob(t, b)
	if fetched := put(t, b, l); !slices.Equal(fetched, []int{1}) {
		t.Errorf("fetched %v again", fetched)
	}
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Errorf("finish: %v, verified %v", err, b.Verified())
	}
	checkTree(t, tree, l)
	after, err := os.Stat(filepath.Join(tree, "model.safetensors"))
	if err != nil || !os.SameFile(before, after) || after.Mode() != 0o444 {
		t.Errorf("after the repair: %v, %v", after, err)
	}
	if bad, err := b.Verify(t.Context()); len(bad) > 0 || err != nil {
		t.Errorf("after the repair: %v, %v", bad, err)
	}
}

// TestChangedBeforeFinish shows that the disk is looked at before the manifest is blamed, and that what cannot be
// read any more is fetched again.
func TestChangedBeforeFinish(t *testing.T) {
	t.Run("a byte", func(t *testing.T) {
		changedBeforeFinish(t, func(file string) { flip(t, file, 600_000) }, 1)
	})
	t.Run("the end is cut off", func(t *testing.T) {
		changedBeforeFinish(t, func(file string) {
			if err := os.Truncate(file, 600_000); err != nil {
				t.Fatal(err)
			}
		}, 1, 2)
	})
}

// changedBeforeFinish changes the largest file between the last piece and Finish; after that the given pieces
// are missing.
func changedBeforeFinish(t *testing.T, change func(file string), want ...int) {
	t.Helper()
	cfg := store.Config{Dir: t.TempDir()}
	s, l := open(t, cfg), small(t, 1)
	b := create(t, s, spec(l))
	defer closeBlob(t, b)
	put(t, b, l, 1, 2, 3, 4) // not 0: nothing is hashed yet
	change(filepath.Join(folder(t, cfg.Dir, l), "files/2"))
	put(t, b, l, 0)
	if err := b.Finish(t.Context()); !errors.Is(err, store.ErrIncomplete) {
		t.Fatalf("finish: %v", err)
	}
	if fetched := put(t, b, l); !slices.Equal(fetched, want) {
		t.Errorf("fetched %v again, want %v", fetched, want)
	}
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Errorf("finish: %v, verified %v", err, b.Verified())
	}
}

func TestRaw(t *testing.T) {
	content := make([]byte, 1<<20+10)
	storetest.Fill(content, 3)
	sp := store.Spec{Digest: digest.FromBytes(content), Size: int64(len(content))}
	cfg := store.Config{Dir: t.TempDir()}
	s := open(t, cfg)
	fill := func(b *store.Blob, from []byte, pieces ...int) {
		for _, i := range pieces {
			off := int64(i) * b.PieceLength()
			if _, err := b.WriteAt(from[off:min(off+b.PieceLength(), b.Size())], off); err != nil {
				t.Fatal(err)
			}
			if err := b.MarkPiece(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	b := create(t, s, sp)
	fill(b, content, 0)
	closeBlob(t, b)

	s = reopen(t, s, cfg)
	b = create(t, s, sp)
	if b.Frontier() != b.PieceLength() {
		t.Errorf("frontier %d after a restart", b.Frontier())
	}
	fill(b, make([]byte, len(content)), 2)
	fill(b, content, 1)
	if _, corrupt := errors.AsType[*store.CorruptError](b.Finish(t.Context())); !corrupt || b.Frontier() != 0 {
		t.Errorf("finish of wrong bytes: corrupt %v, frontier %d", corrupt, b.Frontier())
	}
	fill(b, content, 0, 1, 2)
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Errorf("finish: %v, verified %v", err, b.Verified())
	}
	if bad, err := b.Verify(t.Context()); err != nil || len(bad) > 0 || !b.Verified() {
		t.Errorf("verify: %v, %v", bad, err)
	}
	closeBlob(t, b)

	data := filepath.Join(cfg.Dir, "blobs", sp.Digest.Encoded()+"-raw", "data")
	if err := os.Chtimes(data, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, cfg)
	if _, err := s.OpenVerified(t.Context(), sp.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("open of a touched blob: %v", err)
	}
	b = create(t, s, sp)
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Errorf("finish of a touched blob: %v, verified %v", err, b.Verified())
	}
	flip(t, data, 600<<10)
	if bad, err := b.Verify(t.Context()); err != nil || len(bad) != 3 || b.Held() != 0 {
		t.Errorf("verify of a damaged blob: %v, %v", bad, err)
	}
	closeBlob(t, b)
	if err := s.RemoveBlob(sp.Key()); err != nil {
		t.Error(err)
	}
	if err := s.RemoveBlob(sp.Key()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

func TestEmptyRaw(t *testing.T) {
	s := open(t, store.Config{})
	b := create(t, s, store.Spec{Digest: digest.FromBytes(nil)})
	defer closeBlob(t, b)
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Errorf("finish: %v, verified %v", err, b.Verified())
	}
}

// TestBackground shows that nobody has to ask for a sync, nor for the hash.
func TestBackground(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir(), SyncBytes: 1}
	s, l := open(t, cfg), small(t, 1)
	b := create(t, s, spec(l))
	defer closeBlob(t, b)
	put(t, b, l, 3)
	state := filepath.Join(folder(t, cfg.Dir, l), "state")
	for {
		if _, err := os.Stat(state); err == nil {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("no state was written")
		}
	}
}

func TestTreeIsRepaired(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir()}
	s, l := open(t, cfg), small(t, 1)
	fetch(t, s, l)
	tree := publish(t, s, "m", l)
	if err := os.Remove(filepath.Join(folder(t, cfg.Dir, l), "files/2")); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s, cfg)
	b := create(t, s, spec(l))
	defer closeBlob(t, b)
	put(t, b, l)
	if again := publish(t, s, "m", l); again != tree {
		t.Errorf("published at %s, before at %s", again, tree)
	}
	checkTree(t, tree, l)
	a, errA := os.Stat(filepath.Join(tree, "model.safetensors"))
	f, errF := os.Stat(filepath.Join(folder(t, cfg.Dir, l), "files/2"))
	if err := errors.Join(errA, errF); err != nil || !os.SameFile(a, f) {
		t.Errorf("the tree keeps a file that is not the store's, %v", err)
	}
}

func TestTwoVersionsShare(t *testing.T) {
	s := open(t, store.Config{})
	shared, one, two := small(t, 1), storetest.NewLayer(t, 2, map[string]int64{"config.json": 10}), storetest.NewLayer(t, 3, map[string]int64{"config.json": 11})
	for _, l := range []storetest.Layer{shared, one, two} {
		fetch(t, s, l)
	}
	v1, v2 := publish(t, s, "v1", shared, one), publish(t, s, "v2", shared, two)
	a, errA := os.Stat(filepath.Join(v1, "model.safetensors"))
	b, errB := os.Stat(filepath.Join(v2, "model.safetensors"))
	if err := errors.Join(errA, errB); err != nil || !os.SameFile(a, b) {
		t.Errorf("two copies, %v", err)
	}
	if _, err := s.Publish(t.Context(), store.Model{Digest: manifest("x"), Layers: []model.Layer{one.Layer, two.Layer}}); err == nil {
		t.Error("one path from two layers passes")
	}
	if err := s.Remove(manifest("v1")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v1); err == nil {
		t.Error("the removed tree is there")
	}
	checkTree(t, v2, shared)
	checkTree(t, v2, two)
	if len(s.Blobs()) != 2 {
		t.Errorf("blobs: %v", s.Blobs())
	}
	if got, err := os.ReadFile(filepath.Join(v2, "a/tiny")); err != nil || !bytes.Equal(got, shared.File(1)) {
		t.Errorf("a/tiny: %q, %v", got, err)
	}
}
