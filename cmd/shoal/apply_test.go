package main

import (
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"
	"unicode"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

const kindLines = "apiVersion: ack.alibabacloud.com/v1alpha1\nkind: ModelDistribution\n"

func TestReadDistributions(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       string // the objects, or the error
	}{
		{"one", kindLines + "metadata: {name: a}\nspec: {n: 3}\nstatus: {phase: Ready}", "default/a"},
		{"several, and empty ones", "---\n# nothing\n---\n" + kindLines + "metadata: {name: a}\n---\n" + kindLines + "metadata: {name: b, namespace: team}\n---\n", "default/a team/b"},
		{"JSON", `{"apiVersion": "ack.alibabacloud.com/v1alpha1", "kind": "ModelDistribution", "metadata": {"name": "a"}}`, "default/a"},
		{"nothing", "# nothing\n", "stdin: there is no ModelDistribution in it"},
		{"no name", kindLines, "stdin, document 1: give metadata.name"},
		{"another kind", "---\n" + kindLines + "metadata: {name: a}\n---\nkind: Secret\napiVersion: v1\n", `stdin, document 2: it is apiVersion "v1", kind "Secret"`},
		{"no object", "- a\n", "stdin, document 1: not a Kubernetes object"},
		{"no YAML", "a: [", "stdin, document 1: yaml: line 1"},
		{"a field twice", kindLines + "metadata: {name: a}\nkind: B", `"kind" already set`},
		{"an object twice", kindLines + "metadata: {name: a}\n---\n" + kindLines + "metadata: {name: a, namespace: default}", "default/a is there twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all, err := readDistributions(strings.NewReader(tc.text), "-", &hub{namespace: "default"})
			if err != nil {
				if !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %s", err, tc.want)
				}
				return
			}
			var got []string
			for _, o := range all {
				got = append(got, o.GetNamespace()+"/"+o.GetName())
				if o.Object["status"] != nil {
					t.Errorf("%s is sent with its status", o.GetName())
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%v, want %s", got, tc.want)
			}
		})
	}
	t.Run("another namespace than the flag's", func(t *testing.T) {
		text := kindLines + "metadata: {name: a, namespace: team}"
		_, err := readDistributions(strings.NewReader(text), "-", &hub{namespace: "default", given: true})
		if err == nil || !strings.Contains(err.Error(), "a is in namespace team, and --namespace is default") {
			t.Error(err)
		}
	})
	t.Run("no file", func(t *testing.T) {
		if _, err := readDistributions(nil, t.TempDir()+"/none.yaml", &hub{}); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

func TestWorded(t *testing.T) {
	status := func(reason metav1.StatusReason, message string, causes ...metav1.StatusCause) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Reason: reason, Message: message, Details: &metav1.StatusDetails{Causes: causes}}}
	}
	invalid := func(field, message string) metav1.StatusCause {
		return metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: message}
	}
	for _, tc := range []struct {
		name string
		err  error
		want string
	}{
		{"not of an API server", os.ErrNotExist, "file does not exist"},
		{"unreachable", &url.Error{Op: "Get", URL: "https://a", Err: errors.New("connection refused")}, "the cluster cannot be reached, is --context the right one? connection refused"},
		{"without causes", status(metav1.StatusReasonForbidden, "you may not"), "you may not"},
		{"no CRD", status(metav1.StatusReasonNotFound, "the server could not find the requested resource", metav1.StatusCause{Type: metav1.CauseTypeUnexpectedServerResponse, Message: "404 page not found"}),
			"the cluster does not know ModelDistributions: install charts/shoal/crds with kubectl apply --server-side, or choose another cluster with --context"},
		{"invalid", status(metav1.StatusReasonInvalid, "",
			invalid("spec.modelName", `Invalid value: "A: \"b\"": use lower-case letters`),
			invalid("spec.modelName", `Invalid value: "A: \"b\"": use lower-case letters`),
			invalid("spec.targets.registries[0]", `Invalid value: {"options":{"type":"ACR"}}: give options.region`),
			invalid("spec.targets.registries[1]", "Invalid value: give namespace"),
			invalid("spec.modelSource", `Invalid value: "object": give exactly one source`),
			invalid("spec.nodes", "Invalid value: 0: should be at least 1"),
			invalid("<nil>", `Invalid value: "null": some rules were not checked`),
			metav1.StatusCause{Type: metav1.CauseTypeFieldValueRequired, Field: "spec.modelVersion", Message: "Required value"}),
			"refused:" +
				"\n  spec.modelName: \"A: \\\"b\\\"\": use lower-case letters" +
				"\n  spec.targets.registries[0]: give options.region" +
				"\n  spec.targets.registries[1]: give namespace" +
				"\n  spec.modelSource: give exactly one source" +
				"\n  spec.nodes: 0: should be at least 1" +
				"\n  \"null\": some rules were not checked" +
				"\n  spec.modelVersion: Required value"},
		{"a conflict", status(metav1.StatusReasonConflict, "", metav1.StatusCause{Type: metav1.CauseTypeFieldManagerConflict, Field: ".spec.paused", Message: `conflict with "other"`}),
			"others have set the same fields to other values (--force-conflicts takes them over):\n  spec.paused: conflict with \"other\""},
		{"an unknown field", status(metav1.StatusReasonBadRequest, "failed to create typed patch object (default/a; g/v1, Kind=K): .spec.foo: field not declared in schema"),
			"refused:\n  spec.foo: there is no such field"},
		{"several", status(metav1.StatusReasonBadRequest, "failed to create typed patch object (default/a; g/v1, Kind=K): errors:\n  .spec.foo: field not declared in schema\n  .spec.a: expected string, got &value.valueUnstructured{Value:true}"),
			"refused:\n  spec.foo: there is no such field\n  spec.a: expected string, got true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := worded(tc.err).Error(); got != tc.want {
				t.Errorf("%s\nwant %s", got, tc.want)
			}
		})
	}
}

// FuzzWorded: whatever an API server writes becomes one printable line a cause.
func FuzzWorded(f *testing.F) {
	f.Add("spec.a", `Invalid value: "a": b`)
	f.Add("", "Invalid value: {")
	f.Add("<nil>", "Invalid value: 0: a\n\x1b[2J")
	f.Fuzz(func(t *testing.T, field, message string) {
		got := causeLines([]metav1.StatusCause{{Type: metav1.CauseTypeFieldValueInvalid, Field: field, Message: message}})
		if strings.Count(got, "\n") != 1 || strings.ContainsFunc(strings.TrimPrefix(got, "\n"), unicode.IsControl) {
			t.Errorf("%q", got)
		}
	})
}

func TestSettled(t *testing.T) {
	failed := []func(*v1alpha1.ModelDistribution){inPhase(v1alpha1.PhaseFailed), says("SourceResolved", "SecretMissing", "there is no Secret default/access")}
	changed := func(d *v1alpha1.ModelDistribution) { d.Generation = 2 }
	for _, tc := range []struct {
		name    string
		d       *v1alpha1.ModelDistribution
		settled bool
		err     string
	}{
		{"ready", example(6), true, ""},
		{"ready before the last change", example(6, changed), false, ""},
		{"packing", example(1), false, ""},
		{"a registry fails, and is tried again", example(2, registryIs(1, v1alpha1.RegistryFailed, 0, "down")), false, ""},
		{"failed", example(0, failed...), true, "there is no Secret default/access"},
		{"failed before the last change", example(0, append(failed, changed)...), false, ""},
		{"paused", example(1, func(d *v1alpha1.ModelDistribution) { d.Spec.Paused = true }), true, "spec.paused is true"},
		{"deleting", example(6, deletedNow()), true, "It is being deleted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			settled, err := settled(tc.d)
			if settled != tc.settled || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%t, %v; want %t, %s", settled, err, tc.settled, tc.err)
			}
		})
	}
}

func TestWaitLine(t *testing.T) {
	for want, d := range map[string]*v1alpha1.ModelDistribution{
		"default/qwen3-8b-v1: Pending": example(0),
		"default/qwen3-8b-v1: Packing, packed 50% (256MiB/s, 32s left), registries 0/2": example(1, summed("50%", "0/2", "", ""),
			packed(v1alpha1.PackingStatus{TotalBytes: 16 << 30, DoneBytes: 8 << 30, BytesPerSecond: 256 << 20})),
		"default/qwen3-8b-v1: Ready, packed 100%, registries 2/2, clusters 2/2, warm 6/6": example(6, summed("100%", "2/2", "2/2", "6/6")),
	} {
		if got := waitLine(d); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
