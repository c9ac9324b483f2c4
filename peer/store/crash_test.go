package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/peer/store/storetest"
)

// The test binary runs itself again with these set, to be killed.
const (
	crashDir  = "SHOAL_STORE_CRASH_DIR"
	crashRole = "SHOAL_STORE_CRASH_ROLE"
)

// crashLayer has some thirty pieces.
func crashLayer(tb testing.TB, seed uint64) storetest.Layer {
	return storetest.NewLayer(tb, seed, map[string]int64{
		"big.safetensors": 9<<20 + 7, "config.json": 900, "dir/empty": 0, "dir/more.bin": 5 << 20, "z": 1 << 20,
	})
}

// tb lets the child use the same helpers; it has no testing.T.
type tb struct{ testing.TB }

func (tb) Helper() {}

func (tb) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}

func must(err error) {
	if err != nil {
		tb{}.Fatal(err)
	}
}

// crashChild does what its role says and tells each step on stdout once it is done, for ever.
func crashChild(dir, role string) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Dir: dir, SyncBytes: 3 << 20})
	must(err)
	l := crashLayer(tb{}, 1)
	switch role {
	case "layer", "raw":
		sp := spec(l)
		if role == "raw" {
			sp = rawSpec(l)
		}
		b, err := s.Create(ctx, sp)
		must(err)
		for _, i := range rand.Perm(b.NumPieces()) {
			off := int64(i) * b.PieceLength()
			_, err := b.WriteAt(l.Bytes[off:min(off+b.PieceLength(), l.Size)], off)
			must(err)
			must(b.MarkPiece(i))
			if role == "raw" {
				must(b.Sync())
			}
			fmt.Println("piece", i)
		}
		must(b.Finish(ctx))
		fmt.Println("finished")
		select {}
	case "models":
		for {
			for _, seed := range []uint64{1, 2} {
				l := crashLayer(tb{}, seed)
				b, err := s.Create(ctx, spec(l))
				must(err)
				for i := range b.NumPieces() {
					off, content := l.Piece(i)
					_, err := b.WriteAt(content, off)
					must(err)
					must(b.MarkPiece(i))
				}
				_, err = s.Publish(ctx, store.Model{Name: fmt.Sprint("m", seed), Digest: manifest(fmt.Sprint("m", seed)), Layers: []model.Layer{l.Layer}})
				must(err)
				must(b.Close())
				fmt.Println("published", seed)
			}
			must(s.Remove(manifest("m1")))
			fmt.Println("removed")
			must(s.Withdraw(manifest("m2")))
			fmt.Println("withdrawn")
		}
	}
}

func rawSpec(l storetest.Layer) store.Spec { return store.Spec{Digest: l.Digest, Size: l.Size} }

// crash runs the child in dir, kills it after it told so many steps, or a random moment later, and
// returns all that it told.
func crash(t *testing.T, dir, role string, steps int) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashRole+"="+role)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var told []string
	lines := bufio.NewScanner(out)
	for len(told) < steps && lines.Scan() {
		told = append(told, lines.Text())
	}
	<-time.After(rand.N(5 * time.Millisecond)) // to somewhere in a later step
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // what it told before it died
		told = append(told, lines.Text())
	}
	err = cmd.Wait()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if !failed || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v before it was killed:\n%s", err, stderr.String())
	}
	return told
}

func rounds() int {
	if testing.Short() {
		return 3
	}
	return 10
}

// TestKilledInTransfer: what was marked is there after kill -9, be it synced or not.
func TestKilledInTransfer(t *testing.T) {
	l := crashLayer(t, 1)
	for round := range rounds() {
		for _, role := range []string{"layer", "raw"} {
			dir := t.TempDir()
			sp := spec(l)
			most := 30
			if role == "raw" {
				sp, most = rawSpec(l), 4
			}
			told := crash(t, dir, role, 1+rand.IntN(most))
			s := open(t, store.Config{Dir: dir})
			b := create(t, s, sp)
			for _, line := range told {
				var i int
				if _, err := fmt.Sscanf(line, "piece %d", &i); err == nil && !b.Have(i) {
					t.Errorf("%s, round %d: piece %d was complete and has to be fetched again", role, round, i)
				}
			}
			for i := range b.NumPieces() { // the rest
				off := int64(i) * b.PieceLength()
				content := l.Bytes[off:min(off+b.PieceLength(), l.Size)]
				got := make([]byte, len(content))
				if _, err := b.ReadAt(got, off); b.Have(i) && (err != nil || !bytes.Equal(got, content)) {
					t.Errorf("%s, round %d: piece %d is marked and wrong, %v", role, round, i, err)
				}
				if _, err := b.WriteAt(content, off); err != nil {
					t.Fatal(err)
				}
				if err := b.MarkPiece(i); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.Finish(t.Context()); err != nil || !b.Verified() {
				t.Errorf("%s, round %d: finish: %v", role, round, err)
			}
			closeBlob(t, b)
		}
	}
}

// TestKilledWhilePublishing: after kill -9 each tree is whole, and nothing is left half made.
func TestKilledWhilePublishing(t *testing.T) {
	layers := map[digest.Digest]storetest.Layer{manifest("m1"): crashLayer(t, 1), manifest("m2"): crashLayer(t, 2)}
	dir := t.TempDir()
	for round := range rounds() {
		told := crash(t, dir, "models", 1+rand.IntN(6))
		s := open(t, store.Config{Dir: dir})
		seen := s.Models()
		for _, m := range seen {
			checkTree(t, m.Path, layers[m.Digest])
			for _, key := range m.Layers {
				b, err := s.OpenBlob(t.Context(), key)
				if err != nil {
					t.Fatal(err)
				}
				if !b.Complete() {
					t.Errorf("round %d: a published blob is not complete", round)
				}
				if bad, err := b.Verify(t.Context()); err != nil || len(bad) > 0 {
					t.Errorf("round %d: wrong pieces %v, %v", round, bad, err)
				}
				closeBlob(t, b)
			}
		}
		// What the step after the last one that was told does not touch.
		last := told[len(told)-1]
		for name, want := range map[string]map[string]bool{
			"m1": {"published 1": true, "removed": false},
			"m2": {"published 2": true, "withdrawn": false},
		} {
			has := slices.ContainsFunc(seen, func(m store.ModelInfo) bool { return m.Name == name })
			if should, known := want[last]; known && has != should {
				t.Errorf("round %d: after %q the store has %s: %v", round, last, name, has)
			}
		}
		entries, err := os.ReadDir(filepath.Join(dir, "models"))
		if err != nil || len(entries) != len(seen)+1 {
			t.Errorf("round %d: %d models and %v, %v", round, len(seen), entries, err)
		}
		names, err := filepath.Glob(filepath.Join(dir, "models", "by-name", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if _, err := os.Stat(name); err != nil {
				t.Errorf("round %d: a name without a tree: %v", round, err)
			}
		}
		hidden, err := filepath.Glob(filepath.Join(dir, "*", ".tmp-*"))
		if err != nil || len(hidden) > 0 {
			t.Errorf("round %d: left behind %v, %v", round, hidden, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
