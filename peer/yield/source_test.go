package yield

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// fakeGroup is a directory with the files of a cgroup that are read.
type fakeGroup string

func newGroup(t *testing.T, path string) fakeGroup {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	g := fakeGroup(path)
	for r := range resources {
		g.stalled(t, r, 0)
	}
	g.holds(t, 1)
	return g
}

// stalled sets what the group's tasks stalled since boot. The file stays the same one, as the kernel's
// does.
func (g fakeGroup) stalled(t *testing.T, r Resource, total time.Duration) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(string(g), r.String()+".pressure"), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "some avg10=0.00 avg60=0.00 avg300=0.00 total=%012d\n", total.Microseconds()); err != nil {
		t.Fatal(err)
	}
}

func (g fakeGroup) holds(t *testing.T, pids ...int) {
	t.Helper()
	var text []byte
	for _, pid := range pids {
		text = append(strconv.AppendInt(text, int64(pid), 10), '\n')
	}
	if err := os.WriteFile(filepath.Join(string(g), "cgroup.procs"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func expectStalls(t *testing.T, g *groups, elapsed time.Duration, want Stalls) {
	t.Helper()
	got, err := g.Stalls(elapsed)
	if err != nil || got != want {
		t.Fatalf("stalls %v, %v; want %v", got, err, want)
	}
}

func TestWorstGroupCounts(t *testing.T) {
	dir := t.TempDir()
	a, b := newGroup(t, filepath.Join(dir, "a")), newGroup(t, filepath.Join(dir, "b"))
	a.stalled(t, CPU, time.Hour) // before anybody asked
	g, err := newGroups(nil, []string{string(a), string(b)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	expectStalls(t, g, time.Second, Stalls{})
	a.stalled(t, CPU, time.Hour+100*time.Millisecond)
	b.stalled(t, CPU, 50*time.Millisecond)
	b.stalled(t, IO, 300*time.Millisecond)
	expectStalls(t, g, time.Second, Stalls{CPU: 0.1, IO: 0.3})
	expectStalls(t, g, time.Second, Stalls{})
	b.stalled(t, Memory, time.Minute) // the clock and the counters are not read at one moment
	expectStalls(t, g, time.Second, Stalls{Memory: 1})
}

func TestGroupsComeAndGo(t *testing.T) {
	pods := filepath.Join(t.TempDir(), "kubepods")
	g, err := newGroups([]string{pods}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Stalls(time.Second); !errors.Is(err, ErrNoPressure) {
		t.Fatalf("no pods: %v", err)
	}
	group := newGroup(t, pods)
	if _, err := g.Stalls(time.Second); !errors.Is(err, ErrNoPressure) {
		t.Fatalf("before the next scan: %v", err)
	}
	expectStalls(t, g, rescanEvery, Stalls{})
	group.stalled(t, IO, time.Second)
	expectStalls(t, g, 2*time.Second, Stalls{IO: 0.5})
	if err := os.RemoveAll(pods); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Stalls(rescanEvery); !errors.Is(err, ErrNoPressure) {
		t.Fatalf("the pods are gone: %v", err)
	}
}

// TestOwnGroupIsLeftOut places this process where the agent's pod would be.
func TestOwnGroupIsLeftOut(t *testing.T) {
	pods := filepath.Join(t.TempDir(), "kubepods")
	newGroup(t, pods)
	newGroup(t, filepath.Join(pods, "besteffort"))
	burstable := newGroup(t, filepath.Join(pods, "burstable"))
	agent := newGroup(t, filepath.Join(pods, "burstable", "pod-agent"))
	container := newGroup(t, filepath.Join(pods, "burstable", "pod-agent", "container"))
	serving := newGroup(t, filepath.Join(pods, "burstable", "pod-serving"))
	container.holds(t, 1, os.Getpid())

	g, err := newGroups([]string{pods}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	expectStalls(t, g, time.Second, Stalls{})
	for _, ours := range []fakeGroup{fakeGroup(pods), burstable, agent, container} {
		ours.stalled(t, CPU, time.Second)
	}
	serving.stalled(t, CPU, 20*time.Millisecond)
	expectStalls(t, g, time.Second, Stalls{CPU: 0.02})
}

func TestBeside(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"a/x", "a/y", "b"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for own, want := range map[string][]string{
		"":                       {"."},
		filepath.Dir(root):       {"."}, // not in it
		root:                     nil,   // all of it is ours
		filepath.Join(root, "b"): {"a"},
		filepath.Join(root, "a"): {"b"},
		root + "/a/x":            {"b", "a/y"},
		root + "/a/gone/deeper":  {"b", "a/x", "a/y"},
	} {
		var got []string
		for _, dir := range beside(root, own) {
			rel, err := filepath.Rel(root, dir)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, rel)
		}
		if !slices.Equal(got, want) {
			t.Errorf("beside %q: %q, want %q", own, got, want)
		}
	}
}

func TestNamedGroupMustExist(t *testing.T) {
	if _, err := newGroups(nil, []string{t.TempDir()}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is no cgroup: %v", err)
	}
}

// TestDamagedGroup is one whose files do not hold what they should.
func TestDamagedGroup(t *testing.T) {
	group := newGroup(t, filepath.Join(t.TempDir(), "kubepods"))
	if err := os.WriteFile(filepath.Join(string(group), "io.pressure"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	g, err := newGroups([]string{string(group)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Stalls(time.Second); !errors.Is(err, ErrNoPressure) {
		t.Errorf("%v", err)
	}
}
