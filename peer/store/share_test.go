package store_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/store"
)

// rawBlob is a raw blob of this content, whole and verified.
func rawBlob(t *testing.T, s *store.Store, content []byte) *store.Blob {
	t.Helper()
	b := create(t, s, store.Spec{Digest: digest.FromBytes(content), Size: int64(len(content))})
	if _, err := b.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	for i := range b.NumPieces() {
		if err := b.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func dataOf(t *testing.T, dir string, content []byte) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "blobs", digest.FromBytes(content).Encoded()+"-raw", "data"))
	if err != nil || len(found) != 1 {
		t.Fatalf("data files %v, %v", found, err)
	}
	return found[0]
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errX != nil || errY != nil {
		t.Fatal(errX, errY)
	}
	return os.SameFile(x, y)
}

func TestShare(t *testing.T) {
	content := make([]byte, 9<<20)
	rand.NewChaCha8([32]byte{7}).Read(content)
	top := t.TempDir()
	cfg := store.Config{Dir: filepath.Join(top, "store")}
	s := open(t, cfg)
	b := rawBlob(t, s, content)
	theirs := filepath.Join(top, "theirs")

	// What is not the blob is not linked.
	wrong := bytes.Clone(content)
	wrong[5] ^= 1
	for name, bytes := range map[string][]byte{"another content": wrong, "another size": content[1:]} {
		if err := os.WriteFile(theirs, bytes, 0o444); err != nil {
			t.Fatal(err)
		}
		if ok, err := b.Share(t.Context(), theirs); ok || err != nil {
			t.Errorf("%s: %v %v", name, ok, err)
		}
		if err := os.Remove(theirs); err != nil {
			t.Fatal(err)
		}
	}
	if ok, err := b.Share(t.Context(), theirs); ok || err != nil {
		t.Errorf("a file that is not there: %v %v", ok, err)
	}

	if err := os.WriteFile(theirs, content, 0o444); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := b.Share(t.Context(), theirs); !ok || err != nil || !b.Shared() {
		t.Fatalf("not shared: %v %v", ok, err)
	}
	if !sameFile(t, theirs, dataOf(t, cfg.Dir, content)) {
		t.Error("there are still two files")
	}
	if n, err := b.Allocated(); err != nil || n > 1<<20 {
		t.Errorf("it counts for %d bytes, %v", n, err)
	}
	if ok, err := b.Share(t.Context(), theirs); ok || err != nil {
		t.Errorf("shared twice: %v %v", ok, err)
	}
	closeBlob(t, b)

	// A restart finds it whole.
	s = reopen(t, s, cfg)
	if b, err = s.OpenBlob(t.Context(), store.Key{Digest: digest.FromBytes(content)}); err != nil {
		t.Fatal(err)
	}
	if !b.Verified() || !b.Shared() {
		t.Errorf("after a restart: verified %v, shared %v", b.Verified(), b.Shared())
	}

	// Damage is mended in a copy of our own.
	if err := os.Chmod(theirs, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(theirs, wrong, 0o644); err != nil {
		t.Fatal(err)
	}
	if bad, err := b.Verify(t.Context()); err != nil || len(bad) == 0 {
		t.Fatalf("the damage was not found: %v %v", bad, err)
	}
	if _, err := b.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	for i := range b.NumPieces() {
		if err := b.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Finish(t.Context()); err != nil || !b.Verified() {
		t.Fatal(err)
	}
	got, err := os.ReadFile(theirs)
	if err != nil || !bytes.Equal(got, wrong) {
		t.Errorf("their file was written to: %v", err)
	}
	if sameFile(t, theirs, dataOf(t, cfg.Dir, content)) || b.Shared() {
		t.Error("it is still shared")
	}
	after, err := os.Stat(theirs)
	if err != nil || after.Mode() != 0o644 || !os.SameFile(before, after) {
		t.Errorf("their file: %v %v", after, err)
	}
	closeBlob(t, b)
}

func TestShareAcrossMounts(t *testing.T) {
	const elsewhere = "/dev/shm"
	dir := t.TempDir()
	theirs, err := os.MkdirTemp(elsewhere, "shoal-test-") //nolint:usetesting // on another file system
	if err != nil {
		t.Skip("needs a second file system: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(theirs) })
	content := []byte("a layer")
	if err := os.WriteFile(filepath.Join(theirs, "blob"), content, 0o444); err != nil {
		t.Fatal(err)
	}
	b := rawBlob(t, open(t, store.Config{Dir: dir}), content)
	defer closeBlob(t, b)
	if ok, err := b.Share(t.Context(), filepath.Join(theirs, "blob")); ok || err != nil || b.Shared() {
		t.Errorf("%v %v", ok, err)
	}
}
