package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller"
)

const gib = 1 << 30

// toPlan is a second version for two registries and the nodes of the group dev.
func toPlan(change ...func(*v1alpha1.ModelDistribution)) *v1alpha1.ModelDistribution {
	md := &v1alpha1.ModelDistribution{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "qwen3-8b-v2"},
		Spec: v1alpha1.ModelDistributionSpec{
			ModelName: "qwen3-8b", ModelVersion: "v2",
			ModelSource: v1alpha1.ModelSource{OSS: &v1alpha1.OSSSource{Region: "cn-hangzhou", Bucket: "models-poc", Path: "/qwen3-8b/v2"}},
			Targets: v1alpha1.Targets{Clusters: &v1alpha1.ClusterTargets{AllClusters: true, PreloadConfig: &v1alpha1.PreloadConfig{
				NodeSelector: map[string]v1alpha1.LabelValue{"nodegroup": "dev"},
			}}},
		},
	}
	for _, c := range change {
		c(md)
	}
	return md
}

// surveyed is four shards of 4 GiB and a layer of two small files. The first registry, which is passed over for the
// second because of the source's region, has nothing; the second lacks one shard.
func surveyed(change ...func(*controller.Survey)) *controller.Survey {
	s := &controller.Survey{
		Revision: "sha256:4be1", Order: []int{1, 0},
		Parts: []controller.SurveyPart{{Files: 2, Bytes: 100, Size: 4096}},
		Registries: []controller.SurveyRegistry{
			{Host: "b.example.com", Reference: "b.example.com/test/qwen3-8b:v2", Region: "cn-beijing", Has: make([]bool, 5)},
			{Host: "a.example.com", Reference: "a.example.com/qwen/qwen3-8b:v2", Region: "cn-hangzhou", Has: []bool{true, true, true, false, true}},
		},
	}
	for range 4 {
		s.Parts = append(s.Parts, controller.SurveyPart{Files: 1, Bytes: 4 * gib, Size: 4*gib + 4096})
	}
	for _, c := range change {
		c(s)
	}
	return s
}

var twoNodes = nodesFound{nodes: []nodeOutlook{{Name: "node-2", DiskBytes: 10 * gib, MemoryBytes: 8 * gib}, {Name: "node-1", DiskBytes: 100 * gib, MemoryBytes: 64 * gib}}}

func TestForesee(t *testing.T) {
	const shard, small = 4*gib + 4096, 4096
	const whole = 4*shard + small
	type moved struct {
		Read                int64
		By0, By1            string
		Send0, Send1        int64
		Mount0, Mount1      int64
		Nodes, Wanted, Fits int
		InTheWay            int
	}
	unreachable := func(i int) func(*controller.Survey) {
		return func(s *controller.Survey) { s.Registries[i].Err, s.Registries[i].Has = errors.New("no answer"), nil }
	}
	for name, tc := range map[string]struct {
		md     *v1alpha1.ModelDistribution
		survey *controller.Survey
		found  nodesFound
		want   moved
		says   string // in what is in the way, or in the notes
	}{
		"one shard is new": {
			toPlan(), surveyed(), nodesFound{},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard}, "",
		},
		"nothing is anywhere": {
			toPlan(), surveyed(func(s *controller.Survey) { s.Registries[1].Has = make([]bool, 5) }), nodesFound{},
			moved{Read: 16*gib + 100, By0: "copy", By1: "push", Send0: whole, Send1: whole}, "",
		},
		"a registry that cannot be asked gets everything": {
			toPlan(), surveyed(unreachable(0)), nodesFound{},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, InTheWay: 1}, "b.example.com/test/qwen3-8b:v2 cannot be asked: no answer",
		},
		"another is packed into where the first cannot be asked": {
			toPlan(), surveyed(unreachable(1)), nodesFound{},
			moved{Read: 16*gib + 100, By0: "push", By1: "copy", Send0: whole, Send1: whole, InTheWay: 1}, "a.example.com",
		},
		"no registry can be asked": {
			toPlan(), surveyed(unreachable(0), unreachable(1)), nodesFound{},
			moved{Read: 16*gib + 100, By0: "copy", By1: "push", Send0: whole, Send1: whole, InTheWay: 2}, "",
		},
		"two repositories of one registry": {
			toPlan(), surveyed(func(s *controller.Survey) { s.Registries[0].Host = "a.example.com" }), nodesFound{},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Mount0: whole, Send1: shard}, "",
		},
		"an image in one of the registries": {
			toPlan(), surveyed(func(s *controller.Survey) { s.SourceHost = "a.example.com" }), nodesFound{},
			moved{By0: "copy", By1: "copy", Send0: whole, Mount1: shard}, "",
		},
		"an image elsewhere": {
			toPlan(), surveyed(func(s *controller.Survey) { s.SourceHost = "c.example.com" }), nodesFound{},
			moved{Read: 4 * gib, By0: "copy", By1: "copy", Send0: whole, Send1: shard}, "",
		},
		"it is packed, and a registry was added": {
			toPlan(), surveyed(func(s *controller.Survey) {
				s.Packed, s.Registries[1].Has = true, []bool{true, true, true, true, true}
			}), nodesFound{},
			moved{By0: "copy", By1: "copy", Send0: whole}, "",
		},
		"a source that this build cannot list": {
			toPlan(), surveyed(func(s *controller.Survey) { s.Parts, s.Unlisted = nil, errors.New("use spec.modelSource.oss") }), twoNodes,
			moved{By0: "copy", By1: "push", Nodes: 2, Wanted: 2, InTheWay: 1}, "cannot be listed: use spec.modelSource.oss",
		},
		"paused, and refused": {
			toPlan(func(md *v1alpha1.ModelDistribution) { md.Spec.Paused = true }), surveyed(func(s *controller.Survey) { s.Rival = "team/first" }), nodesFound{},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, InTheWay: 2}, "team/first",
		},
		"one node of two is too small": {
			toPlan(), surveyed(), twoNodes,
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, Nodes: 2, Wanted: 2, Fits: 1, InTheWay: 1}, "only 1 of the 2 nodes that are to get it can hold it",
		},
		"one node is enough": {
			toPlan(func(md *v1alpha1.ModelDistribution) { md.Spec.Targets.Clusters.PreloadConfig.Nodes = new(int32(1)) }), surveyed(), twoNodes,
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, Nodes: 2, Wanted: 1, Fits: 1}, "",
		},
		"no memory is large enough, the disks are": {
			toPlan(), surveyed(), nodesFound{nodes: []nodeOutlook{{Name: "a", DiskBytes: whole, MemoryBytes: gib}}},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, Nodes: 1, Wanted: 1, InTheWay: 1}, "preloadConfig.tier Disk",
		},
		"a node that says nothing of itself": {
			toPlan(), surveyed(), nodesFound{nodes: []nodeOutlook{{Name: "a"}}},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, Nodes: 1, Wanted: 1, InTheWay: 1}, "only 0 of the 1 nodes that",
		},
		"the disk is enough": {
			toPlan(func(md *v1alpha1.ModelDistribution) {
				md.Spec.Targets.Clusters.PreloadConfig.Tier = v1alpha1.TierDisk
			}), surveyed(), nodesFound{nodes: []nodeOutlook{{Name: "a", DiskBytes: whole, MemoryBytes: gib}}},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard, Nodes: 1, Wanted: 1, Fits: 1}, "",
		},
		"no node gets it ahead": {
			toPlan(func(md *v1alpha1.ModelDistribution) { md.Spec.Targets.Clusters.PreloadConfig = nil }), surveyed(), twoNodes,
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard}, "",
		},
		"nodes that may not be listed": {
			toPlan(), surveyed(), nodesFound{err: errors.New("nodes is forbidden")},
			moved{Read: 4 * gib, By0: "copy", By1: "push", Send0: whole, Send1: shard}, "nodes is forbidden",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := foresee(tc.md, tc.survey, tc.found)
			got := moved{
				Read: o.Source.ReadBytes, By0: o.Registries[0].By, By1: o.Registries[1].By,
				Send0: o.Registries[0].SendBytes, Send1: o.Registries[1].SendBytes,
				Mount0: o.Registries[0].MountBytes, Mount1: o.Registries[1].MountBytes,
				Nodes: len(o.Clusters.Nodes), Wanted: o.Clusters.Wanted, InTheWay: len(o.InTheWay),
			}
			for _, n := range o.Clusters.Nodes {
				if n.Fits {
					got.Fits++
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			for _, r := range o.Registries {
				if sum := r.SendBytes + r.MountBytes + r.HasBytes; sum != o.Source.ImageBytes {
					t.Errorf("%s: %d bytes of %d", r.Reference, sum, o.Source.ImageBytes)
				}
			}
			if all := strings.Join(append(o.InTheWay, o.Notes...), "\n"); !strings.Contains(all, tc.says) {
				t.Errorf("%s\nwant: %s", all, tc.says)
			}
		})
	}
}

func TestChosenClusters(t *testing.T) {
	for _, tc := range []struct {
		targets *v1alpha1.ClusterTargets
		want    string
	}{
		{nil, "none: it ends in the registries"},
		{&v1alpha1.ClusterTargets{AllClusters: true}, "all that the hub knows, also those that join later"},
		{&v1alpha1.ClusterTargets{Names: []v1alpha1.ClusterName{"beijing", "hangzhou"}}, "beijing, hangzhou"},
		{&v1alpha1.ClusterTargets{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "production"}}}, "those that the hub knows with the labels env=production"},
	} {
		if got := chosenClusters(tc.targets); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

func TestPlanPage(t *testing.T) {
	for name, tc := range map[string]struct {
		survey *controller.Survey
		found  nodesFound
		result string
		notes  []string
	}{
		"plan-second.txt": {surveyed(), nodesFound{nodes: twoNodes.nodes[1:]}, "created", nil},
		"plan-blocked.txt": {surveyed(func(s *controller.Survey) {
			s.Registries[0].Err, s.Rival = errors.New("registry b.example.com, repository test/qwen3-8b: resolve v2: the registry fails"), "team/first"
		}), twoNodes, "configured", nil},
		"plan-unlisted.txt": {surveyed(func(s *controller.Survey) {
			s.Parts, s.Revision, s.Unlisted = nil, "", errors.New("this version of Shoal reads models from OSS and from registries")
			s.Registries[0].Has, s.Registries[1].Has = nil, nil
		}), twoNodes, "", []string{"the API server has not checked the file: it may not be patched"}},
		"plan-packed.txt": {surveyed(func(s *controller.Survey) {
			s.Packed, s.Registries[1].Has = true, []bool{true, true, true, true, true}
		}), nodesFound{}, "unchanged", nil},
	} {
		o := foresee(toPlan(), tc.survey, tc.found)
		o.Result = tc.result
		for _, n := range tc.notes {
			o.note("%s", n)
		}
		golden(t, name, o.page())
	}
}
