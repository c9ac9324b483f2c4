package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

// readyReplica is a replica of which its cluster says that Pods can use it, with so many of its nodes on disk.
func readyReplica(onDisk, wanted int32) *shoalv1alpha1.ModelReplica {
	r := replicaOf(&v1alpha1.PreloadConfig{Tier: v1alpha1.TierDisk})
	r.Status.Nodes = v1alpha1.NodesStatus{OnDisk: onDisk, Wanted: wanted}
	apimeta.SetStatusCondition(&r.Status.Conditions, metav1.Condition{
		Type: shoalv1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: reasonDone, ObservedGeneration: r.Generation,
	})
	return r
}

func TestDescribe(t *testing.T) {
	plain := v1alpha1.ModelDistributionSpec{}
	everywhere := v1alpha1.ModelDistributionSpec{Targets: v1alpha1.Targets{Clusters: &v1alpha1.ClusterTargets{AllClusters: true}}}
	half := snapshot{Running: true, Progress: progress{Done: 25, Reused: 25, Total: 100, PerSecond: 5, Note: "sha256:r"}}
	for name, tc := range map[string]struct {
		spec  v1alpha1.ModelDistributionSpec
		o     observed
		phase v1alpha1.Phase
		// The condition that matters, as "Type=Status Reason", and a part of its message.
		condition, message string
		summary            v1alpha1.Summary
	}{
		"new": {o: of(""), phase: v1alpha1.PhasePending, condition: "SourceResolved=False InProgress", summary: v1alpha1.Summary{Registries: "0/2"}},
		"packing": {
			o: of("").with(func(o *observed) { o.packing = half }), phase: v1alpha1.PhasePacking,
			condition: "Packaged=False InProgress", message: "50B of 100B", summary: v1alpha1.Summary{Packed: "50%", Registries: "0/2"},
		},
		"the source fails": {
			o: of("").with(func(o *observed) { o.packing = badSrc }), phase: v1alpha1.PhaseFailed,
			condition: "SourceResolved=False SourceFailed", message: "no bucket", summary: v1alpha1.Summary{Registries: "0/2"},
		},
		"a Secret is missing": {
			o: of("").with(func(o *observed) {
				o.packing = snapshot{Err: &sourceError{&secretError{errors.New("there is no Secret")}}, Tries: 1}
			}), phase: v1alpha1.PhaseFailed, condition: "SourceResolved=False SecretUnusable", summary: v1alpha1.Summary{Registries: "0/2"},
		},
		"the registry fails before the source was looked at": {
			o: of("").with(func(o *observed) { o.packing = atFault }), phase: v1alpha1.PhaseFailed,
			condition: "Packaged=False Failed", message: "no answer", summary: v1alpha1.Summary{Registries: "0/2"},
		},
		"paused": {
			spec: v1alpha1.ModelDistributionSpec{Paused: true}, o: of(""), phase: v1alpha1.PhasePaused,
			condition: "Packaged=False Paused", message: "set it to false", summary: v1alpha1.Summary{Registries: "0/2"},
		},
		"refused": {
			o: of("").with(func(o *observed) { o.rival = "ns/first" }), phase: v1alpha1.PhaseFailed,
			condition: "Packaged=False Refused", message: "ns/first is the same model", summary: v1alpha1.Summary{Registries: "0/2"},
		},
		"one registry is down": {
			o: of("yes", ended, atFault), phase: v1alpha1.PhaseSyncing,
			condition: "Synced=False Failed", message: "b.example.com/ns/m:v1: registry a", summary: v1alpha1.Summary{Packed: "100%", Registries: "1/2"},
		},
		"in the registries, and no clusters are named": {
			spec: plain, o: of("yes", ended, ended), phase: v1alpha1.PhaseReady,
			condition: "Distributed=True NoClusters", summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2"},
		},
		"no cluster is known": {
			spec: everywhere, o: of("yes", ended, ended), phase: v1alpha1.PhaseDistributing,
			condition: "Distributed=False NoClusters", summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2"},
		},
		"a cluster cannot be reached": {
			spec: everywhere,
			o: of("yes", ended, ended).with(func(o *observed) {
				o.clusters = []clusterObserved{{name: "c", chosen: true, unreachable: errNowhere}}
			}),
			phase: v1alpha1.PhaseDistributing, condition: "Distributed=False Failed", message: "cannot be reached",
			summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2", Clusters: "0/1"},
		},
		"nodes on their way": {
			spec: everywhere,
			o: of("yes", ended, ended).with(func(o *observed) {
				o.clusters = []clusterObserved{{name: "c", chosen: true, replica: true, current: true, found: readyReplica(1, 3)}}
			}),
			phase: v1alpha1.PhasePreloading, condition: "Preloaded=False InProgress", message: "1 of 3 nodes",
			summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2", Clusters: "1/1", Warm: "1/3"},
		},
		"ready": {
			spec: everywhere,
			o: of("yes", ended, ended).with(func(o *observed) {
				o.clusters = []clusterObserved{{name: "c", chosen: true, replica: true, current: true, found: readyReplica(3, 3)}}
			}),
			phase: v1alpha1.PhaseReady, condition: "Ready=True Done",
			summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2", Clusters: "1/1", Warm: "3/3"},
		},
		"going": {
			o: of("yes", ended, ended).with(func(o *observed) { o.deleting = now.Add(-time.Minute) }), phase: v1alpha1.PhaseDeleting,
			condition: "Synced=True Done", summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2"},
		},
	} {
		md := &v1alpha1.ModelDistribution{ObjectMeta: metav1.ObjectMeta{Name: "m", Namespace: "ns", Generation: 7}, Spec: tc.spec}
		if tc.o.packed != "" {
			md.Status.Digest, md.Status.Revision = tc.o.packed.String(), "sha256:r"
		}
		describe(md, tc.o, &md.Status)
		kind, _, _ := strings.Cut(tc.condition, "=")
		c := apimeta.FindStatusCondition(md.Status.Conditions, kind)
		if got := fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason); got != tc.condition || !strings.Contains(c.Message, tc.message) {
			t.Errorf("%s: %s: %s", name, got, c.Message)
		}
		if md.Status.Phase != tc.phase || md.Status.Summary != tc.summary || md.Status.ObservedGeneration != 7 {
			t.Errorf("%s: phase %s, summary %+v", name, md.Status.Phase, md.Status.Summary)
		}
		if len(md.Status.Conditions) != 6 {
			t.Errorf("%s: %d conditions", name, len(md.Status.Conditions))
		}
	}
}
