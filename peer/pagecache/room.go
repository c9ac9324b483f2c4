package pagecache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Room returns how many bytes of page cache the machine can hold while reserve bytes stay free, what
// it holds now included. It is 0 where there is none.
//
// Two views bound it. The kernel's is MemAvailable. Kubelet's is memory.available = capacity - working
// set, where the working set is what is in use without Inactive(file) (Kubernetes, "Node-pressure
// eviction"): a page that a pod reads again becomes active and counts as used, so that all of the
// warm set has to fit beside what is not cache. The memory limit of the own cgroup bounds it too,
// because a page is charged to who touches it first.
func Room(reserve int64) (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("how much memory is free: %w", err)
	}
	defer f.Close()
	m, err := parseMeminfo(f)
	if err != nil {
		return 0, fmt.Errorf("/proc/meminfo: %w", err)
	}
	room := m.room() - reserve
	if limit, ok := ownLimit("/sys/fs/cgroup", "/proc/self/cgroup"); ok {
		room = min(room, limit-limit/10) // a tenth for the process itself
	}
	return max(0, room), nil
}

// meminfo is what counts of /proc/meminfo (proc_meminfo(5)), in bytes.
type meminfo struct {
	total, free, available, cached, shmem int64
}

func (m meminfo) room() int64 {
	file := max(0, m.cached-m.shmem) // Cached has shared memory in it, which cannot be dropped
	notCache := max(0, m.total-m.free-file)
	return min(m.available, m.total-notCache)
}

func parseMeminfo(r io.Reader) (meminfo, error) {
	var m meminfo
	want := map[string]*int64{
		"MemTotal": &m.total, "MemFree": &m.free, "MemAvailable": &m.available, "Cached": &m.cached, "Shmem": &m.shmem,
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		into := want[name]
		if !ok || into == nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil || n < 0 || n > 1<<50 {
			return m, fmt.Errorf("%s is %q", name, strings.TrimSpace(rest))
		}
		*into = n << 10
		delete(want, name)
	}
	if err := lines.Err(); err != nil {
		return m, err
	}
	for name := range want {
		return m, fmt.Errorf("has no %s", name)
	}
	return m, nil
}

// ownLimit returns the lowest memory.max from the process's cgroup up (cgroup v2); ok is false where
// there is none, or where cgroups are of another kind.
func ownLimit(root, self string) (limit int64, ok bool) {
	raw, err := os.ReadFile(self)
	if err != nil {
		return 0, false
	}
	group, err := parseCgroup(string(raw))
	if err != nil {
		return 0, false
	}
	for ; ; group = filepath.Dir(group) {
		raw, err := os.ReadFile(filepath.Join(root, group, "memory.max"))
		if err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
			if err == nil && (!ok || n < limit) { // "max" is no number
				limit, ok = n, true
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return limit, ok
		}
		if group == "/" || group == "." {
			return limit, ok
		}
	}
}

// parseCgroup returns the path of the unified hierarchy (cgroups(7), "0::/path").
func parseCgroup(text string) (string, error) {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok && strings.HasPrefix(path, "/") {
			return filepath.Clean(path), nil
		}
	}
	return "", errors.New("no cgroup v2")
}
