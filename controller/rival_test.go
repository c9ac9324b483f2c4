package controller

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

func TestRivalOf(t *testing.T) {
	at := func(name, path, digest string, second int) v1alpha1.ModelDistribution {
		return v1alpha1.ModelDistribution{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(time.Duration(second) * time.Second))},
			Spec:       v1alpha1.ModelDistributionSpec{ModelName: "m", ModelVersion: "v1", ModelSource: v1alpha1.ModelSource{OSS: &v1alpha1.OSSSource{Bucket: "b", Path: v1alpha1.Path(path)}}},
			Status:     v1alpha1.ModelDistributionStatus{Digest: digest},
		}
	}
	other := at("z", "other", "", 0)
	other.Spec.ModelVersion = "v2"
	for name, tc := range map[string]struct {
		all  []v1alpha1.ModelDistribution // the first is asked for
		want string
	}{
		"alone":                           {[]v1alpha1.ModelDistribution{at("a", "p", "", 0), other}, ""},
		"the later of two":                {[]v1alpha1.ModelDistribution{at("b", "q", "", 1), at("a", "p", "", 0)}, "ns/a"},
		"the earlier of two":              {[]v1alpha1.ModelDistribution{at("a", "p", "", 0), at("b", "q", "", 1)}, ""},
		"the later has the same bytes":    {[]v1alpha1.ModelDistribution{at("b", "/p/", "", 1), at("a", "p", "", 0)}, ""},
		"the later is packed":             {[]v1alpha1.ModelDistribution{at("a", "p", "", 0), at("b", "q", "sha256:1", 1)}, "ns/b"},
		"both are packed, it is too late": {[]v1alpha1.ModelDistribution{at("b", "q", "sha256:2", 1), at("a", "p", "sha256:1", 0)}, ""},
		"of the same second":              {[]v1alpha1.ModelDistribution{at("b", "q", "", 0), at("a", "p", "", 0)}, "ns/a"},
		"one that is refused refuses nobody": {
			[]v1alpha1.ModelDistribution{at("c", "p", "", 1), at("a", "p", "sha256:1", 0), at("b", "q", "", 1)}, "",
		},
	} {
		if got := rivalOf(&tc.all[0], tc.all); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
