package controller

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/registry"
)

// packable has a source and two registries, of which the second has its Secret from the source.
func packable() *v1alpha1.ModelDistribution {
	return &v1alpha1.ModelDistribution{
		ObjectMeta: metav1.ObjectMeta{Name: "qwen", Namespace: "models", UID: "11111111-2222-3333-4444-555555555555"},
		Spec: v1alpha1.ModelDistributionSpec{
			ModelName: "qwen3-8b", ModelVersion: "v1",
			ModelSource: v1alpha1.ModelSource{OSS: &v1alpha1.OSSSource{Region: "cn-hangzhou", Bucket: "models-poc", Path: "/qwen3-8b/v1", Secret: "access"}},
			Targets: v1alpha1.Targets{Registries: []v1alpha1.RegistryTarget{
				{Registry: "a.example.com", Namespace: "ns", Secret: "push-secret"}, {Registry: "b.example.com", Namespace: "ns", Secret: "access"},
			}},
		},
	}
}

// TestPackJob compares the Job, and what it may do, with testdata/job.yaml.
func TestPackJob(t *testing.T) {
	md := packable()
	task := taskFor(md, 0, []string{"v0"}, map[string]string{"a.example.com": "http://127.0.0.1:5000"})
	task.Attempt = "one"
	job := packJob(md, task, JobConfig{
		Image: "registry.example.com/shoal:v1", NodeSelector: map[string]string{"pool": "packers"},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1")}, Limits: corev1.ResourceList{"memory": resource.MustParse("1Gi")}},
	})
	var got []byte
	for _, object := range append(packAccount(md), job) {
		raw, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		got = append(append(got, "---\n"...), raw...)
	}
	golden := filepath.Join("testdata", "job.yaml")
	if os.Getenv("SHOAL_GOLDEN") != "" { // writes it anew
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("SHOAL_GOLDEN=1 writes it anew (-want +got):\n%s", diff)
	}
}

func TestTask(t *testing.T) {
	base := taskFor(packable(), 0, nil, nil)
	for name, tc := range map[string]struct {
		task    jobTask
		same    bool
		secrets []string
	}{
		"earlier versions":   {taskFor(packable(), 0, []string{"v0"}, nil), true, []string{"access", "push-secret"}},
		"another registry":   {taskFor(packable(), 1, nil, nil), false, []string{"access"}},
		"reached elsewhere":  {taskFor(packable(), 0, nil, map[string]string{"a": "http://b"}), false, []string{"access", "push-secret"}},
		"targets do nothing": {taskFor(func() *v1alpha1.ModelDistribution { md := packable(); md.Spec.Paused = true; return md }(), 0, nil, nil), true, []string{"access", "push-secret"}},
		"another source": {taskFor(func() *v1alpha1.ModelDistribution {
			md := packable()
			md.Spec.ModelSource.OSS.Secret = ""
			return md
		}(), 0, nil, nil), false, []string{"push-secret"}},
	} {
		if same := tc.task.input() == base.input(); same != tc.same {
			t.Errorf("%s: the same packing: %t", name, same)
		}
		if diff := cmp.Diff(tc.secrets, tc.task.secrets()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestFault: plan and status see the same in an error that came from a Job.
func TestFault(t *testing.T) {
	down := &registry.Error{Registry: "a", Op: "push", Err: errors.New("down")}
	missing := &secretError{errors.New("no Secret")}
	for name, err := range map[string]error{
		"source":          &sourceError{fmt.Errorf("bucket: %w", errors.New("no"))},
		"source's secret": &sourceError{missing},
		"source registry": &sourceError{down},
		"registry":        fmt.Errorf("layer: %w", down),
		"secret":          missing,
		"other":           errors.New("disk is full"),
	} {
		raw, jsonErr := json.Marshal(packReport{Attempt: "one", Fault: faultOf(err)})
		if jsonErr != nil {
			t.Fatal(jsonErr)
		}
		report, ok, parseErr := parseReport(string(raw), "one")
		if parseErr != nil || !ok {
			t.Fatal(parseErr, ok)
		}
		got := report.Fault.err()
		if got.Error() != err.Error() || registryAtFault(got) != registryAtFault(err) {
			t.Errorf("%s: %v, the registry's %t; want %v, %t", name, got, registryAtFault(got), err, registryAtFault(err))
		}
		gotSource, one := errors.AsType[*sourceError](got)
		wantSource, other := errors.AsType[*sourceError](err)
		if one != other || one && gotSource.reason() != wantSource.reason() {
			t.Errorf("%s: %#v is another error", name, got)
		}
	}
	if _, ok, err := parseReport(`{"attempt":"two","digest":"x"}`, "one"); ok || err != nil {
		t.Errorf("the report of another attempt: %t, %v", ok, err)
	}
}

const (
	hexA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hexB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	hexC = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

// TestState: a folder survives its ConfigMap; what has no room is left out, each blob as a whole, and never an error.
func TestState(t *testing.T) {
	for name, tc := range map[string]struct {
		limit int
		want  []string
	}{
		"all":          {stateLimit, []string{"copy_" + hexA + "_sha256-" + hexB + ".json", "pack_" + hexA + "_" + hexA + ".hashes", "pack_" + hexA + "_" + hexA + ".json", "pack_" + hexA + "_" + hexB + ".hashes", "pack_" + hexA + "_" + hexB + ".json", "pack_" + hexA + "_" + hexC + ".json"}},
		"the furthest": {560, []string{"copy_" + hexA + "_sha256-" + hexB + ".json", "pack_" + hexA + "_" + hexB + ".hashes", "pack_" + hexA + "_" + hexB + ".json", "pack_" + hexA + "_" + hexC + ".json"}},
		"the other":    {300, []string{"copy_" + hexA + "_sha256-" + hexB + ".json", "pack_" + hexA + "_" + hexA + ".hashes", "pack_" + hexA + "_" + hexA + ".json", "pack_" + hexA + "_" + hexC + ".json"}},
		"nothing":      {5, []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for path, size := range map[string]int{
				"pack/" + hexA + ".lock":                     0,
				"pack/" + hexA + "/" + hexA + ".json":        20,
				"pack/" + hexA + "/" + hexA + ".hashes":      200,
				"pack/" + hexA + "/" + hexB + ".json":        20,
				"pack/" + hexA + "/" + hexB + ".hashes":      500,
				"pack/" + hexA + "/" + hexC + ".json":        10,
				"pack/" + hexA + "/" + hexC + ".json.tmp":    10,
				"copy/" + hexA + "/sha256-" + hexB + ".json": 10,
			} {
				file := filepath.Join(dir, filepath.FromSlash(path))
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, bytes.Repeat([]byte{byte(size)}, size), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			data, err := readState(dir, tc.limit)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(data)); !slices.Equal(got, tc.want) {
				t.Errorf("kept %q, want %q", got, tc.want)
			}
			again := t.TempDir()
			if err := writeState(again, data); err != nil {
				t.Fatal(err)
			}
			back, err := readState(again, tc.limit)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(data, back); diff != "" {
				t.Error(diff)
			}
		})
	}
	if data, err := readState(filepath.Join(t.TempDir(), "none"), stateLimit); err != nil || len(data) > 0 {
		t.Errorf("a folder that is not there: %v, %v", data, err)
	}
}

// FuzzState: whatever a ConfigMap has, nothing is written outside the folder, and what is written is read again.
func FuzzState(f *testing.F) {
	f.Add("pack_"+hexA+"_"+hexB+".json", []byte("{}"))
	f.Add("pack_"+hexA+"_..json", []byte("{}"))
	f.Add("pack_.._.._x.json", []byte("{}"))
	f.Add("../x", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, content []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "state")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeState(dir, map[string][]byte{key: content}); err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(outer); err != nil || len(entries) != 1 {
			t.Errorf("%q writes %v outside, %v", key, entries, err)
		}
		data, err := readState(dir, len(content))
		if err != nil {
			t.Fatal(err)
		}
		for name, got := range data {
			if name != key || !bytes.Equal(got, content) {
				t.Errorf("%q is %q", key, name)
			}
		}
	})
}

// FuzzReport: a report that is taken is of the attempt, and has numbers and a digest that make sense.
func FuzzReport(f *testing.F) {
	f.Add(`{"attempt":"one","doneBytes":1,"totalBytes":2}`)
	f.Add(`{"attempt":"one","digest":"sha256:` + hexA + `","imageBytes":-1}`)
	f.Add(`{"attempt":"one","fault":{"class":"source","message":"no"}}`)
	f.Fuzz(func(t *testing.T, raw string) {
		r, ok, err := parseReport(raw, "one")
		if err != nil || !ok {
			return
		}
		if r.Attempt != "one" || r.DoneBytes < 0 || r.ImageBytes < 0 || r.Digest != "" && len(r.Digest) < len("sha256:")+64 {
			t.Errorf("%+v", r)
		}
		if r.Fault != nil && r.Fault.err() == nil {
			t.Error("a fault that is none")
		}
	})
}

func TestMountedSecrets(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "access", "..2026"), 0o755); err != nil {
		t.Fatal(err)
	}
	// As the kubelet has them: links into a folder that it replaces as a whole.
	for name, to := range map[string]string{"..data": "..2026", "akId": "..data/akId", ".dockerconfigjson": "..data/.dockerconfigjson"} {
		if err := os.Symlink(to, filepath.Join(dir, "access", name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"akId": "AKID", ".dockerconfigjson": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, "access", "..2026", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := secretsIn(dir)
	data, err := read(t.Context(), "ns", "access")
	if err != nil || string(data["akId"]) != "AKID" || string(data[".dockerconfigjson"]) != "{}" || len(data) != 2 {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := read(t.Context(), "ns", "other"); !strings.Contains(fmt.Sprint(err), "not mounted") {
		t.Errorf("a Secret that is not mounted: %v", err)
	}
}
