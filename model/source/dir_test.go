package source

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, root, state string) (*Dir, map[string]model.File) {
	t.Helper()
	d, err := NewDir(root, state, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byPath := make(map[string]model.File)
	for _, f := range files {
		byPath[f.Path] = f
	}
	return d, byPath
}

func TestDirReads(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "a/b c.txt"), "hello")
	if err := os.Symlink("a/b c.txt", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	d, files := list(t, root, "")
	if len(files) != 2 || files["link"].Size != 5 || files["a/b c.txt"].Size != 5 {
		t.Fatalf("listed %v", files)
	}
	for name := range files {
		r, err := d.Open(t.Context(), name, 2)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || string(got) != "llo" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if d.BytesRead() != 6 {
		t.Errorf("counted %d bytes", d.BytesRead())
	}
	if _, err := d.Open(t.Context(), "../x", 0); err == nil {
		t.Error("a file that was not listed was opened")
	}
}

func TestDirRefuses(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "x")
	for name, tc := range map[string]struct {
		make func(name string) error
		want string
	}{
		"link to a file outside": {func(n string) error { return os.Symlink(filepath.Join(outside, "secret"), n) }, "link out of"},
		"relative link outside":  {func(n string) error { return os.Symlink("../"+filepath.Base(outside), n) }, ""},
		"broken link":            {func(n string) error { return os.Symlink("nowhere", n) }, "no such file"},
		"link to a directory":    {func(n string) error { return os.Symlink("d", n) }, "not a regular file"},
		"pipe":                   {func(n string) error { return syscall.Mkfifo(n, 0o644) }, "not a regular file"},
	} {
		root := t.TempDir()
		write(t, filepath.Join(root, "d/f"), "x")
		if err := tc.make(filepath.Join(root, "bad")); err != nil {
			t.Fatal(err)
		}
		d, err := NewDir(root, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = d.List(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestDirNoticesChanges(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"longer":   func(f string) error { return os.WriteFile(f, []byte("hello, world"), 0o644) },
		"replaced": func(f string) error { return errors.Join(os.Remove(f), os.WriteFile(f, []byte("olleh"), 0o644)) },
		"gone":     os.Remove,
		"mtime set back": func(f string) error {
			info, err := os.Stat(f)
			return errors.Join(err, os.WriteFile(f, []byte("olleh"), 0o644), os.Chtimes(f, info.ModTime(), info.ModTime()))
		},
	} {
		for _, when := range []string{"before Open", "after Open"} {
			root := t.TempDir()
			file := filepath.Join(root, "f")
			write(t, file, "hello")
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(file, old, old); err != nil {
				t.Fatal(err)
			}
			d, _ := list(t, root, "")
			if when == "before Open" {
				if err := change(file); err != nil {
					t.Fatal(err)
				}
				if _, err := d.Open(t.Context(), "f", 0); err == nil {
					t.Errorf("%s %s went unnoticed", name, when)
				}
				continue
			}
			r, err := d.Open(t.Context(), "f", 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := change(file); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			r.Close()
			if err == nil && string(got) != "hello" {
				t.Errorf("%s %s: read %q", name, when, got)
			}
		}
	}
}

func TestDirRemembersChecksums(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	file := filepath.Join(root, "f")
	write(t, file, "hello")
	d, files := list(t, root, state)
	if files["f"].Checksum != "" {
		t.Fatalf("a checksum of nothing: %v", files["f"])
	}
	// As if the file had lain there for a while before it was learned.
	id := d.listed["f"]
	sum := digest.FromString("hello")
	if settled(time.Unix(0, id.CTime)) > time.Since(time.Unix(0, id.CTime)) {
		d.Learn(map[string]digest.Digest{"f": sum})
		if _, files := list(t, root, state); files["f"].Checksum != "" {
			t.Error("a checksum was kept of a file that changed within the clock's tick")
		}
	}
	for time.Since(time.Unix(0, id.CTime)) < settled(time.Unix(0, id.CTime)) {
		// spin for at most a few ticks: only the kernel's clock can make the file old
	}
	d.Learn(map[string]digest.Digest{"f": sum, "not listed": sum})
	if _, files := list(t, root, state); files["f"].Checksum != sum.String() {
		t.Errorf("checksum %q, learned %q", files["f"].Checksum, sum)
	}
	if err := os.WriteFile(file, []byte("olleh"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, files := list(t, root, state); files["f"].Checksum != "" {
		t.Error("a changed file kept its checksum")
	}
	caches, err := filepath.Glob(filepath.Join(state, "checksums", "*.json"))
	if err != nil || len(caches) != 1 {
		t.Fatalf("%v %v", caches, err)
	}
	write(t, caches[0], "{ damaged")
	list(t, root, state)
}
