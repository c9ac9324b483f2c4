package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir, os.Getenv(crashRole))
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		unlockTree(t, cfg.Dir)
	})
	return s
}

// unlockTree lets t.TempDir remove read-only folders where the tests do not run as root.
func unlockTree(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(path, 0o755)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func reopen(t *testing.T, s *store.Store, cfg store.Config) *store.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, cfg)
}

// small has five pieces: a member across pieces, empty and tiny ones, odd names.
func small(t testing.TB, seed uint64) storetest.Layer {
	return storetest.NewLayer(t, seed, map[string]int64{
		"model.safetensors": 1<<20 + 12345, "a/empty": 0, "a/tiny": 3, "分词器 tokenizer.json": 700_000, "z/last.bin": 600_001,
	})
}

func spec(l storetest.Layer) store.Spec {
	return store.Spec{Digest: l.Digest, Size: l.Size, Root: l.Root, Hashes: l.HashLayer, Layer: &l.Layer}
}

func create(t *testing.T, s *store.Store, sp store.Spec) *store.Blob {
	t.Helper()
	b, err := s.Create(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func closeBlob(t *testing.T, b interface{ Close() error }) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// put writes and marks pieces, all missing ones if none are named; it returns those written.
func put(t *testing.T, b *store.Blob, l storetest.Layer, pieces ...int) []int {
	t.Helper()
	if pieces == nil {
		for i := range b.NumPieces() {
			if !b.Have(i) {
				pieces = append(pieces, i)
			}
		}
	}
	for _, i := range pieces {
		off, content := l.Piece(i)
		if _, err := b.WriteAt(content, off); err != nil {
			t.Fatal(err)
		}
		if err := b.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
	return pieces
}

// fetch brings a whole layer in and leaves it at rest.
func fetch(t *testing.T, s *store.Store, l storetest.Layer) {
	t.Helper()
	b := create(t, s, spec(l))
	put(t, b, l)
	if err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeBlob(t, b)
}

func manifest(name string) digest.Digest { return digest.FromString("manifest of " + name) }

func publish(t *testing.T, s *store.Store, name string, layers ...storetest.Layer) string {
	t.Helper()
	m := store.Model{Name: name, Digest: manifest(name)}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Layer)
	}
	tree, err := s.Publish(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func checkTree(t *testing.T, tree string, l storetest.Layer) {
	t.Helper()
	for i, m := range l.Members {
		got, err := os.ReadFile(filepath.Join(tree, m.Path))
		if err != nil || !bytes.Equal(got, l.File(i)) {
			t.Errorf("%s: %d bytes, %v; want the %d of the layer", m.Path, len(got), err, m.Size)
		}
	}
}

func TestConformance(t *testing.T) {
	layer := small(t, 1)
	for name, sp := range map[string]store.Spec{
		"layout": spec(layer),
		"hashed": {Digest: layer.Digest, Size: layer.Size, Root: layer.Root, Hashes: layer.HashLayer},
		"raw":    {Digest: layer.Digest, Size: 9<<20 + 5},
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.Opened {
				b := create(t, open(t, store.Config{OpenFiles: 2}), sp)
				t.Cleanup(func() { closeBlob(t, b) })
				return storetest.Opened{Storage: b, Size: b.Size(), PieceLength: b.PieceLength()}
			})
		})
	}
}

func TestFinishAndPublish(t *testing.T) {
	s, l := open(t, store.Config{}), small(t, 1)
	b := create(t, s, spec(l))
	defer closeBlob(t, b)
	put(t, b, l, 4, 2, 0)
	if err := b.Finish(t.Context()); !errors.Is(err, store.ErrIncomplete) {
		t.Errorf("finish of a part: %v", err)
	}
	if _, err := s.Publish(t.Context(), store.Model{Digest: manifest("m"), Layers: []model.Layer{l.Layer}}); !errors.Is(err, store.ErrIncomplete) {
		t.Errorf("publish of a part: %v", err)
	}
	put(t, b, l)
	if b.Verified() {
		t.Error("verified before the whole was hashed")
	}
	if _, err := s.OpenVerified(t.Context(), l.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("open of a blob that is not verified: %v", err)
	}
	tree := publish(t, s, "qwen/qwen3:8b", l) // when its pieces are right, not its digest
	checkTree(t, tree, l)
	if err := b.Finish(t.Context()); err != nil || !b.Verified() || b.Frontier() != l.Size {
		t.Errorf("finish: %v, verified %v, frontier %d", err, b.Verified(), b.Frontier())
	}
	checkTree(t, filepath.Join(filepath.Dir(tree), "by-name", "qwen%2Fqwen3:8b"), l)

	r, err := s.OpenVerified(t.Context(), l.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, r)
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, l.Bytes) {
		t.Errorf("the blob reads as %d other bytes, %v", len(got), err)
	}

	for i, m := range l.Members {
		info, err := os.Stat(filepath.Join(tree, m.Path))
		if err != nil || info.Mode() != 0o444 {
			t.Errorf("member %d: %v, %v", i, info, err)
		}
	}
	if info, err := os.Stat(filepath.Join(tree, "a")); err != nil || info.Mode().Perm() != 0o555 {
		t.Errorf("folder: %v, %v", info, err)
	}
	onDisk, err := b.Allocated()
	if limit := l.Size + 64<<10; err != nil || onDisk > limit { // blocks of 4 KiB and five records
		t.Errorf("%d bytes on disk for %d, %v", onDisk, l.Size, err)
	}
}

func TestSharedByAllWhoCreate(t *testing.T) {
	s, l := open(t, store.Config{}), small(t, 1)
	a, b := create(t, s, spec(l)), create(t, s, spec(l))
	if a != b {
		t.Error("two blobs for one key")
	}
	put(t, a, l, 1)
	closeBlob(t, a)
	if !b.Have(1) {
		t.Error("a piece was lost with its user")
	}
	put(t, b, l, 2)
	closeBlob(t, b)
	if err := b.Close(); err == nil {
		t.Error("a third Close of two users passes")
	}
	c := create(t, s, store.Spec{Digest: l.Digest, Size: l.Size, Root: l.Root, Layer: &l.Layer}) // the hashes are there
	defer closeBlob(t, c)
	if !c.Have(1) || !c.Have(2) || c.Have(3) {
		t.Errorf("bitmap %x after all were closed", c.Bitmap())
	}
}

// TestLyingManifest shows that what one manifest brought under a digest is never read by another.
func TestLyingManifest(t *testing.T) {
	s, truth := open(t, store.Config{}), small(t, 1)
	fetch(t, s, truth)
	tree := publish(t, s, "honest", truth)

	t.Run("root of other bytes", func(t *testing.T) {
		lie := small(t, 2)
		sp := spec(lie)
		lie.Digest = truth.Digest
		sp.Digest, sp.Layer = truth.Digest, &lie.Layer
		b := create(t, s, sp)
		defer closeBlob(t, b)
		put(t, b, lie)
		_, corrupt := errors.AsType[*store.CorruptError](b.Finish(t.Context()))
		if !corrupt || b.Verified() || !b.Complete() {
			t.Errorf("corrupt %v, verified %v, complete %v", corrupt, b.Verified(), b.Complete())
		}
		if _, err := s.Publish(t.Context(), store.Model{Digest: manifest("lie"), Layers: []model.Layer{lie.Layer}}); err == nil {
			t.Error("it can be published once the lie is known")
		}
	})
	t.Run("other members for the same bytes", func(t *testing.T) {
		lie := truth
		lie.Layer.Members = slices.Clone(truth.Members)
		lie.Layer.Members[0].Path = "a/EMPTY"
		b := create(t, s, spec(lie))
		defer closeBlob(t, b)
		if b.Have(0) {
			t.Error("shares files with the truth")
		}
		put(t, b, truth)
		_, err := s.Publish(t.Context(), store.Model{Digest: manifest("lie"), Layers: []model.Layer{lie.Layer}})
		if _, wrong := errors.AsType[*model.SkeletonError](err); !wrong {
			t.Errorf("publish: %v", err)
		}
	})
	r, err := s.OpenVerified(t.Context(), truth.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, r)
	if got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size())); err != nil || !bytes.Equal(got, truth.Bytes) {
		t.Errorf("the digest reads as other bytes, %v", err)
	}
	checkTree(t, tree, truth)
}

func TestRefused(t *testing.T) {
	s, l := open(t, store.Config{}), small(t, 1)
	other := small(t, 2)
	for name, change := range map[string]func(*store.Spec){
		"no hashes":            func(sp *store.Spec) { sp.Hashes = nil },
		"hashes of other root": func(sp *store.Spec) { sp.Hashes = other.HashLayer },
		"not a digest":         func(sp *store.Spec) { sp.Digest = "sha256:../../x" },
		"negative size":        func(sp *store.Spec) { *sp = store.Spec{Digest: l.Digest, Size: -1} },
		"layer of other bytes": func(sp *store.Spec) { sp.Layer = &other.Layer },
		"unsafe path": func(sp *store.Spec) {
			bad := l.Layer
			bad.Members = slices.Clone(l.Members)
			bad.Members[0].Path = "../x"
			sp.Layer = &bad
		},
	} {
		sp := spec(l)
		change(&sp)
		if b, err := s.Create(t.Context(), sp); err == nil {
			t.Errorf("%s: passes", name)
			closeBlob(t, b)
		}
	}
	if len(s.Blobs()) > 0 {
		t.Errorf("left behind: %v", s.Blobs())
	}
	if _, err := store.Open(t.Context(), store.Config{}); err == nil {
		t.Error("a store without a folder opens")
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	open(t, store.Config{Dir: dir})
	if _, err := store.Open(t.Context(), store.Config{Dir: dir}); !errors.Is(err, store.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	s, l := open(t, store.Config{}), small(t, 1)
	b := create(t, s, spec(l))
	put(t, b, l)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Finish(ctx); !errors.Is(err, context.Canceled) && err != nil {
		t.Errorf("finish: %v", err) // nil where the worker was faster
	}
	if _, err := b.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
	if err := b.Finish(t.Context()); err != nil {
		t.Errorf("finish after a cancelled one: %v", err)
	}
	closeBlob(t, b)
}

// BenchmarkFetch writes a layer in blocks of 1 MiB, verifies and removes it.
func BenchmarkFetch(b *testing.B) {
	l := storetest.NewLayer(b, 1, map[string]int64{"model.safetensors": 256 << 20})
	s, err := store.Open(b.Context(), store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.SetBytes(l.Size)
	for b.Loop() {
		blob, err := s.Create(b.Context(), spec(l))
		if err != nil {
			b.Fatal(err)
		}
		for i := range blob.NumPieces() {
			off, content := l.Piece(i)
			for block := range slices.Chunk(content, 1<<20) {
				if _, err := blob.WriteAt(block, off); err != nil {
					b.Fatal(err)
				}
				off += int64(len(block))
			}
			if err := blob.MarkPiece(i); err != nil {
				b.Fatal(err)
			}
		}
		if err := errors.Join(blob.Finish(b.Context()), blob.Close(), s.RemoveBlob(blob.Key())); err != nil {
			b.Fatal(err)
		}
	}
}
