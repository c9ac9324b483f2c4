package controlplane

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// daemon runs a part of Shoal until the test ends, and returns where it listens.
func (s *surroundings) daemon(what, command string, args ...string) (addr string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), s.binary, append([]string{command, "--admin", "127.0.0.1:0"}, args...)...)
	home := s.t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "DOCKER_CONFIG="+home)
	cmd.WaitDelay = 10 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	up, gone := make(chan string, 1), make(chan struct{})
	logs := &bytes.Buffer{}
	go func() {
		defer close(gone)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			logs.Write(append(lines.Bytes(), '\n'))
			var l struct{ Msg, What, Addr string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" && l.What == what {
				up <- l.Addr
			}
		}
		_ = cmd.Wait()
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		if s.t.Failed() {
			s.t.Logf("%s %v:\n%s", command, args, logs)
		}
	})
	select {
	case addr = <-up:
	case <-gone:
		s.t.Fatalf("%s %v ended:\n%s", command, args, logs)
	}
	return addr
}

// shoal runs a command that ends.
func (s *surroundings) shoal(args ...string) {
	s.t.Helper()
	if out, err := exec.CommandContext(within(s.t), s.binary, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("shoal %v: %v\n%s", args, err, out)
	}
}

// TestSingleCluster: hub and member in one, with a real tracker, mirror and node agents. What a bucket has ends on the
// disks of the nodes that are chosen, with a PVC for Pods; a cluster that joins then changes nothing here.
func TestSingleCluster(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 20<<20)
	s.put(folder, files)
	dir := t.TempDir()
	s.shoal("certs", "init", filepath.Join(dir, "ca"))
	issue := func(role string) string {
		to := filepath.Join(dir, filepath.FromSlash(role))
		s.shoal("certs", "issue", filepath.Join(dir, "ca"), to, role)
		return to
	}
	tracker := "https://" + s.daemon("tracker", "tracker", "--listen", "127.0.0.1:0", "--certs", issue("tracker"))
	upstreams := filepath.Join(dir, "upstreams.yaml")
	secret := filepath.Join(dir, "pull.json")
	writeFile(t, secret, dockerConfig(pushUser, pushPass))
	writeFile(t, upstreams, fmt.Sprintf("upstreams: [{name: %s, address: 'http://%s', credentials: %s}]", hangzhou, s.members[hangzhou].Addr(), secret))
	mirror := "https://" + s.daemon("mirror", "mirror", "--listen", "127.0.0.1:0", "--certs", issue("mirror"), "--dir", filepath.Join(dir, "mirror"), "--upstreams", upstreams)
	nodes := []string{"n1", "n2", "n3"}
	for i, n := range nodes {
		s.daemon("swarm", "peer", "--name", n, "--listen", fmt.Sprintf("127.0.0.%d:0", i+2), "--certs", issue("node/"+n),
			"--dir", filepath.Join(dir, n), "--tracker", tracker, "--mirror", mirror, "--no-yield")
		group := "dev"
		if n == "n3" {
			group = "other"
		}
		s.server.apply(t, map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": n, "labels": map[string]string{"nodegroup": group}}})
	}
	s.start("--tracker", tracker, "--certs", issue("controller"), "--region", "cn-hangzhou")

	// One registry, and disk: whether memory has room for all is this machine's affair.
	s.server.create(t, theSample(t, "one", func(md *v1alpha1.ModelDistribution) {
		md.Spec.Targets.Registries = md.Spec.Targets.Registries[:1]
		md.Spec.Targets.Clusters.PreloadConfig.Tier = v1alpha1.TierDisk
	}))
	md := s.server.until(t, "one", "Ready", isTrue(v1alpha1.ConditionReady))
	if md.Status.Phase != v1alpha1.PhaseReady || md.Status.Summary.Warm != "2/2" || md.Status.Summary.Clusters != "1/1" {
		t.Errorf("%+v", md.Status)
	}
	t.Logf("%s", s.server.kubectl(t, "get", "md,mr,pv,pvc"))
	for _, n := range nodes {
		tree := filepath.Join(dir, n, "models", "by-name", "default.one")
		if n == "n3" {
			if _, err := os.Stat(tree); err == nil {
				t.Error("a node that was not chosen has the model")
			}
			continue
		}
		for name, content := range files {
			if got, err := os.ReadFile(filepath.Join(tree, filepath.FromSlash(name))); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s on %s: %v", name, n, err)
			}
		}
	}
	pvc := s.server.kubectl(t, "get", "pvc", "one", "-o", "jsonpath={.spec.volumeName} {.spec.accessModes[0]}")
	pv := s.server.kubectl(t, "get", "pv", "default.one.default", "-o", "jsonpath={.spec.csi.driver} {.spec.csi.volumeAttributes.digest} {.spec.claimRef.name}")
	if pvc != "default.one.default ReadOnlyMany" || pv != "csi.shoal.dev "+md.Status.Digest+" one" {
		t.Errorf("PVC %q, PV %q", pvc, pv)
	}

	before := s.server.replica(t)
	sent := s.members[hangzhou].Received()
	member := newServer(t)
	s.join("beijing-1", "cn-beijing", member)
	s.server.until(t, "one", "a second cluster", func(md *v1alpha1.ModelDistribution) bool {
		return isTrue(v1alpha1.ConditionDistributed)(md) && len(md.Status.Clusters) == 2
	})
	if r := member.replica(t); !strings.HasSuffix(r.Spec.Reference, "@"+md.Status.Digest) {
		t.Errorf("the second cluster's replica is %s", r.Spec.Reference)
	}
	// What is wanted, and who holds it: the member may have written down anew what its nodes say.
	if after := s.server.replica(t); after.UID != before.UID || after.Generation != before.Generation || len(after.Labels) != len(before.Labels) {
		t.Errorf("the first cluster's replica was touched")
	}
	if again := s.members[hangzhou].Received(); again != sent {
		t.Errorf("%d bytes were pushed again", again-sent)
	}

	// Somebody else's claim is left alone, and told of.
	s.server.apply(t, map[string]any{
		"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": "taken", "namespace": "default"},
		"spec": map[string]any{"accessModes": []string{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]string{"storage": "1Gi"}}},
	})
	s.server.create(t, theSample(t, "taken", func(md *v1alpha1.ModelDistribution) {
		md.Spec.ModelVersion, md.Spec.Targets.Registries = "v2", md.Spec.Targets.Registries[:1]
	}))
	s.server.until(t, "taken", "the claim is somebody else's", func(md *v1alpha1.ModelDistribution) bool {
		return strings.Contains(clusterOf(md, "hub").Message, "default/taken already")
	})
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
