package v1alpha1_test

import (
	"os"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

// The Go types have every field of the example, and both groups go into one scheme.
func TestExampleDecodes(t *testing.T) {
	raw, err := os.ReadFile("../../examples/modeldistribution.yaml")
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	both := runtime.NewSchemeBuilder(v1alpha1.AddToScheme, shoalv1alpha1.AddToScheme)
	if err := both.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if kind := shoalv1alpha1.GroupVersion().WithKind("ModelReplica"); !scheme.Recognizes(kind) {
		t.Errorf("the scheme does not know %s", kind)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	o, _, err := decoder.Decode(raw, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, ok := o.(*v1alpha1.ModelDistribution)
	if !ok {
		t.Fatalf("the example is a %T", o)
	}
	if got := d.Spec.Targets.Clusters.PreloadConfig.NodeSelector["nodegroup"]; got != "dev" {
		t.Errorf("the example's node selector is %q, want dev", got)
	}
}
