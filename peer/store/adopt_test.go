package store_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// files writes the layer's members into a folder.
func files(t *testing.T, l storetest.Layer) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for i, m := range l.Members {
		at := filepath.Join(dir, filepath.FromSlash(m.Path))
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o700), os.WriteFile(at, l.File(i), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAdopt(t *testing.T) {
	const one = "model.safetensors"
	for name, spoil := range map[string]func(at string) error{
		"all":                 func(string) error { return nil },
		"one is missing":      os.Remove,
		"one has other bytes": func(at string) error { return os.WriteFile(at, make([]byte, 1<<20+12345), 0o600) },
		"one is shorter":      func(at string) error { return os.Truncate(at, 7) },
		"one is a link": func(at string) error {
			return errors.Join(os.Rename(at, at+".real"), os.Symlink(at+".real", at))
		},
		"one is a folder": func(at string) error { return errors.Join(os.Remove(at), os.Mkdir(at, 0o700)) },
		"one is a pipe":   func(at string) error { return errors.Join(os.Remove(at), unix.Mkfifo(at, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := small(t, 1)
			dir := files(t, l)
			if err := spoil(filepath.Join(dir, one)); err != nil {
				t.Fatal(err)
			}
			s := open(t, store.Config{})
			b := create(t, s, spec(l))
			for i, m := range l.Members {
				ok, err := b.Adopt(t.Context(), i, filepath.Join(dir, m.Path))
				if want := m.Path != one || name == "all"; err != nil || ok != want {
					t.Errorf("%s: adopted %t, %v", m.Path, ok, err)
				}
			}
			if err := b.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if b.Complete() != (name == "all") || b.Held() == 0 {
				t.Errorf("complete: %t, %d of %d bytes", b.Complete(), b.Held(), b.Size())
			}
			put(t, b, l)
			if err := b.Finish(t.Context()); err != nil {
				t.Fatal(err)
			}
			closeBlob(t, b)
			tree := publish(t, s, "m", l)
			checkTree(t, tree, l)
			for _, m := range l.Members {
				a, errA := os.Stat(filepath.Join(dir, m.Path))
				b, errB := os.Stat(filepath.Join(tree, m.Path))
				if (m.Path != one || name == "all") && (errA != nil || errB != nil || !os.SameFile(a, b)) {
					t.Errorf("%s is a copy: %v, %v", m.Path, errA, errB)
				}
			}
		})
	}
}

func raw(n int) []byte {
	b := make([]byte, n)
	storetest.Fill(b, 7)
	return b
}

func TestAdoptRaw(t *testing.T) {
	dir := t.TempDir()
	content := raw(5 << 20)
	at := filepath.Join(dir, "blob")
	if err := os.WriteFile(at, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{})
	b, err := s.Create(t.Context(), store.Spec{Digest: digest.FromBytes(content), Size: int64(len(content))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if ok, err := b.Adopt(t.Context(), 0, at); !ok || err != nil {
		t.Fatalf("adopted %t, %v", ok, err)
	}
	if err := errors.Join(b.Settle(t.Context()), b.Finish(t.Context())); err != nil {
		t.Fatal(err)
	}
	if !b.Verified() {
		t.Error("not verified")
	}
}

func TestPublishTree(t *testing.T) {
	data := raw(5 << 20)
	dir := t.TempDir()
	cfg := store.Config{Dir: dir}
	s := open(t, cfg)
	key := store.Key{Digest: digest.FromBytes(data)}
	b, err := s.Create(t.Context(), store.Spec{Digest: key.Digest, Size: int64(len(data))})
	if err != nil {
		t.Fatal(err)
	}
	tree := store.Tree{Name: "foreign", Digest: digest.FromString("manifest"), Layers: []store.Key{key}}
	tree.Build = func(_ context.Context, at string, data func(store.Key) string) error {
		if err := os.WriteFile(filepath.Join(at, "own"), make([]byte, 1<<20), 0o444); err != nil {
			return err
		}
		return os.Link(data(key), filepath.Join(at, "linked"))
	}
	if _, err := s.PublishTree(t.Context(), tree); !errors.Is(err, store.ErrIncomplete) {
		t.Errorf("published before the blob was whole: %v", err)
	}
	if _, err := b.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	for i := range b.NumPieces() {
		if err := b.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Finish(t.Context()), b.Close()); err != nil {
		t.Fatal(err)
	}
	broken := tree
	broken.Build = func(_ context.Context, at string, _ func(store.Key) string) error {
		return errors.Join(os.WriteFile(filepath.Join(at, "half"), nil, 0o444), errors.New("the tar lies"))
	}
	if _, err := s.PublishTree(t.Context(), broken); err == nil {
		t.Error("a tree that was not built is published")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "models", "*")); err != nil || len(left) != 1 { // by-name
		t.Errorf("left behind: %v, %v", left, err)
	}
	at, err := s.PublishTree(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(at, "linked")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	s = reopen(t, s, cfg)
	again := tree
	again.Build = func(context.Context, string, func(store.Key) string) error { return errors.New("built again") }
	if _, err := s.PublishTree(t.Context(), again); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := s.Withdraw(tree.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("withdrawn and still there: %v", err)
	}
}
