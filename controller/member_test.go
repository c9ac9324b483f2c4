package controller

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
	tracker "github.com/shoal-project/shoal/tracker/client"
)

func replicaOf(preload *v1alpha1.PreloadConfig) *shoalv1alpha1.ModelReplica {
	return &shoalv1alpha1.ModelReplica{
		ObjectMeta: metav1.ObjectMeta{Name: "default.m", Generation: 3},
		Spec: shoalv1alpha1.ModelReplicaSpec{
			Reference: "reg.example.com/ns/m@" + image, Volume: v1alpha1.VolumeCSI, ClaimName: "m", Bytes: 100,
			Namespaces: []v1alpha1.NamespaceName{"default"}, PreloadConfig: preload,
		},
	}
}

// says is the report of a node about the replica.
func says(node, state string, resident int64, why string) tracker.Progress {
	return tracker.Progress{Node: node, Models: []tracker.ModelProgress{
		{Name: "default.m", Reference: "reg.example.com/ns/m@" + image, State: state, Total: 100, ResidentBytes: resident, Error: why},
	}}
}

func TestWantedNodes(t *testing.T) {
	node := func(name, group string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"group": group}}}
	}
	nodes := []corev1.Node{node("c", "gpu"), node("a", "gpu"), node("b", "cpu"), node("d", "gpu")}
	reports := []tracker.Progress{says("a", stateReady, 0, ""), {Node: "b"}, {Node: "elsewhere"}}
	two := int32(2)
	gpu := map[string]v1alpha1.LabelValue{"group": "gpu"}
	paused := replicaOf(&v1alpha1.PreloadConfig{NodeSelector: gpu})
	paused.Spec.Paused = true
	for name, tc := range map[string]struct {
		replica *shoalv1alpha1.ModelReplica
		want    []string
	}{
		"nothing is preloaded":                 {replicaOf(nil), nil},
		"by labels":                            {replicaOf(&v1alpha1.PreloadConfig{NodeSelector: gpu}), []string{"a", "c", "d"}},
		"without labels: those that run Shoal": {replicaOf(&v1alpha1.PreloadConfig{}), []string{"a", "b"}},
		"so many of them":                      {replicaOf(&v1alpha1.PreloadConfig{NodeSelector: gpu, Nodes: &two}), []string{"a", "c"}},
		"paused: what is there stays":          {paused, []string{"a"}},
	} {
		got := wantedNodes(tc.replica, nodes, reports)
		if name == "so many of them" {
			if len(got) != 2 {
				t.Errorf("%s: %v", name, got)
			}
			continue
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	// To the tracker, a model without nodes would be for all of them.
	set := desiredSet([]shoalv1alpha1.ModelReplica{*replicaOf(nil)}, map[string][]string{})
	if set.Models == nil || len(set.Models) != 0 {
		t.Errorf("%+v", set)
	}
}

func TestDescribeReplica(t *testing.T) {
	memory := &v1alpha1.PreloadConfig{Tier: v1alpha1.TierMemory}
	disk := &v1alpha1.PreloadConfig{Tier: v1alpha1.TierDisk}
	for name, tc := range map[string]struct {
		preload          *v1alpha1.PreloadConfig
		wanted           []string
		reports          []tracker.Progress
		volumes, tracker error
		warm, reason     string // of Preloaded
		ready            bool
	}{
		"nothing is preloaded": {warm: "", reason: "NoneWanted", ready: true},
		"no node is chosen":    {preload: disk, reason: "NoNodes"},
		"on disk is enough":    {preload: disk, wanted: []string{"a"}, reports: []tracker.Progress{says("a", stateReady, -1, "")}, warm: "1/1", reason: "Done", ready: true},
		"on disk is not in memory": {
			preload: memory, wanted: []string{"a"}, reports: []tracker.Progress{says("a", stateReady, 50, "")}, warm: "0/1", reason: "InProgress",
		},
		"in memory":    {preload: memory, wanted: []string{"a"}, reports: []tracker.Progress{says("a", stateReady, 99, "")}, warm: "1/1", reason: "Done", ready: true},
		"on its way":   {preload: disk, wanted: []string{"a", "b"}, reports: []tracker.Progress{says("a", stateReady, 0, ""), says("b", "Fetching", 0, "")}, warm: "1/2", reason: "InProgress"},
		"a node fails": {preload: disk, wanted: []string{"a", "b"}, reports: []tracker.Progress{says("a", stateReady, 0, ""), says("b", stateFailed, 0, "no room")}, warm: "1/2", reason: "Failed"},
		"another model's report": {
			preload: disk, wanted: []string{"a"}, reports: []tracker.Progress{{Node: "a", Models: []tracker.ModelProgress{{Name: "default.m", Reference: "old", State: stateReady}}}},
			warm: "0/1", reason: "InProgress",
		},
		"no volume":           {volumes: errors.New("this cluster has no namespace x: create it"), reason: "NoneWanted"},
		"the tracker is down": {preload: disk, wanted: []string{"a"}, tracker: errors.New("down"), reason: "TrackerUnreachable"},
	} {
		r := replicaOf(tc.preload)
		describeReplica(r, tc.wanted, tc.reports, tc.volumes, tc.tracker)
		if c := apimeta.FindStatusCondition(r.Status.Conditions, shoalv1alpha1.ConditionPreloaded); c.Reason != tc.reason || r.Status.Warm != tc.warm {
			t.Errorf("%s: %s (%s), warm %q", name, c.Reason, c.Message, r.Status.Warm)
		}
		if ready := apimeta.IsStatusConditionTrue(r.Status.Conditions, shoalv1alpha1.ConditionReady); ready != tc.ready || r.Status.ObservedGeneration != 3 {
			t.Errorf("%s: ready %v", name, ready)
		}
	}
}
