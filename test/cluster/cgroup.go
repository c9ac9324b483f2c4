package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// group is the cgroup that all of a world's processes are in, the pods' too. It has one folder below each
// hierarchy of cgroup v1, or a single one in v2.
const group = "shoal-cluster"

const cgroups = "/sys/fs/cgroup"

// unified reports whether the machine has cgroup v2 only.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers"))
	return err == nil
}

// hierarchies returns the roots of the machine's hierarchies.
func hierarchies() ([]string, error) {
	if unified() {
		return []string{cgroups}, nil
	}
	entries, err := os.ReadDir(cgroups)
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, e := range entries {
		if e.IsDir() { // the links are other names of hierarchies with several controllers
			roots = append(roots, filepath.Join(cgroups, e.Name()))
		}
	}
	return roots, nil
}

// makeGroup makes a cgroup in every hierarchy, fit for a kubelet to divide: with the CPUs and the memory
// nodes of the machine (v1, where a new cpuset is empty), or with all controllers (v2).
func makeGroup(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for part := range strings.SplitSeq(name, "/") {
			if unified() {
				if err := delegate(dir); err != nil {
					return err
				}
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := fillCPUs(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// fillCPUs gives dir its parent's CPUs, where it has a say in them.
func fillCPUs(parent, dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		all, err := os.ReadFile(filepath.Join(parent, f))
		if errors.Is(err, fs.ErrNotExist) || unified() {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f), all, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// delegate lets the children of a v2 cgroup have all controllers.
func delegate(dir string) error {
	all, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var on []string
	for c := range strings.FieldsSeq(string(all)) {
		on = append(on, "+"+c)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(on, " ")), 0o644)
}

// enter returns the file by which a process joins the cgroup. Of v1's hierarchies pids is enough: it is
// the one that processes are found by.
func enter(name string) string {
	if unified() {
		return filepath.Join(cgroups, name, "cgroup.procs")
	}
	return filepath.Join(cgroups, "pids", name, "cgroup.procs")
}

// members returns the processes of the cgroup and of those below it.
func members(name string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(filepath.Dir(enter(name)), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // a cgroup that has just gone
			}
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// endGroup kills every process of the cgroup and removes it.
func endGroup(ctx context.Context, name string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := members(name)
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if pid > 0 { // 0 is a process of another pid namespace
				_ = unix.Kill(pid, unix.SIGKILL) // it may have just ended
			}
		}
		if len(pids) == 0 {
			err = removeGroup(name)
			if err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s still has processes %v: %w", name, pids, errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// removeGroup removes a cgroup that has no processes from every hierarchy.
func removeGroup(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(root, name), func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, dir := range slices.Backward(dirs) { // children come after their parents
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
