package yield

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Source tells how much the pods stall. The Governor asks it once a period, from one goroutine.
type Source interface {
	// Stalls returns the shares of the elapsed time since the last call, and ErrNoPressure where
	// nothing can be measured.
	Stalls(elapsed time.Duration) (Stalls, error)
}

// ErrNoPressure is returned by a Source that finds nothing to measure.
var ErrNoPressure = errors.New("no pressure to read")

// podGroups are the places of the pods' cgroup: of kubelet's systemd driver and its cgroupfs
// driver, under the mount of a pure v2 machine and the one of a mixed machine.
var podGroups = []string{
	"/sys/fs/cgroup/kubepods.slice", "/sys/fs/cgroup/kubepods",
	"/sys/fs/cgroup/unified/kubepods.slice", "/sys/fs/cgroup/unified/kubepods",
}

const (
	// rescanEvery is how often pods that came and went are noticed.
	rescanEvery = 5 * time.Second
	// maxGroups bounds the files read in a period; kubelet's own limit is 110 pods.
	maxGroups = 512
	// maxWalk bounds the search for our own cgroup.
	maxWalk = 8192
)

// groups reads the pressure of the cgroups beside our own.
type groups struct {
	roots []string
	named []string // of roots, those that the operator named and that ought to exist
	pid   int

	own     map[string]string // our own cgroup by root, "" where we are not in it
	readers map[string]*groupReader
	age     time.Duration // since the last scan
}

type groupReader struct {
	files  [resources]*os.File
	totals [resources]time.Duration
	buf    [256]byte // a pressure file has about 130 bytes
}

// newGroups looks at the pods' cgroup and at dirs, which must exist.
func newGroups(pods, dirs []string) (*groups, error) {
	g := &groups{
		roots: slices.Concat(pods, dirs), named: dirs, pid: os.Getpid(),
		own: map[string]string{}, readers: map[string]*groupReader{}, age: rescanEvery,
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, CPU.String()+".pressure")); err != nil {
			return nil, fmt.Errorf("yield to %s: it has to be a cgroup of the v2 hierarchy, on a kernel with pressure accounting (psi=1): %w", dir, err)
		}
	}
	return g, nil
}

// Stalls implements Source: of each resource, what the worst group stalled.
func (g *groups) Stalls(elapsed time.Duration) (worst Stalls, err error) {
	if g.age += elapsed; g.age >= rescanEvery {
		g.age = 0
		g.scan()
	}
	if len(g.readers) == 0 {
		return worst, ErrNoPressure
	}
	for dir, r := range g.readers {
		stalls, err := r.stalls(elapsed)
		if err != nil { // the pod is gone
			r.close()
			delete(g.readers, dir)
			continue
		}
		for i := range worst {
			worst[i] = max(worst[i], stalls[i])
		}
	}
	return worst, nil
}

// scan opens the groups that are new and forgets those that are gone.
func (g *groups) scan() {
	found := map[string]bool{}
	for _, root := range g.roots {
		if _, err := os.Stat(root); err != nil {
			continue
		}
		own, ok := g.own[root]
		if !ok {
			own = findOwn(root, g.pid)
			g.own[root] = own
		}
		for _, dir := range beside(root, own) {
			if len(found) < maxGroups {
				found[dir] = true
			}
		}
	}
	for dir, r := range g.readers {
		if !found[dir] {
			r.close()
			delete(g.readers, dir)
		}
	}
	for dir := range found {
		if g.readers[dir] != nil {
			continue
		}
		if r, err := openGroup(dir); err == nil {
			g.readers[dir] = r
		}
	}
}

// Close closes the files.
func (g *groups) Close() {
	for dir, r := range g.readers {
		r.close()
		delete(g.readers, dir)
	}
}

func openGroup(dir string) (*groupReader, error) {
	r := new(groupReader)
	for i := range r.files {
		f, err := os.Open(filepath.Join(dir, Resource(i).String()+".pressure"))
		if err != nil {
			r.close()
			return nil, err
		}
		r.files[i] = f
	}
	if _, err := r.stalls(time.Second); err != nil { // the totals to count from
		r.close()
		return nil, err
	}
	return r, nil
}

// stalls reads from the start of the open files each time: the kernel computes the totals of that
// moment. The error of a kernel that has the files but was booted with psi=0 is EOPNOTSUPP.
func (r *groupReader) stalls(elapsed time.Duration) (s Stalls, err error) {
	for i, f := range r.files {
		n, err := f.ReadAt(r.buf[:], 0)
		if n == 0 && err != nil {
			return s, err
		}
		total, err := parseTotal(r.buf[:n])
		if err != nil {
			return s, err
		}
		if elapsed > 0 {
			s[i] = min(max(0, (total-r.totals[i]).Seconds()/elapsed.Seconds()), 1)
		}
		r.totals[i] = total
	}
	return s, nil
}

func (r *groupReader) close() {
	for _, f := range r.files {
		if f != nil {
			f.Close()
		}
	}
}

// findOwn returns the cgroup under root that holds the process, "" if none does. The kernel
// translates the numbers in cgroup.procs to the reader's pid namespace, so that this works in a
// container, where /proc/self/cgroup shows only "/".
func findOwn(root string, pid int) (own string) {
	want := strconv.Itoa(pid)
	seen := 0
	// What cannot be read is not where we are.
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if seen++; seen > maxWalk {
			return filepath.SkipAll
		}
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Fields(string(b)), want) {
			own = filepath.Dir(path)
			return filepath.SkipAll
		}
		return nil
	})
	return own
}

// beside returns root, or if it contains own the groups that leave the path from root to own.
func beside(root, own string) []string {
	rel, err := filepath.Rel(root, own)
	if own == "" || err != nil || !filepath.IsLocal(rel) {
		return []string{root}
	}
	var dirs []string
	at := root
	for name := range strings.SplitSeq(rel, string(filepath.Separator)) {
		if name == "." {
			break
		}
		entries, err := os.ReadDir(at)
		if err != nil {
			break
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != name {
				dirs = append(dirs, filepath.Join(at, e.Name()))
			}
		}
		at = filepath.Join(at, name)
	}
	return dirs
}
