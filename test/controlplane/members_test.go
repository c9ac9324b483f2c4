package controlplane

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

// join makes member a cluster of the hub, by a token that has the least rights.
func (s *surroundings) join(name, region string, member *server) {
	s.t.Helper()
	member.kubectl(s.t, "apply", "-f", filepath.Join(examples, "member.yaml"))
	config, err := os.ReadFile(member.account(s.t, "shoal-hub"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.server.apply(s.t, map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": name, "namespace": shoalNS, "labels": map[string]string{
			"sigs.k8s.io/multicluster-runtime-kubeconfig": "true", "shoal.dev/region": region,
		}},
		"stringData": map[string]string{"kubeconfig": string(config)},
	})
}

// replica returns a cluster's only ModelReplica.
func (s *server) replica(t *testing.T) *shoalv1alpha1.ModelReplica {
	t.Helper()
	list, err := s.replicas().List(within(t), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 {
		t.Fatalf("%d ModelReplicas", len(list.Items))
	}
	var r shoalv1alpha1.ModelReplica
	decode(t, &list.Items[0], &r)
	return &r
}

// pullUser returns the user name by which a cluster pulls from host.
func (s *server) pullUser(t *testing.T, name, host string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(s.kubectl(t, "get", "secret", "-n", shoalNS, name, "-o", `jsonpath={.data.\.dockerconfigjson}`))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Auths map[string]struct{ Auth string }
	}
	if err := json.Unmarshal(raw, &config); err != nil || len(config.Auths) != 1 {
		t.Fatalf("%d registries, %v", len(config.Auths), err)
	}
	auth, err := base64.StdEncoding.DecodeString(config.Auths[host].Auth)
	if err != nil {
		t.Fatal(err)
	}
	user, _, _ := strings.Cut(string(auth), ":")
	return user
}

// says writes a replica's status as a member's controller would.
func (s *server) says(t *testing.T, status string) {
	t.Helper()
	r := s.replica(t)
	s.kubectl(t, "patch", "modelreplica", r.Name, "--subresource=status", "--type=merge", "-p", status)
}

func clusterOf(md *v1alpha1.ModelDistribution, name string) v1alpha1.ClusterStatus {
	for _, c := range md.Status.Clusters {
		if c.Name == name {
			return c
		}
	}
	return v1alpha1.ClusterStatus{}
}

// TestMembers: the sample ends as one ModelReplica in each cluster, those that join later and come back included.
func TestMembers(t *testing.T) {
	s := newSurroundings(t)
	a, b := newServer(t), newServer(t)
	files := modelFiles(1, 5<<20)
	s.put(folder, files)
	s.start("--cluster-name", "hub", "--region", "cn-hangzhou")
	s.join("beijing-1", "cn-beijing", a)
	s.server.kubectl(t, "apply", "-f", filepath.Join(examples, "modeldistribution.yaml"))
	name := "default." + sampleName
	md := s.server.until(t, sampleName, "Distributed", isTrue(v1alpha1.ConditionDistributed))

	t.Run("Replicas", func(t *testing.T) {
		for cluster, want := range map[*server]string{
			s.server: hangzhou + "/qwen/qwen3-8b@" + md.Status.Digest, a: beijing + "/test/qwen3-8b@" + md.Status.Digest,
		} {
			r := cluster.replica(t)
			if r.Name != name || r.Spec.Reference != want || r.Spec.ModelName != "qwen3-8b" || r.Spec.Bytes != md.Status.Bytes ||
				r.Spec.ClaimName != sampleName || r.Spec.PreloadConfig == nil || r.Spec.PreloadConfig.NodeSelector["nodegroup"] != "dev" {
				t.Errorf("replica %s: %+v", r.Name, r.Spec)
			}
		}
		if user := s.server.pullUser(t, name+".pull", hangzhou); user != pushUser {
			t.Errorf("the hub pulls as %s", user)
		}
		if user := a.pullUser(t, name+".pull", beijing); user == "" || user == pushUser {
			t.Errorf("beijing-1 pulls as %q", user)
		}
		if md.Status.Summary.Clusters != "0/2" || md.Status.Phase != v1alpha1.PhasePreloading {
			t.Errorf("%s clusters, phase %s", md.Status.Summary.Clusters, md.Status.Phase)
		}
	})

	t.Run("Status", func(t *testing.T) {
		const ready = `{"status":{"warm":"2/3","nodes":{"wanted":3,"onDisk":3,"inMemory":2,"failed":1,"failures":[{"node":"n3","reason":"MemoryFull","message":"no room"}]},
"conditions":[{"type":"Ready","status":"True","reason":"Done","message":"","lastTransitionTime":"2026-11-26T12:00:00Z","observedGeneration":%d}]}}`
		a.says(t, fmt.Sprintf(ready, a.replica(t).Generation))
		md := s.server.until(t, sampleName, "what the cluster says", func(md *v1alpha1.ModelDistribution) bool {
			return clusterOf(md, "beijing-1").Ready && md.Status.Summary.Warm == "2/3"
		})
		if c := clusterOf(md, "beijing-1"); c.Nodes.Failed != 1 || c.Nodes.Failures[0].Reason != "MemoryFull" {
			t.Errorf("%+v", c)
		}
	})

	t.Run("Later", func(t *testing.T) { // a cluster joins: nothing is packed or pushed again, and the others stay
		before := a.replica(t).ResourceVersion
		read, sent := s.oss.Requests(), s.members[hangzhou].Received()+s.members[beijing].Received()
		s.join("hangzhou-2", "cn-hangzhou", b)
		s.server.until(t, sampleName, "Distributed to three", func(md *v1alpha1.ModelDistribution) bool {
			return isTrue(v1alpha1.ConditionDistributed)(md) && len(md.Status.Clusters) == 3
		})
		if r := b.replica(t); r.Spec.Reference != hangzhou+"/qwen/qwen3-8b@"+md.Status.Digest {
			t.Errorf("replica %+v", r.Spec)
		}
		if after := a.replica(t).ResourceVersion; after != before {
			t.Errorf("the first cluster's replica was touched: %s, %s", before, after)
		}
		if again := s.members[hangzhou].Received() + s.members[beijing].Received(); again != sent || fmt.Sprint(s.oss.Requests()) != fmt.Sprint(read) {
			t.Errorf("%d bytes were sent again, the bucket was asked %v, before %v", again-sent, s.oss.Requests(), read)
		}
	})

	t.Run("Down", func(t *testing.T) { // a member is down: the rest goes on, and it catches up
		if err := b.control.APIServer.Kill(); err != nil {
			t.Fatal(err)
		}
		s.server.create(t, theSample(t, "second", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelVersion = "v2" }))
		md := s.server.until(t, "second", "two clusters of three", func(md *v1alpha1.ModelDistribution) bool {
			return clusterOf(md, "hub").Replica != "" && clusterOf(md, "beijing-1").Replica != "" && clusterOf(md, "hangzhou-2").Message != ""
		})
		t.Log(clusterOf(md, "hangzhou-2").Message)
		if err := b.control.APIServer.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		s.server.until(t, "second", "Distributed when it is back", isTrue(v1alpha1.ConditionDistributed))
	})

	t.Run("Chosen", func(t *testing.T) { // a cluster is not chosen any more
		s.server.kubectl(t, "patch", "md", "second", "--type=merge", "-p", `{"spec":{"targets":{"clusters":{"allClusters":null,"names":["beijing-1"]}}}}`)
		s.server.until(t, "second", "only one cluster", func(md *v1alpha1.ModelDistribution) bool {
			return len(md.Status.Clusters) == 1 && md.Status.Clusters[0].Name == "beijing-1"
		})
		if b.replica(t).Name != name { // the first version's
			t.Error("the replica is still there")
		}
	})

	t.Run("Delete", func(t *testing.T) {
		s.server.kubectl(t, "delete", "md", "second", sampleName)
		for _, cluster := range []*server{s.server, a, b} {
			list, err := cluster.replicas().List(within(t), metav1.ListOptions{})
			if err != nil || len(list.Items) > 0 {
				t.Errorf("%d replicas stay, %v", len(list.Items), err)
			}
			if secrets := cluster.kubectl(t, "get", "secret", "-n", shoalNS); strings.Contains(secrets, ".pull") {
				t.Errorf("pull Secrets stay:\n%s", secrets)
			}
		}
		if !s.tagged(hangzhou, "qwen/qwen3-8b", "v1") {
			t.Error("the image went too, though deletionPolicy is Retain")
		}
	})
}
