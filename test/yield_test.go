package test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/tracker/client"
)

// A node that receives a model beside a serving process. It logs what the service's slowest hundredth
// takes while the node is idle, and while it receives: with the service's cgroup named, with the canary
// alone, and without yielding. SHOAL_TEST_YIELD_MIB sets the model's size for a figure to quote.
//
// The node is one CPU, on which only its agent and the service run. What would stand on other machines
// (registry, mirror, seeder, the service's clients) has the other CPUs. They are not kept busy all the
// time: where the CPUs are a hypervisor's, it then takes them away for longer than a request lasts.
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
	const limit = "50MiB" // what leaves the other CPUs time to spare
	seeder, other := r.addNode("--max-upload", limit), r.addNode("--max-upload", limit)
	r.yield = mode != "off"
	var flags []string
	if mode == "pods" {
		flags = append(flags, "--yield-to", group.Name())
	}
	var node *daemon
	onNodeCPU(t, func() { node = r.addNode(flags...) })
	r.desireOn("v1", seeder)
	r.settled(seeder, "v1")

	// What the neighbours' work costs the service is no fault of the node's agent.
	finish := serving.load(t)
	r.desireOn("v1", seeder, other)
	r.settled(other, "v1")
	idle := finish()
	finish = serving.load(t)
	began := time.Now()
	r.desireOn("v1", seeder, other, node)
	r.settled(node, "v1")
	took := time.Since(began)
	busy := finish()
	t.Logf("%s: p99 %s idle (of %d), %s (of %d) while %d MiB came at %.0f MiB/s: %.2f x; p50 %s, %s",
		mode, idle.quantile(.99), len(idle), busy.quantile(.99), len(busy), mib, float64(mib)/took.Seconds(),
		float64(busy.quantile(.99))/float64(idle.quantile(.99)), idle.quantile(.5), busy.quantile(.5))
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
			if err := unix.SchedSetaffinity(tid, set); err != nil && err != unix.ESRCH {
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
