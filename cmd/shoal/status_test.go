package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

var update = flag.Bool("update", false, "write testdata anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func made(ago time.Duration) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) { d.CreationTimestamp = metav1.NewTime(noon.Add(-ago)) }
}

func summed(packed, registries, clusters, warm string) func(*v1alpha1.ModelDistribution) {
	return func(d *v1alpha1.ModelDistribution) {
		d.Status.Summary = v1alpha1.Summary{Packed: packed, Registries: registries, Clusters: clusters, Warm: warm}
	}
}

// bad has something of everything, and a message that tries to move the cursor.
func bad() *v1alpha1.ModelDistribution {
	return example(2, made(26*time.Minute), func(d *v1alpha1.ModelDistribution) { d.Generation, d.Status.Revision = 3, imageDigest },
		registryIs(1, v1alpha1.RegistryFailed, 4<<30, "push-secret is refused:\n\x1b[2J401 Unauthorized"),
		clusterIs(0, false, "waits for a registry", v1alpha1.NodesStatus{Wanted: 3}),
		clusterIs(1, true, "", v1alpha1.NodesStatus{Wanted: 20, OnDisk: 2, InMemory: 1, Failed: 18, Failures: []v1alpha1.NodeFailure{
			{Node: "node-7", Reason: "DiskFull", Message: "16GiB are needed and 3GiB free"}, {Node: "node-8", Reason: "MemoryTooSmall"},
		}}),
		says(v1alpha1.ConditionSynced, "RegistryFailed", "1 of 2 registries has the image"),
		summed("100%", "1/2", "1/2", "1/23"))
}

func TestStatusPage(t *testing.T) {
	for name, d := range map[string]*v1alpha1.ModelDistribution{
		"new": {ObjectMeta: metav1.ObjectMeta{Name: "new", Namespace: "default", Generation: 1, CreationTimestamp: metav1.NewTime(noon)}, Spec: example(0).Spec},
		"packing": example(1, made(90*time.Second),
			packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 2 << 30, ReusedBytes: 6 << 30, BytesPerSecond: 256 << 20}),
			says(v1alpha1.ConditionPackaged, "Packing", "2 of 9 layers are pushed")),
		"stalled": example(1, made(26*time.Hour), packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 2 << 30})),
		"ready":   example(6, made(50*24*time.Hour), packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 16 << 30}), registryIs(0, v1alpha1.RegistrySynced, 16<<30, "")),
		"bad":     bad(),
	} {
		t.Run(name, func(t *testing.T) { golden(t, "status-"+name+".txt", statusPage(d, noon)) })
	}
}

func TestStatusTable(t *testing.T) {
	all := []*v1alpha1.ModelDistribution{
		bad(),
		{ObjectMeta: metav1.ObjectMeta{Name: "new", Namespace: "team", CreationTimestamp: metav1.NewTime(noon)}, Spec: example(0).Spec},
	}
	golden(t, "status-table.txt", statusTable(all, false, noon)+"\n"+statusTable(all, true, noon))
}

func TestSourceName(t *testing.T) {
	for want, s := range map[string]v1alpha1.ModelSource{
		"oss://b":                    {OSS: &v1alpha1.OSSSource{Bucket: "b", Path: "/"}},
		"s3://b/a/c":                 {S3: &v1alpha1.S3Source{Bucket: "b", Prefix: "a/c/"}},
		"modelScope:Qwen/Q@master":   {ModelScope: &v1alpha1.ModelScopeSource{Model: "Qwen/Q", Revision: "master"}},
		"huggingFace:gpt2@main":      {HuggingFace: &v1alpha1.HuggingFaceSource{Model: "gpt2", Revision: "main"}},
		"image:r.example.com/a/b:v1": {Registry: &v1alpha1.RegistrySource{Reference: "r.example.com/a/b:v1"}},
		"pvc:models/run-42":          {PVC: &v1alpha1.PVCSource{ClaimName: "models", Path: "run-42"}},
		"-":                          {},
	} {
		if got := sourceName(&s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Where there is no terminal, only lines that changed are printed: not those that an age or a wider column moved.
func TestScreenPrintsChanges(t *testing.T) {
	var out bytes.Buffer
	s := screen{w: &out}
	d := example(2, made(0))
	show := func() string {
		t.Helper()
		out.Reset()
		shown := d.DeepCopy()
		if err := s.show(func(now time.Time) string { return statusPage(shown, now) }); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(); !strings.Contains(got, "Name:") || !strings.Contains(got, "m.cn-beijing") {
		t.Errorf("the first page:\n%s", got)
	}
	if got := show(); got != "" {
		t.Errorf("without a change:\n%s", got)
	}
	registryIs(1, v1alpha1.RegistryCopying, 4<<30, "")(d)
	if got, want := show(), "m.cn-beijing/qwen3-8b:v1   Copying  4GiB of 16GiB\n"; got != want {
		t.Errorf("after a change: %q, want %q", got, want)
	}
}

func TestScreenDrawsOnATerminal(t *testing.T) {
	var out bytes.Buffer
	s := screen{w: &out, terminal: true}
	for range 2 {
		out.Reset()
		if err := s.show(func(time.Time) string { return "page\n" }); err != nil {
			t.Fatal(err)
		}
		if want := "\x1b[H\x1b[2Jpage\n"; out.String() != want {
			t.Errorf("%q, want %q", out.String(), want)
		}
	}
}
