package controlplane

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

// sampleName is the object of examples/modeldistribution.yaml.
const sampleName = "qwen3-8b-v1"

var digest = "sha256:" + strings.Repeat("5a", 32)

func TestAPI(t *testing.T) {
	s := newServer(t)
	t.Run("Sample", func(t *testing.T) { sampleIsAccepted(t, s) })
	t.Run("Docs", func(t *testing.T) { docsAreAccepted(t, s) })
	t.Run("Specs", func(t *testing.T) { specsAreJudged(t, s) })
	t.Run("Name", func(t *testing.T) { longNameIsRefused(t, s) })
	t.Run("Packaged", func(t *testing.T) { packagedIsImmutable(t, s) })
	t.Run("Status", func(t *testing.T) { statusIsKept(t, s) })
	t.Run("Columns", func(t *testing.T) { columnsAppear(t, s) })
	t.Run("Replica", func(t *testing.T) { replicasAreJudged(t, s) })
}

func (s *server) distributions() dynamic.ResourceInterface {
	return s.Resource(v1alpha1.GroupVersion().WithResource("modeldistributions")).Namespace("default")
}

func (s *server) replicas() dynamic.ResourceInterface {
	return s.Resource(shoalv1alpha1.GroupVersion().WithResource("modelreplicas"))
}

// sampleIsAccepted: as it stands, with no field that the API server does not know, and nothing lost.
func sampleIsAccepted(t *testing.T, s *server) {
	file := filepath.Join(examples, "modeldistribution.yaml")
	s.kubectl(t, "apply", "--validate=strict", "-f", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var sample, got v1alpha1.ModelDistribution
	if err := yaml.UnmarshalStrict(raw, &sample); err != nil {
		t.Fatal(err)
	}
	decode(t, must(s.distributions().Get(within(t), sampleName, metav1.GetOptions{}))(t), &got)
	want := sample.Spec
	want.DeletionPolicy, want.Targets.Clusters.Volume = v1alpha1.DeletionRetain, v1alpha1.VolumeCSI
	want.Targets.Clusters.PreloadConfig.Tier = v1alpha1.TierMemory
	if diff := cmp.Diff(want, got.Spec); diff != "" {
		t.Errorf("the sample with its defaults (-want +got):\n%s", diff)
	}
}

// docsAreAccepted: every whole object of docs/modeldistribution.md.
func docsAreAccepted(t *testing.T, s *server) {
	page, err := os.ReadFile(filepath.Join(docs, "modeldistribution.md"))
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, block := range strings.Split(string(page), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(block, "```")
		if !strings.HasPrefix(text, "apiVersion:") {
			continue
		}
		tried++
		file := filepath.Join(t.TempDir(), fmt.Sprintf("%d.yaml", tried))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.kubectl(t, "apply", "--validate=strict", "--dry-run=server", "-f", file)
	}
	if tried < 6 { // one a source
		t.Errorf("only %d examples were found: the test looks at the wrong place", tried)
	}
}

// change is a JSON merge patch of a legal object, in YAML.
type change struct {
	name, patch string
	want        string // part of the message; "" means accepted
}

// judge tries changes of the object, one by one and without making them.
func judge(t *testing.T, objects dynamic.ResourceInterface, name string, changes []change) {
	t.Helper()
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			patch, err := yaml.YAMLToJSONStrict([]byte(c.patch))
			if err != nil {
				t.Fatal(err)
			}
			_, err = objects.Patch(within(t), name, types.MergePatchType, patch, metav1.PatchOptions{
				DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict,
			})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("%s\nis refused: %v", c.patch, err)
			case c.want != "" && err == nil:
				t.Errorf("%s\nis accepted, want: %s", c.patch, c.want)
			case c.want != "" && !strings.Contains(err.Error(), c.want):
				t.Errorf("%s\nis refused with: %v\nwant: %s", c.patch, err, c.want)
			}
		})
	}
}

func longNameIsRefused(t *testing.T, s *server) {
	o := must(s.distributions().Get(within(t), sampleName, metav1.GetOptions{}))(t)
	o = &unstructured.Unstructured{Object: map[string]any{"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "spec": o.Object["spec"]}}
	o.SetName(strings.Repeat("a", 64))
	_, err := s.distributions().Create(within(t), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil || !strings.Contains(err.Error(), "use at most 63 characters") {
		t.Errorf("a name of 64 characters: %v", err)
	}
}

// statusIsKept: the API server knows every field that the Go types have.
func statusIsKept(t *testing.T, s *server) {
	var got, want v1alpha1.ModelDistribution
	decode(t, must(s.distributions().Get(within(t), sampleName, metav1.GetOptions{}))(t), &want)
	want.Status = fullStatus()
	updated := must(s.distributions().UpdateStatus(within(t), encode(t, &want), metav1.UpdateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
	decode(t, updated, &got)
	if diff := cmp.Diff(want.Status, got.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func fullStatus() v1alpha1.ModelDistributionStatus {
	nodes := v1alpha1.NodesStatus{
		Wanted: 12, OnDisk: 12, InMemory: 11, Failed: 1,
		Failures: []v1alpha1.NodeFailure{{Node: "node-7", Reason: "MemoryTooSmall", Message: "16 GiB are missing"}},
	}
	return v1alpha1.ModelDistributionStatus{
		ObservedGeneration: 1, Phase: v1alpha1.PhasePreloading, Revision: digest, Digest: digest, Bytes: 16 << 30,
		Packing: &v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 10 << 30, ReusedBytes: 6 << 30, BytesPerSecond: 200 << 20},
		Registries: []v1alpha1.RegistryStatus{{
			Reference: "model-distribution-registry.cn-hangzhou.cr.aliyuncs.com/qwen/qwen3-8b:v1", Digest: digest,
			Bytes: 16 << 30, State: v1alpha1.RegistrySynced, Message: "as it should be",
		}},
		Clusters: []v1alpha1.ClusterStatus{{
			Name: "member-1", Replica: "default." + sampleName, Reference: "registry.example.com/qwen/qwen3-8b@" + digest, Ready: true,
			Message: "11 of 12 nodes are warm", Nodes: nodes,
		}},
		Summary: v1alpha1.Summary{Packed: "100%", Registries: "2/2", Clusters: "3/3", Warm: "11/12"},
		Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionPackaged, Status: metav1.ConditionTrue, ObservedGeneration: 1,
			LastTransitionTime: metav1.Now().Rfc3339Copy(), Reason: "Packaged", Message: "16 GiB in 9 layers",
		}},
	}
}

func columnsAppear(t *testing.T, s *server) {
	lines := strings.Split(s.kubectl(t, "get", "md", sampleName), "\n")
	var age string
	for i, want := range []string{
		"NAME MODEL VERSION PHASE PACKED REGISTRIES CLUSTERS WARM AGE",
		sampleName + " qwen3-8b v1 Preloading 100% 2/2 3/3 11/12 ",
	} {
		got := strings.Fields(lines[i])
		if i > 0 {
			got[len(got)-1], age = "", got[len(got)-1]
		}
		if strings.Join(got, " ") != want {
			t.Errorf("kubectl get md writes %q, want %q", lines[i], want)
		}
	}
	if !strings.HasSuffix(age, "s") {
		t.Errorf("an age of %q", age)
	}
}

func must(o *unstructured.Unstructured, err error) func(*testing.T) *unstructured.Unstructured {
	return func(t *testing.T) *unstructured.Unstructured {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
}

func decode(t *testing.T, o *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, into, true); err != nil {
		t.Fatal(err)
	}
}

func encode(t *testing.T, o any) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: m}
}

// replicasAreJudged: a replica's columns, status and rules.
func replicasAreJudged(t *testing.T, s *server) {
	r := &shoalv1alpha1.ModelReplica{
		TypeMeta:   metav1.TypeMeta{APIVersion: shoalv1alpha1.GroupVersion().String(), Kind: "ModelReplica"},
		ObjectMeta: metav1.ObjectMeta{Name: "default." + sampleName},
		Spec: shoalv1alpha1.ModelReplicaSpec{
			ModelName: "qwen3-8b", ModelVersion: "v1", Reference: "registry.example.com/qwen/qwen3-8b@" + digest, Bytes: 16 << 30,
			PullSecret: "pull", Volume: v1alpha1.VolumeCSI, ClaimName: sampleName, Namespaces: []v1alpha1.NamespaceName{"default", "serving"},
			PreloadConfig: &v1alpha1.PreloadConfig{
				NodeSelector: map[string]v1alpha1.LabelValue{"nodegroup": "dev"}, Tier: v1alpha1.TierDisk, Nodes: new(int32(3)), Priority: -7,
			},
			Paused: true,
		},
		Status: shoalv1alpha1.ModelReplicaStatus{
			ObservedGeneration: 1, Nodes: fullStatus().Clusters[0].Nodes, Warm: "11/12",
			Conditions: []metav1.Condition{{
				Type: shoalv1alpha1.ConditionReady, Status: metav1.ConditionFalse, ObservedGeneration: 1,
				LastTransitionTime: metav1.Now().Rfc3339Copy(), Reason: "Preloading", Message: "11 of 12 nodes are warm",
			}},
		},
	}
	wrong := r.DeepCopy()
	wrong.Spec.ClaimName = "Model"
	if _, err := s.replicas().Create(within(t), encode(t, wrong), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "give the name of the PVC") {
		t.Errorf("a claim named %s: %v", wrong.Spec.ClaimName, err)
	}
	made := must(s.replicas().Create(within(t), encode(t, r), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
	made.Object["status"] = encode(t, r).Object["status"]
	made = must(s.replicas().UpdateStatus(within(t), made, metav1.UpdateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
	var got shoalv1alpha1.ModelReplica
	decode(t, made, &got)
	if diff := cmp.Diff(r.Spec, got.Spec) + cmp.Diff(r.Status, got.Status); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	out := s.kubectl(t, "get", "mr")
	header, row, _ := strings.Cut(out, "\n")
	fields := strings.Fields(row)
	if !slices.Equal(strings.Fields(header), []string{"NAME", "MODEL", "VERSION", "VOLUME", "READY", "WARM", "AGE"}) ||
		!slices.Equal(fields[:len(fields)-1], []string{r.Name, "qwen3-8b", "v1", "CSI", "False", "11/12"}) {
		t.Errorf("kubectl get mr writes\n%s", out)
	}

	other := "sha256:" + strings.Repeat("00", 32)
	judge(t, s.replicas(), r.Name, []change{
		{"another registry", `spec: {reference: "other.example.com:5000/qwen3-8b@` + digest + `"}`, ""},
		{"another volume", `spec: {volume: ImageVolume}`, ""},
		{"another digest", `spec: {reference: "registry.example.com/qwen/qwen3-8b@` + other + `"}`, "a replica is one image under one name"},
		{"another claim", `spec: {claimName: other}`, "a replica is one image under one name"},
		{"a tag", `spec: {reference: "registry.example.com/qwen/qwen3-8b:v1"}`, "give the image by its digest"},
		{"no namespace", `spec: {namespaces: []}`, "spec.namespaces"},
		{"no size", `spec: {bytes: null}`, "spec.bytes: Required value"},
	})
}

// object is a YAML object.
func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}
