package e2e

import (
	"bufio"
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/test/cluster"
)

// Clusters come and go, one of them killed half-way, and the machine is as it was. SHOAL_E2E_ROUNDS sets how
// many.
func TestNothingIsLeft(t *testing.T) {
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make e2e")
	}
	rounds := 3
	if s := os.Getenv("SHOAL_E2E_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	command := program(t, "../cluster/cmd/cluster")
	dir := filepath.Join(t.TempDir(), "world")
	before := machineState(t)
	for i := range rounds {
		began := time.Now()
		if i == rounds/2 {
			killedHalfWay(t, command, dir)
			t.Logf("round %d: killed half-way", i+1)
			continue // the next one cleans up
		}
		up := exec.CommandContext(within(t), command, "up", "--tools", tools, "--dir", dir)
		if out, err := up.CombinedOutput(); err != nil {
			t.Fatalf("round %d: %v\n%s", i+1, err, out)
		}
		running := time.Now()
		if out, err := exec.CommandContext(within(t), command, "down").CombinedOutput(); err != nil {
			t.Fatalf("round %d: %v\n%s", i+1, err, out)
		}
		t.Logf("round %d: up in %.1f s, down in %.1f s", i+1, running.Sub(began).Seconds(), time.Since(running).Seconds())
		compare(t, before, machineState(t))
	}
}

// killedHalfWay kills the command that starts a cluster when the API server is ready and the nodes are not.
func killedHalfWay(t *testing.T, command, dir string) {
	t.Helper()
	up := exec.CommandContext(within(t), command, "up", "--tools", tools, "--dir", dir)
	steps, err := up.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(steps)
	for lines.Scan() && !strings.Contains(lines.Text(), "API server is ready") {
	}
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err == nil {
		t.Fatal("the command had ended before it was killed")
	}
}

// A world that is closed leaves nothing either, and a second one beside it is refused.
func TestOneWorldAtATime(t *testing.T) {
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make e2e")
	}
	before := machineState(t)
	cfg := cluster.Config{Tools: tools, Dir: filepath.Join(t.TempDir(), "world")}
	w, err := cluster.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "wait for its end") {
		t.Errorf("a second world: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	compare(t, before, machineState(t))
}

// machineState is what a cluster could leave behind, as lines by kind.
func machineState(t *testing.T) map[string][]string {
	t.Helper()
	state := map[string][]string{}
	read := func(kind string, argv ...string) {
		out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		state[kind] = strings.Split(strings.TrimSpace(string(out)), "\n")
		slices.Sort(state[kind])
	}
	read("interfaces", "sh", "-c", "ls /sys/class/net")
	read("routes", "ip", "route")
	read("mounts", "sh", "-c", "cut -d' ' -f5 /proc/self/mountinfo")
	read("sysctls", "sh", "-c", "cd /proc/sys && grep -H . vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes net/ipv4/ip_forward")
	for _, ns := range []string{"net", "mnt"} {
		read(ns+" namespaces", "sh", "-c", "readlink /proc/[0-9]*/ns/"+ns+" | sort -u")
	}
	state["processes"] = clusterProcesses(t)
	var groups []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			groups = append(groups, path)
		}
		return nil // one may go while we look
	})
	if err != nil {
		t.Fatal(err)
	}
	state["cgroups"] = groups
	return state
}

// clusterProcesses are the processes of the programs that clusters are made of.
func clusterProcesses(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range all {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		program, _, _ := bytes.Cut(raw, []byte{0})
		if strings.HasPrefix(string(program), tools) || bytes.Contains(raw, []byte("containerd-shim")) {
			found = append(found, string(bytes.ReplaceAll(raw, []byte{0}, []byte{' '})))
		}
	}
	return found
}

func compare(t *testing.T, before, after map[string][]string) {
	t.Helper()
	for kind, now := range after {
		for _, line := range now {
			if !slices.Contains(before[kind], line) {
				t.Errorf("%s: %q is new", kind, line)
			}
		}
		for _, line := range before[kind] {
			if !slices.Contains(now, line) {
				t.Errorf("%s: %q is gone", kind, line)
			}
		}
	}
}
