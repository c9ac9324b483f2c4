package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/registry"
)

var (
	now        = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	ended      = snapshot{Ended: true}
	running    = snapshot{Running: true}
	atFault    = snapshot{Err: &registry.Error{Registry: "a", Err: errors.New("down")}, Tries: 1}
	badSrc     = snapshot{Err: &sourceError{errors.New("no bucket")}, Tries: 5}
	lostOne    = snapshot{Err: errLost, Tries: 1}
	errNowhere = errors.New("cannot be reached")
	twoSites   = []place{
		{host: "a.example.com", repository: "ns/m", tag: "v1", region: "north"},
		{host: "b.example.com", repository: "ns/m", tag: "v1", region: "south"},
	}
)

const image = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// of makes an observed of two registries, with how far their syncs are.
func of(packed string, syncs ...snapshot) observed {
	o := observed{now: now, packed: "", places: twoSites}
	if packed != "" {
		o.packed = image
	}
	for i := range twoSites {
		r := registryObserved{}
		if i < len(syncs) {
			r.sync = syncs[i]
		}
		o.registries = append(o.registries, r)
	}
	return o
}

func (o observed) with(change func(*observed)) observed {
	change(&o)
	return o
}

func TestPlan(t *testing.T) {
	in := func(clusters ...clusterObserved) func(*observed) {
		return func(o *observed) { o.clusters = clusters }
	}
	gone := func(ago time.Duration) func(*observed) {
		return func(o *observed) { o.deleting = now.Add(-ago) }
	}
	for name, tc := range map[string]struct {
		spec v1alpha1.ModelDistributionSpec
		o    observed
		want todo
	}{
		"new: packed into the first": {o: of(""), want: todo{pack: 0}},
		"new: packed near the source": {
			o: of("").with(func(o *observed) { o.sourceRegion = "south" }), want: todo{pack: 1},
		},
		"the registry fails: the next is tried": {
			o: of("").with(func(o *observed) { o.packing = atFault }), want: todo{pack: 1},
		},
		"the source fails: no other registry is of use": {
			o: of("").with(func(o *observed) { o.packing = badSrc }), want: todo{pack: 0},
		},
		"paused before it was packed":   {spec: v1alpha1.ModelDistributionSpec{Paused: true}, o: of(""), want: todo{pack: -1}},
		"paused after it was packed":    {spec: v1alpha1.ModelDistributionSpec{Paused: true}, o: of("yes", ended), want: todo{pack: -1}},
		"refused because of another":    {o: of("").with(func(o *observed) { o.rival = "default/first" }), want: todo{pack: -1}},
		"packed: nobody has looked yet": {o: of("yes"), want: todo{pack: -1, sync: []copyTask{{to: 0}, {to: 1}}}},
		"packed: one has it, the other gets it": {
			o: of("yes", ended), want: todo{pack: -1, sync: []copyTask{{to: 0}, {to: 1, from: []int{0}}}},
		},
		"a new controller believes the status until it has looked": {
			o:    of("yes").with(func(o *observed) { o.registries[0].was = v1alpha1.RegistrySynced }),
			want: todo{pack: -1, sync: []copyTask{{to: 0}, {to: 1, from: []int{0}}}},
		},
		"one is down: it holds up nobody": {
			o:    of("yes", ended, atFault).with(in(clusterObserved{name: "c", region: "north", chosen: true})),
			want: todo{pack: -1, sync: []copyTask{{to: 0}, {to: 1, from: []int{0}}}, apply: []applyTask{{"c", 0}}},
		},
		"lost everywhere: packed again": {o: of("yes", lostOne, lostOne), want: todo{pack: 0, sync: []copyTask{{to: 0}, {to: 1}}}},
		"lost in one: copied from the other": {
			o: of("yes", lostOne, ended), want: todo{pack: -1, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1}}},
		},
		"a cluster pulls from the registry of its region": {
			o:    of("yes", ended, ended).with(in(clusterObserved{name: "c", region: "south", chosen: true})),
			want: todo{pack: -1, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1, from: []int{0}}}, apply: []applyTask{{"c", 1}}},
		},
		"a cluster waits for the registry of its region": {
			o:    of("yes", ended, running).with(in(clusterObserved{name: "c", region: "south", chosen: true})),
			want: todo{pack: -1, sync: []copyTask{{to: 0}, {to: 1, from: []int{0}}}},
		},
		"a cluster of no region takes the first": {
			o:    of("yes", running, ended).with(in(clusterObserved{name: "c", chosen: true})),
			want: todo{pack: -1, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1}}, apply: []applyTask{{"c", 1}}},
		},
		"a replica that is as it should be is left alone": {
			o: of("yes", ended, ended).with(in(clusterObserved{
				name: "c", region: "north", chosen: true, replica: true, current: true, reference: "a.example.com/ns/m@" + image,
			})),
			want: todo{pack: -1, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1, from: []int{0}}}},
		},
		"a cluster that is not chosen any more": {
			o:    of("yes", ended, ended).with(in(clusterObserved{name: "c", replica: true}, clusterObserved{name: "d"})),
			want: todo{pack: -1, remove: []string{"c"}, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1, from: []int{0}}}},
		},
		"a cluster that cannot be reached holds up nobody": {
			o: of("yes", ended, ended).with(in(
				clusterObserved{name: "c", chosen: true, unreachable: errNowhere}, clusterObserved{name: "d", chosen: true})),
			want: todo{pack: -1, sync: []copyTask{{to: 0, from: []int{1}}, {to: 1, from: []int{0}}}, apply: []applyTask{{"d", 0}}},
		},
		"deleted: nothing was done yet": {o: of("").with(gone(0)), want: todo{pack: -1, release: true}},
		"deleted: the replicas go first": {
			o:    of("yes", ended).with(gone(0)).with(in(clusterObserved{name: "c", chosen: true, replica: true})),
			want: todo{pack: -1, remove: []string{"c"}},
		},
		"deleted: a cluster cannot be reached": {
			o:    of("yes", ended).with(gone(time.Minute)).with(in(clusterObserved{name: "c", replica: true, unreachable: errNowhere})),
			want: todo{pack: -1},
		},
		"deleted: a cluster cannot be reached for long": {
			o:    of("yes", ended).with(gone(time.Hour)).with(in(clusterObserved{name: "c", replica: true, unreachable: errNowhere})),
			want: todo{pack: -1, forget: []string{"c"}, release: true},
		},
		"deleted: with the images": {
			spec: v1alpha1.ModelDistributionSpec{DeletionPolicy: v1alpha1.DeletionDelete},
			o:    of("yes", ended).with(gone(0)), want: todo{pack: -1, deleteImages: true},
		},
		"deleted: the images are gone": {
			spec: v1alpha1.ModelDistributionSpec{DeletionPolicy: v1alpha1.DeletionDelete},
			o:    of("yes", ended).with(gone(0)).with(func(o *observed) { o.imagesDeleted = true }), want: todo{pack: -1, release: true},
		},
	} {
		got := plan(&tc.spec, tc.o)
		if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(todo{}, copyTask{}, applyTask{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
