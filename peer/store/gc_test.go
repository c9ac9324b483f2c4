package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

func digests(s *store.Store) []digest.Digest {
	var all []digest.Digest
	for _, m := range s.Models() {
		all = append(all, m.Digest)
	}
	return all
}

func TestQuotaEvictsLeastRecentlyUsed(t *testing.T) {
	layers := []storetest.Layer{small(t, 1), small(t, 2), small(t, 3), small(t, 4)}
	cfg := store.Config{Dir: t.TempDir(), Quota: 3*layers[0].Size + 1000}
	s := open(t, cfg)
	for i, name := range []string{"a", "b", "c"} {
		fetch(t, s, layers[i])
		publish(t, s, name, layers[i])
	}
	for _, owner := range []string{"desired", "pod 1"} {
		if err := s.Pin(manifest("b"), owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Pin(manifest("a"), "pod 2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpin(manifest("a"), "pod 2"); err != nil { // a use: c is the oldest now
		t.Fatal(err)
	}
	if err := s.Unpin(manifest("b"), "pod 1"); err != nil {
		t.Fatal(err)
	}

	s = reopen(t, s, cfg) // all of that was written down
	fetch(t, s, layers[3])
	if got, want := digests(s), []digest.Digest{manifest("a"), manifest("b")}; !slices.Equal(got, want) {
		t.Errorf("models %v, want %v", got, want)
	}
	if names, err := filepath.Glob(filepath.Join(cfg.Dir, "models", "by-name", "*")); err != nil || len(names) != 2 {
		t.Errorf("names %v, %v", names, err)
	}

	t.Run("no room", func(t *testing.T) {
		if _, err := s.Create(t.Context(), store.Spec{Digest: manifest("huge"), Size: cfg.Quota + 1}); !errors.Is(err, store.ErrNoSpace) {
			t.Errorf("larger than the quota: %v", err)
		}
		if len(s.Models()) != 2 {
			t.Error("models were removed for a blob that does not fit")
		}
		if err := s.Pin(manifest("a"), "pod"); err != nil {
			t.Fatal(err)
		}
		if err := s.Pin(layers[3].Digest, "pod"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), spec(layers[2])); !errors.Is(err, store.ErrNoSpace) {
			t.Errorf("all is pinned: %v", err)
		}
		if len(s.Blobs()) != 3 {
			t.Errorf("blobs: %v", s.Blobs())
		}
	})
}

func TestKeepFree(t *testing.T) {
	s := open(t, store.Config{KeepFree: 1 << 60})
	l := small(t, 1)
	if _, err := s.Create(t.Context(), spec(l)); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("create: %v", err)
	}
	if _, err := s.GC(t.Context()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("gc: %v", err)
	}
}

func TestReservation(t *testing.T) {
	a, b := small(t, 1), small(t, 2)
	s := open(t, store.Config{Quota: a.Size + b.Size - 1})
	first := create(t, s, spec(a)) // not a byte of it is there yet
	if _, err := s.Create(t.Context(), spec(b)); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("create: %v", err)
	}
	closeBlob(t, first) // given up: it goes
	second := create(t, s, spec(b))
	closeBlob(t, second)
}

func TestEvictedGivesUpItsBlobs(t *testing.T) {
	a, b := small(t, 1), small(t, 2)
	var seeding *store.Blob
	var told digest.Digest
	s := open(t, store.Config{Quota: a.Size + 1000, Evicted: func(m digest.Digest, layers []store.Key) {
		told = m
		if len(layers) == 1 && layers[0] == seeding.Key() {
			if err := seeding.Close(); err != nil {
				t.Error(err)
			}
		}
	}})
	fetch(t, s, a)
	publish(t, s, "a", a)
	seeding = create(t, s, spec(a))
	fetch(t, s, b)
	if told != manifest("a") || len(s.Models()) != 0 || len(s.Blobs()) != 1 {
		t.Errorf("told %s, models %v, blobs %v", told, s.Models(), s.Blobs())
	}
}

func TestSeededModelStays(t *testing.T) {
	a, b := small(t, 1), small(t, 2)
	s := open(t, store.Config{Quota: a.Size + 1000})
	fetch(t, s, a)
	publish(t, s, "a", a)
	seeding := create(t, s, spec(a))
	defer closeBlob(t, seeding)
	if _, err := s.Create(t.Context(), spec(b)); !errors.Is(err, store.ErrNoSpace) || len(s.Models()) != 1 {
		t.Errorf("create: %v, models %v", err, s.Models())
	}
}

func TestOrphans(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir(), KeepOrphans: time.Hour}
	s, old, young, used := open(t, cfg), small(t, 1), small(t, 2), small(t, 3)
	for _, l := range []storetest.Layer{old, young, used} {
		fetch(t, s, l)
	}
	publish(t, s, "m", used)
	past := time.Now().Add(-2 * time.Hour)
	for _, l := range []storetest.Layer{old, used} {
		if err := os.Chtimes(filepath.Join(folder(t, cfg.Dir, l), "blob.json"), past, past); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s, cfg)
	freed, err := s.GC(t.Context())
	if err != nil || len(freed.Blobs) != 1 || freed.Blobs[0].Digest != old.Digest || len(freed.Models) != 0 {
		t.Errorf("freed %v, %v", freed, err)
	}
	if err := s.RemoveBlob(store.KeyOf(used.Layer)); !errors.Is(err, store.ErrInUse) {
		t.Errorf("removal of a model's blob: %v", err)
	}
	if err := s.Withdraw(manifest("m")); err != nil {
		t.Fatal(err)
	}
	if err := s.Withdraw(manifest("m")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second withdrawal: %v", err)
	}
	checkTree(t, publish(t, s, "m", used), used) // the blob stayed
}
