package pagecache

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// folder returns one on a real disk: what lies in tmpfs cannot be dropped.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return dir
	}
	dir, err := os.MkdirTemp(".", "testdata-*") //nolint:usetesting // t.TempDir is in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// makeTree writes three files of 80 MiB in all, an empty one, a link and a hard link.
func makeTree(t *testing.T) (dir string, total int64) {
	t.Helper()
	dir = folder(t)
	for name, size := range map[string]int{"a.bin": 48 * mib, "b.bin": 32*mib - 5, "sub/config.json": 5, "empty": 0} {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, make([]byte, size), 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("a.bin", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "a.bin"), filepath.Join(dir, "twin"))); err != nil {
		t.Fatal(err)
	}
	return dir, 80 * mib
}

// independent measures with mincore where the package uses cachestat.
func independent(t *testing.T, path string) (resident, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	size = info.Size()
	missing, err := missingRuns(f, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	resident = size
	for _, r := range missing {
		resident -= r.n
	}
	return resident, size
}

func drop(t *testing.T, dir string) {
	t.Helper()
	if err := Drop(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
}

func measure(t *testing.T, dir string) (resident, total int64) {
	t.Helper()
	files, err := Residency(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return Sum(files)
}

func TestDropAndWarm(t *testing.T) {
	dir, want := makeTree(t)
	drop(t, dir)
	if resident, total := measure(t, dir); total != want || resident > total/20 {
		t.Fatalf("after a drop %d of %d bytes are resident", resident, total)
	}
	var told atomic.Int64
	got, err := Warm(t.Context(), dir, Config{Reserve: mib, Progress: func(n int64) { told.Add(n) }})
	if err != nil {
		t.Fatal(err)
	}
	if got.Total != want || got.Resident < want*99/100 || got.Read < want*95/100 || got.Read > want || got.Stopped != "" {
		t.Errorf("%+v", got)
	}
	if told.Load() > want || told.Load() < want*99/100 {
		t.Errorf("progress told of %d bytes of %d", told.Load(), want)
	}
	for _, name := range []string{"a.bin", "b.bin"} {
		if resident, size := independent(t, filepath.Join(dir, name)); resident < size*99/100 {
			t.Errorf("%s: mincore sees %d of %d bytes", name, resident, size)
		}
	}
	again, err := Warm(t.Context(), dir, Config{Reserve: mib})
	if err != nil || again.Read > want/100 {
		t.Errorf("what is resident was read again: %d bytes, %v", again.Read, err)
	}
}

func TestBudget(t *testing.T) {
	dir, total := makeTree(t)
	drop(t, dir)
	got, err := Warm(t.Context(), dir, Config{Budget: total / 2, Reserve: mib})
	if err != nil {
		t.Fatal(err)
	}
	// The kernel reads ahead of the last read.
	if got.Read > total/2 || got.Resident < total/2-8*mib || got.Resident > total/2+8*mib {
		t.Errorf("%d bytes are resident and %d were read, the budget is %d", got.Resident, got.Read, total/2)
	}
	if !strings.Contains(got.Stopped, "the budget of 40MiB") {
		t.Errorf("why: %q", got.Stopped)
	}
}

func TestNoRoom(t *testing.T) {
	dir, _ := makeTree(t)
	drop(t, dir)
	got, err := Warm(t.Context(), dir, Config{Reserve: 1 << 49})
	if err != nil || got.Read > 0 || !strings.Contains(got.Stopped, "memory has room for") {
		t.Errorf("%d bytes were read, why: %q, %v", got.Read, got.Stopped, err)
	}
}

func TestKeeperReadsWhatIsMissing(t *testing.T) {
	dir, total := makeTree(t)
	var rounds atomic.Int64
	done := make(chan struct{})
	k, err := NewKeeper(KeeperConfig{Every: time.Millisecond, Reserve: mib, Trees: func() []Tree {
		if rounds.Add(1) == 3 {
			close(done)
		}
		return []Tree{{Name: "m", Dir: dir, Keep: true}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if k.round(t.Context()) {
		t.Error("the first round is taken for thrashing")
	}
	before, _ := k.State(dir)
	if before.Resident < total*99/100 {
		t.Fatalf("%+v", before)
	}
	const off, n = 8 * mib, 4 * mib
	f, err := os.Open(filepath.Join(dir, "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED), f.Close()); err != nil {
		t.Fatal(err)
	}
	resident, _ := measure(t, dir)
	missing := before.Resident - resident
	if missing < n/2 || missing > n {
		t.Fatalf("%d bytes of %d were dropped", missing, n)
	}
	k.round(t.Context())
	after, _ := k.State(dir)
	if read := after.Read - before.Read; read != missing {
		t.Errorf("the keeper read %d bytes, %d were missing", read, missing)
	}
	if after.Resident < total*99/100 {
		t.Errorf("%+v", after)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	<-done
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestKeeperBudgetGoesToTheFirst(t *testing.T) {
	first, total := makeTree(t)
	second, _ := makeTree(t)
	drop(t, first)
	drop(t, second)
	k, err := NewKeeper(KeeperConfig{Budget: total, Reserve: mib, Trees: func() []Tree {
		return []Tree{{Name: "first", Dir: first, Keep: true}, {Name: "second", Dir: second, Keep: true}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	k.round(t.Context())
	a, _ := k.State(first)
	b, _ := k.State(second)
	if a.Resident < total*99/100 || b.Resident > total/10 || b.Stopped == "" {
		t.Errorf("first %+v, second %+v", a, b)
	}
}

func TestOneFileAndErrors(t *testing.T) {
	dir, _ := makeTree(t)
	if _, total := measure(t, filepath.Join(dir, "b.bin")); total != 32*mib-5 {
		t.Errorf("one file has %d bytes", total)
	}
	if _, err := Residency(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Residency(t.Context(), pipe); err == nil {
		t.Error("a pipe is measured")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Warm(ctx, dir, Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestMeminfo(t *testing.T) {
	const text = "MemTotal: 1000 kB\nMemFree: 300 kB\nMemAvailable: 800 kB\nCached: 500 kB\nShmem: 100 kB\nHugePages_Total: 0\n"
	m, err := parseMeminfo(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	// In use are 700, of which 400 are cache: 300 are not, so that 700 could be.
	if got := m.room(); got != 700<<10 {
		t.Errorf("room for %d KiB", got>>10)
	}
	for _, wrong := range []string{"", strings.Replace(text, "300", "x", 1), strings.Replace(text, "MemFree", "Other", 1), "MemTotal: -1 kB"} {
		if _, err := parseMeminfo(strings.NewReader(wrong)); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestOwnLimit(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		at := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("self", "1:name=systemd:/x\n0::/kube/pod\n")
	write("kube/pod/memory.max", "max\n")
	if _, ok := ownLimit(root, filepath.Join(root, "self")); ok {
		t.Error("a limit where there is none")
	}
	write("kube/memory.max", "1048576\n")
	if limit, ok := ownLimit(root, filepath.Join(root, "self")); !ok || limit != mib {
		t.Errorf("%d, %t", limit, ok)
	}
}

func FuzzMeminfo(f *testing.F) {
	f.Add("MemTotal: 1 kB\nMemFree: 1 kB\nMemAvailable: 1 kB\nCached: 1 kB\nShmem: 2 kB\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMeminfo(strings.NewReader(text))
		if err == nil && m.room() > m.available {
			t.Errorf("%+v has room for %d", m, m.room())
		}
	})
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/a/b\n")
	f.Add("0::/../x")
	f.Fuzz(func(t *testing.T, text string) {
		if path, err := parseCgroup(text); err == nil && (!strings.HasPrefix(path, "/") || strings.Contains(path, "..") && path != filepath.Clean(path)) {
			t.Errorf("%q became %q", text, path)
		}
	})
}
