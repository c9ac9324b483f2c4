package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

const imageDigest = "sha256:5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a"

// steps are the conditions in their order.
var steps = []string{
	v1alpha1.ConditionSourceResolved, v1alpha1.ConditionPackaged, v1alpha1.ConditionSynced,
	v1alpha1.ConditionDistributed, v1alpha1.ConditionPreloaded, v1alpha1.ConditionReady,
}

// example is a ModelDistribution of two registries and two clusters with three nodes each, whose first n
// steps are done.
func example(n int, changes ...func(*v1alpha1.ModelDistribution)) *v1alpha1.ModelDistribution {
	registry := func(region v1alpha1.Region) v1alpha1.RegistryTarget {
		return v1alpha1.RegistryTarget{Namespace: "qwen", Options: v1alpha1.RegistryOptions{Type: v1alpha1.RegistryACR, InstanceName: "m", Region: region}}
	}
	d := &v1alpha1.ModelDistribution{
		ObjectMeta: metav1.ObjectMeta{Name: "qwen3-8b-v1", Namespace: "default", Generation: 1},
		Spec: v1alpha1.ModelDistributionSpec{
			ModelName: "qwen3-8b", ModelVersion: "v1",
			ModelSource: v1alpha1.ModelSource{OSS: &v1alpha1.OSSSource{Region: "cn-hangzhou", Bucket: "models-poc", Path: "/qwen3-8b/v1/"}},
			Targets: v1alpha1.Targets{
				Registries: []v1alpha1.RegistryTarget{registry("cn-hangzhou"), registry("cn-beijing")},
				Clusters:   &v1alpha1.ClusterTargets{AllClusters: true, PreloadConfig: &v1alpha1.PreloadConfig{Tier: v1alpha1.TierMemory}},
			},
		},
		Status: v1alpha1.ModelDistributionStatus{
			ObservedGeneration: 1,
			Registries: []v1alpha1.RegistryStatus{
				{Reference: "m.cn-hangzhou/qwen3-8b:v1", State: v1alpha1.RegistryPending},
				{Reference: "m.cn-beijing/qwen3-8b:v1", State: v1alpha1.RegistryPending},
			},
			Clusters: []v1alpha1.ClusterStatus{
				{Name: "beijing", Nodes: v1alpha1.NodesStatus{Wanted: 3}},
				{Name: "hangzhou", Nodes: v1alpha1.NodesStatus{Wanted: 3}},
			},
		},
	}
	s := &d.Status
	s.Phase = []v1alpha1.Phase{
		v1alpha1.PhasePending, v1alpha1.PhasePacking, v1alpha1.PhaseSyncing, v1alpha1.PhaseDistributing,
		v1alpha1.PhasePreloading, v1alpha1.PhaseReady, v1alpha1.PhaseReady,
	}[n]
	for i, name := range steps {
		c := metav1.Condition{Type: name, Status: metav1.ConditionFalse, Reason: "Progressing"}
		if i < n {
			c.Status, c.Reason = metav1.ConditionTrue, "Done"
		}
		s.Conditions = append(s.Conditions, c)
	}
	if n >= 2 {
		s.Digest, s.Bytes = imageDigest, 16<<30
		s.Registries[0] = v1alpha1.RegistryStatus{Reference: s.Registries[0].Reference, State: v1alpha1.RegistrySynced, Bytes: s.Bytes, Digest: imageDigest}
	}
	if n >= 3 {
		s.Registries[1] = v1alpha1.RegistryStatus{Reference: s.Registries[1].Reference, State: v1alpha1.RegistrySynced, Bytes: s.Bytes, Digest: imageDigest}
	}
	for i := range s.Clusters {
		s.Clusters[i].Ready = n >= 4
		if n >= 5 {
			s.Clusters[i].Nodes = v1alpha1.NodesStatus{Wanted: 3, OnDisk: 3, InMemory: 3}
		}
	}
	for _, change := range changes {
		change(d)
	}
	return d
}

// says gives a condition its reason and message.
func says(condition, reason, message string) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		i := slices.IndexFunc(d.Status.Conditions, func(c metav1.Condition) bool { return c.Type == condition })
		d.Status.Conditions[i].Reason, d.Status.Conditions[i].Message = reason, message
	}
}

func inPhase(p v1alpha1.Phase) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) { d.Status.Phase = p }
}

func packed(p v1alpha1.PackingStatus) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		d.Status.Packing = &p
		d.Status.Registries[0].State = v1alpha1.RegistryPushing
	}
}

func registryIs(i int, state v1alpha1.RegistryState, bytes int64, message string) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		r := &d.Status.Registries[i]
		r.State, r.Bytes, r.Message = state, bytes, message
	}
}

func clusterIs(i int, ready bool, message string, n v1alpha1.NodesStatus) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		c := &d.Status.Clusters[i]
		c.Ready, c.Message, c.Nodes = ready, message, n
	}
}

func deletedNow(finalizers ...string) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		d.DeletionTimestamp, d.Finalizers = &metav1.Time{Time: time.Unix(1, 0)}, finalizers
		d.Status.Phase = v1alpha1.PhaseDeleting
	}
}

func TestExplain(t *testing.T) {
	full := v1alpha1.NodesStatus{Wanted: 3, OnDisk: 3, InMemory: 3}
	const unreachable = "the API server has not answered for 5 minutes: check its kubeconfig Secret"
	for _, tc := range []struct {
		name  string
		d     *v1alpha1.ModelDistribution
		state findingState
		says  string
		do    string   // part of it; "" is nothing
		chain []string // kind and name
	}{
		{
			"ready", example(6), findingReady,
			"Nothing holds it back: 2 registries and 2 clusters have it, and 6 of 6 nodes hold it in memory.", "", nil,
		},
		{
			"ready without clusters", example(6, func(d *v1alpha1.ModelDistribution) {
				d.Spec.Targets.Clusters, d.Status.Clusters = nil, nil
			}), findingReady, "Nothing holds it back: 2 registries have it.", "", nil,
		},
		{
			"paused", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30}), func(d *v1alpha1.ModelDistribution) { d.Spec.Paused = true }), findingPaused,
			"spec.paused is true: nothing new is begun, and what is there stays and is served.", `-p '{"spec":{"paused":false}}'`,
			[]string{"condition Packaged", "condition Synced", "condition Distributed", "condition Preloaded"},
		},
		{
			"no controller", &v1alpha1.ModelDistribution{}, findingWaiting,
			"No controller has looked at it yet.", "whether the controller runs", nil,
		},
		{
			"ready, and changed since", example(6, func(d *v1alpha1.ModelDistribution) { d.Generation = 2 }), findingWaiting,
			"The controller has not looked at the last change yet: its status is about generation 1 of the spec, which is at 2.", "whether the controller runs", nil,
		},
		{
			"refused duplicate", example(1, inPhase(v1alpha1.PhaseFailed), says("Packaged", "AlreadyPackaged", "default/first is qwen3-8b:v1 too, with other bytes: give this one another modelVersion")),
			findingHeld, "It cannot be packed (AlreadyPackaged): default/first is qwen3-8b:v1 too, with other bytes: give this one another modelVersion.", "",
			[]string{"condition Packaged"},
		},
		{
			"no secret", example(0, inPhase(v1alpha1.PhaseFailed), says("SourceResolved", "SecretMissing", "Secret default/access has none of akId, AccessKeyId")),
			findingHeld, "The source cannot be used (SecretMissing): Secret default/access has none of akId, AccessKeyId.", "", []string{"condition SourceResolved"},
		},
		{
			"resolving", example(0), findingWaiting, "It waits until oss://models-poc/qwen3-8b/v1 is looked through.", "", []string{"condition SourceResolved"},
		},
		{
			"resolving, with a message", example(0, says("SourceResolved", "Listing", "1200 files so far")), findingWaiting,
			"The source is not resolved yet: 1200 files so far.", "", []string{"condition SourceResolved"},
		},
		{
			"packing begins", example(1, says("Packaged", "Queued", "the packer's Pod is pending: 0/3 nodes are available")), findingWaiting,
			"It waits until the packing begins: the packer's Pod is pending: 0/3 nodes are available.", "", []string{"condition Packaged"},
		},
		{
			"packing", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 2 << 30, ReusedBytes: 6 << 30, BytesPerSecond: 256 << 20})), findingWaiting,
			"It is being packed: 50%, 8GiB of 16GiB. At the present 256MiB/s it takes 32s more.", "", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"packing slowly", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 1 << 30, BytesPerSecond: 1 << 20})), findingWaiting,
			"It is being packed: 6%, 1GiB of 16GiB. At the present 1MiB/s it takes 4h16m more.", "oss-cn-hangzhou-internal.aliyuncs.com", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"packing slowly from inside", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 1 << 30, BytesPerSecond: 1 << 20}), func(d *v1alpha1.ModelDistribution) {
				d.Spec.ModelSource.OSS.Endpoint = "oss-cn-hangzhou-internal.aliyuncs.com"
			}), findingWaiting,
			"It is being packed: 6%, 1GiB of 16GiB. At the present 1MiB/s it takes 4h16m more.", "options.vpc: true", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"packing stands still", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 8 << 30}), says("Packaged", "Packing", "OSS has answered 503 for 2 minutes")), findingHeld,
			"The packing stands still at 50%, 8GiB of 16GiB: OSS has answered 503 for 2 minutes.", "kubectl get events -n default", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"packing has sent nothing yet", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, ReusedBytes: 8 << 30})), findingWaiting,
			"The packing begins, and nothing was sent yet.", "kubectl get events -n default", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"all is packed", example(1, packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 16 << 30})), findingWaiting,
			"All files are packed, and the image is being completed.", "", []string{"condition Packaged", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"the first registry fails", example(1, registryIs(0, v1alpha1.RegistryFailed, 0, "push-secret is refused (401): renew it")), findingHeld,
			"Registry m.cn-hangzhou/qwen3-8b:v1 does not take the image: push-secret is refused (401): renew it. 1 other registry goes on.", "",
			[]string{"condition Packaged", "condition Synced", "registry m.cn-hangzhou/qwen3-8b:v1"},
		},
		{
			"a registry fails, the others go on, and clusters too", example(2, registryIs(1, v1alpha1.RegistryFailed, 1<<30, "no route to host"),
				clusterIs(1, true, "", full)), findingHeld,
			"Registry m.cn-beijing/qwen3-8b:v1 does not take the image: no route to host. 1 other registry goes on.", "",
			[]string{"condition Synced", "registry m.cn-beijing/qwen3-8b:v1"},
		},
		{
			"a registry gets its copy", example(2, registryIs(1, v1alpha1.RegistryCopying, 4<<30, "")), findingWaiting,
			"Registry m.cn-beijing/qwen3-8b:v1 is getting the image: it has 4GiB of 16GiB.", "", []string{"condition Synced", "registry m.cn-beijing/qwen3-8b:v1"},
		},
		{
			"a registry waits", example(2), findingWaiting,
			"Registry m.cn-beijing/qwen3-8b:v1 is still to get the image.", "", []string{"condition Synced", "registry m.cn-beijing/qwen3-8b:v1"},
		},
		{
			"a cluster waits for its registry", example(2, registryIs(1, v1alpha1.RegistryCopying, 4<<30, ""), clusterIs(0, false, "waits for m.cn-beijing", v1alpha1.NodesStatus{Wanted: 3})), findingWaiting,
			"Registry m.cn-beijing/qwen3-8b:v1 is getting the image: it has 4GiB of 16GiB.", "", []string{"condition Synced", "registry m.cn-beijing/qwen3-8b:v1"},
		},
		{
			"a cluster is unreachable", example(3, clusterIs(0, false, unreachable, v1alpha1.NodesStatus{Wanted: 3}), clusterIs(1, true, "", full)), findingHeld,
			"Cluster beijing is not ready: " + unreachable + ". 1 other cluster goes on.", "", []string{"condition Distributed", "cluster beijing"},
		},
		{
			"clusters make volumes", example(3), findingWaiting,
			"It waits for beijing, hangzhou to make volumes of it.", "", []string{"condition Distributed", "cluster beijing", "cluster hangzhou"},
		},
		{
			"nodes fail", example(4, clusterIs(1, true, "", v1alpha1.NodesStatus{Wanted: 3, OnDisk: 1, InMemory: 1, Failed: 2, Failures: []v1alpha1.NodeFailure{
				{Node: "node-7", Reason: "DiskFull", Message: "16GiB are needed and 3GiB free: free some, or leave the node out"}, {Node: "node-8", Reason: "DiskFull"},
			}})), findingHeld,
			"2 of 6 nodes cannot get the model: node-7 has DiskFull: 16GiB are needed and 3GiB free: free some, or leave the node out. 1 other node fails too.", "",
			[]string{"condition Preloaded", "cluster hangzhou", "node node-7", "node node-8"},
		},
		{
			"a node fails and says little", example(4, clusterIs(1, true, "", v1alpha1.NodesStatus{Wanted: 3, Failed: 1})), findingHeld,
			"1 of 6 nodes cannot get the model.", "kubectl get modelreplica", []string{"condition Preloaded", "cluster hangzhou"},
		},
		{
			"nodes are getting it", example(4, clusterIs(1, true, "", full)), findingWaiting,
			"3 of 6 nodes hold it in memory, and it waits for the others.", "", []string{"condition Preloaded", "cluster beijing"},
		},
		{
			"nodes are getting it on disk", example(4, clusterIs(1, true, "", v1alpha1.NodesStatus{Wanted: 3, OnDisk: 2}), func(d *v1alpha1.ModelDistribution) {
				d.Spec.Targets.Clusters.PreloadConfig.Tier = v1alpha1.TierDisk
			}), findingWaiting,
			"2 of 6 nodes hold it on disk, and it waits for the others.", "", []string{"condition Preloaded", "cluster beijing", "cluster hangzhou"},
		},
		{
			"failed, with a condition alone", example(3, inPhase(v1alpha1.PhaseFailed), says("Distributed", "NoClusters", "no cluster has the label env=prod")), findingHeld,
			"It has failed: Distributed is False NoClusters: no cluster has the label env=prod.", "", []string{"condition Distributed", "condition Preloaded"},
		},
		{
			"deleting, and a cluster is unreachable", example(6, deletedNow("shoal.dev/replicas"), clusterIs(0, false, unreachable, full)), findingDeleting,
			"It is being deleted, but cluster beijing still has it: " + unreachable + ". 1 other cluster has it too.", "", []string{"cluster beijing", "cluster hangzhou"},
		},
		{
			"deleting", example(6, deletedNow("shoal.dev/replicas")), findingDeleting,
			"It is being deleted, and waits for beijing, hangzhou to give it up.", "", []string{"cluster beijing", "cluster hangzhou"},
		},
		{
			"deleting images", example(6, deletedNow("shoal.dev/images"), registryIs(1, v1alpha1.RegistryFailed, 0, "deletes are not allowed (405)"), func(d *v1alpha1.ModelDistribution) {
				d.Spec.DeletionPolicy, d.Status.Clusters = v1alpha1.DeletionDelete, nil
			}), findingDeleting,
			"It is being deleted, but the image in m.cn-beijing/qwen3-8b:v1 is not: deletes are not allowed (405).", "spec.deletionPolicy to Retain", []string{"registry m.cn-beijing/qwen3-8b:v1"},
		},
		{
			"deleting, and something is left to do", example(6, deletedNow("shoal.dev/replicas"), func(d *v1alpha1.ModelDistribution) { d.Status.Clusters = nil }), findingDeleting,
			"It is being deleted, and waits for what is to be done first: finalizers shoal.dev/replicas.", "whether the controller runs", nil,
		},
		{
			"all is done but Ready", example(5), findingWaiting,
			"It is Ready, and its status does not say what it waits for.", "controller's log", nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := explain(tc.d)
			if f.State != tc.state || f.Says != tc.says {
				t.Errorf("%s: %s\nwant %s: %s", f.State, f.Says, tc.state, tc.says)
			}
			if (tc.do == "") != (f.Do == "") || !strings.Contains(f.Do, tc.do) {
				t.Errorf("to do: %q, want %q in it", f.Do, tc.do)
			}
			var chain []string
			for _, l := range f.Chain {
				chain = append(chain, l.Kind+" "+l.Name)
			}
			if diff := cmp.Diff(tc.chain, chain); diff != "" {
				t.Errorf("chain (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindingText(t *testing.T) {
	var text strings.Builder
	if err := explain(bad()).write(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "explain-stale.txt", text.String())
	text.Reset()
	d := bad()
	d.Generation = 1
	if err := explain(d).write(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "explain-registry.txt", text.String())
}
