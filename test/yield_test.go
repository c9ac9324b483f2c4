package test

import (
	"cmp"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/tracker/client"
)

// A node that receives a model beside a serving process. It logs what the service's slowest hundredth
// takes while the node is idle, and while it receives: with the service's cgroup named, with the canary
// alone, and without yielding. SHOAL_TEST_YIELD_MIB sets the model's size for a figure to quote, and
// SHOAL_TEST_YIELD_RATE what each of the two seeders sends a second.
//
// The node is one CPU, on which only its agent and the service run. What would stand on other machines
// (registry, mirror, seeders, the service's clients) has the other CPUs. Where the CPUs are a
// hypervisor's, it takes them away for longer than a request lasts when all are busy. What that costs
// is logged as well: the control is a loop that wants all of the node's CPU and gives way at once, and
// no transfer.
func TestServingComesFirst(t *testing.T) {
	mib := int64(48)
	if s := os.Getenv("SHOAL_TEST_YIELD_MIB"); s != "" {
		var err error
		if mib, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() != 0 || runtime.NumCPU() < 2 {
		t.Skip("needs root, for a cgroup and priorities, and two CPUs")
	}
	for _, mode := range []string{"pods", "canary", "off"} {
		t.Run(mode, func(t *testing.T) { servingComesFirst(t, mode, mib) })
	}
}

func servingComesFirst(t *testing.T, mode string, mib int64) {
	elsewhere(t)
	group := newCgroup(t)
	var serving *service
	onNodeCPU(t, func() {
		serving = startService(t, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		})
	})

	r := newRegion(t, 0)
	content := make([]byte, mib<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(content) // never fails
	files := map[string][]byte{"model.bin": content}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "model.bin"), content)
	image := r.push(dir, "v1")
	limit := cmp.Or(os.Getenv("SHOAL_TEST_YIELD_RATE"), "50MiB")
	seeder, other := r.addNode("--max-upload", limit), r.addNode("--max-upload", limit)
	another := r.addNode("--max-upload", "1KiB")
	r.yield = mode != "off"
	var flags []string
	if mode == "pods" {
		flags = append(flags, "--yield-to", group.Name())
	}
	var node *daemon
	onNodeCPU(t, func() { node = r.addNode(flags...) })
	r.desireOn("v1", seeder)
	r.settled(seeder, "v1")

	during := func(node *daemon, before ...*daemon) latencies {
		finish := serving.load(t)
		r.desireOn("v1", append(before, node)...)
		r.settled(node, "v1")
		return finish()
	}
	idle := during(other, seeder)
	stop := keepBusy(t)
	control := during(another, seeder, other)
	stop()
	began := time.Now()
	busy := during(node, seeder, other, another)
	took := time.Since(began)
	t.Logf("%s: p99 %s idle, %s (%.2f x) while %d MiB came at %.0f MiB/s, %s control; p50 %s, %s, %s",
		mode, idle.quantile(.99), busy.quantile(.99), float64(busy.quantile(.99))/float64(idle.quantile(.99)),
		mib, float64(mib)/took.Seconds(), control.quantile(.99), idle.quantile(.5), busy.quantile(.5), control.quantile(.5))
	r.ready(image, files, node)
}

// newCgroup returns a cgroup of the v2 hierarchy, which has a mount of its own on a machine with both.
func newCgroup(t *testing.T) *os.File {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "unified")); err == nil {
		root = filepath.Join(root, "unified")
	}
	at, err := os.MkdirTemp(root, "shoal-test-*") //nolint:usetesting // in another file system
	if err != nil {
		t.Skipf("needs cgroups that can be made: %v", err)
	}
	t.Cleanup(func() {
		if err := os.Remove(at); err != nil { // its processes have ended: cleanups run backwards
			t.Error(err)
		}
	})
	if _, err := os.Stat(filepath.Join(at, "cpu.pressure")); err != nil {
		t.Skipf("needs cgroups with pressure accounting: %v", err)
	}
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// onNodeCPU runs f, whose processes are confined to the first CPU.
func onNodeCPU(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, node unix.CPUSet
	node.Set(0)
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedSetaffinity(0, &node); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// keepBusy runs a loop on the node's CPU that takes what nobody else wants of it, until stop.
func keepBusy(t *testing.T) (stop func()) {
	t.Helper()
	var end io.Closer
	var cmd *exec.Cmd
	onNodeCPU(t, func() {
		cmd, end = helper(t, "busy")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	stop = sync.OnceFunc(func() {
		end.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the loop: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// elsewhere confines this process to the other CPUs until the test ends.
func elsewhere(t *testing.T) {
	t.Helper()
	var before, others unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	others = before
	others.Clear(0)
	confine := func(set *unix.CPUSet) {
		tids, err := ownThreads()
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal(err)
			}
		}
	}
	confine(&others)
	t.Cleanup(func() { confine(&before) })
}

// desireOn makes nodes want tag.
func (r *region) desireOn(tag string, nodes ...*daemon) {
	r.t.Helper()
	m := client.DesiredModel{Name: tag, Reference: r.reference(tag)}
	for _, n := range nodes {
		m.Nodes = append(m.Nodes, n.name)
	}
	if err := r.control.SetDesired(r.t.Context(), client.Desired{Models: []client.DesiredModel{m}}); err != nil {
		r.t.Fatal(err)
	}
}
