package controller

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

// observed is all that is known of one ModelDistribution beside its spec.
type observed struct {
	now time.Time
	// deleting is since when the object is to go, zero where it is to stay.
	deleting time.Time
	// rival is the earlier object, as namespace/name, that has the same model and version and another source; "" for
	// none.
	rival string
	// packed is what the status says: "" before the image was whole in one registry.
	packed digest.Digest
	// packing is the effort of packing, or of resolving an image that is there.
	packing snapshot
	// places are those of the spec, registries how far each of them is.
	places     []place
	registries []registryObserved
	// memory says that a node holds the model only when it is in its memory.
	memory bool
	// sourceRegion is where the source lies.
	sourceRegion string
	// pulls are the Secrets by which clusters pull from each of the places, as far as they were asked for.
	pulls map[int]pullSecret
	// imagesDeleted says that the tags are gone.
	imagesDeleted bool
	// clusters are the chosen ones, and those that still have a replica of this object.
	clusters []clusterObserved
}

// registryObserved is how far one registry is.
type registryObserved struct {
	// was is the state in the status.
	was v1alpha1.RegistryState
	// sync is the effort of giving the registry the image.
	sync snapshot
}

// synced reports whether the registry had the image when it was last looked at.
func (r registryObserved) synced() bool {
	switch {
	case r.sync.Ended:
		return true
	case r.sync.Err != nil || r.sync.Tries > 0:
		return false
	}
	return r.was == v1alpha1.RegistrySynced // a controller that has just begun
}

// clusterObserved is how far one cluster is.
type clusterObserved struct {
	name, region string
	// chosen says that the spec wants the model there.
	chosen bool
	// unreachable is why the hub cannot talk to it, nil where it can.
	unreachable error
	// failed is why the replica could not be made, changed or removed the last time.
	failed error
	// found is the replica as it was last heard of, reference the image that it names.
	found     *shoalv1alpha1.ModelReplica
	reference string
	// replica says that it has a replica of this object, current that it is as the spec wants it now.
	replica, current bool
}

// todo is what is to be done next. It is the whole of it: what runs and is not in it is not wanted any more.
type todo struct {
	// pack is the index of the registry that the model is packed into, -1 for none.
	pack int
	// sync are the registries that get the image, each from the first of the others that works.
	sync []copyTask
	// apply are the clusters whose replica is made or changed, with the registry that each pulls from.
	apply []applyTask
	// remove are the clusters that lose their replica.
	remove []string
	// forget are clusters that cannot be reached and are given up.
	forget []string
	// deleteImages says that the tags are to be deleted.
	deleteImages bool
	// release says that nothing is left to do for an object that is to go.
	release bool
}

type copyTask struct {
	to int
	// from are the registries that have the image, in the order in which they are tried; a registry that has it itself
	// is only looked at.
	from []int
}

type applyTask struct {
	cluster string
	// registry is the index of the registry that the cluster pulls from.
	registry int
}

// giveUpAfter is how long an object that is to go waits for a cluster that cannot be reached.
const giveUpAfter = 10 * time.Minute

// plan decides what is to be done for an object, from what is wanted and what is. It looks at nothing else.
func plan(spec *v1alpha1.ModelDistributionSpec, o observed) todo {
	if !o.deleting.IsZero() {
		return planDeletion(spec, o)
	}
	do := todo{pack: -1}
	if o.rival != "" {
		return do
	}
	for _, c := range o.clusters {
		if !c.chosen && c.replica && c.unreachable == nil {
			do.remove = append(do.remove, c.name)
		}
	}
	if o.packed == "" {
		if !spec.Paused {
			do.pack = packInto(o)
		}
		return do
	}
	if spec.Paused {
		return do
	}
	have := haveImage(o)
	if lost(o) {
		do.pack = packInto(o) // the same bytes have the same digest
	}
	for i := range o.registries {
		from := slices.DeleteFunc(slices.Clone(have), func(k int) bool { return k == i })
		do.sync = append(do.sync, copyTask{to: i, from: rotate(from, o.registries[i].sync.Tries)})
	}
	for _, c := range o.clusters {
		if !c.chosen || c.unreachable != nil {
			continue
		}
		// A cluster starts when its registry is ready, and waits for no other.
		if i := pullFrom(o, c.region, have); i >= 0 && (!c.current || c.reference != o.places[i].pinned(o.packed)) {
			do.apply = append(do.apply, applyTask{c.name, i})
		}
	}
	return do
}

// packInto chooses the registry that the model is packed into: one of the source's region, else the first. One that
// fails is passed over for the next.
func packInto(o observed) int {
	order := packOrder(o)
	if len(order) == 0 {
		return -1
	}
	tries := 0
	if registryAtFault(o.packing.Err) {
		tries = o.packing.Tries
	}
	return order[tries%len(order)]
}

// packOrder has the registries in the order in which they are tried for the packing.
func packOrder(o observed) []int {
	order := make([]int, len(o.places))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(o.distance(a, o.sourceRegion), o.distance(b, o.sourceRegion))
	})
	return order
}

// distance is 0 for a registry of region, 1 for another.
func (o observed) distance(i int, region string) int {
	if region != "" && o.places[i].region == region {
		return 0
	}
	return 1
}

// lost reports whether the image is in no registry any more.
func lost(o observed) bool {
	for _, r := range o.registries {
		if !errors.Is(r.sync.Err, errLost) {
			return false
		}
	}
	return len(o.registries) > 0
}

// haveImage are the registries that have the image, in the spec's order.
func haveImage(o observed) []int {
	var have []int
	for i, r := range o.registries {
		if r.synced() {
			have = append(have, i)
		}
	}
	return have
}

// rotate begins with another of the list after each failure: it may have been the source's.
func rotate(list []int, tries int) []int {
	if len(list) == 0 {
		return nil
	}
	k := tries % len(list)
	return append(slices.Clone(list[k:]), list[:k]...)
}

// pullFrom is the registry that a cluster of region pulls from: that of its region, even before it has the image,
// else the first that has it; -1 while that is none.
func pullFrom(o observed, region string, have []int) int {
	for i := range o.places {
		if o.distance(i, region) == 0 {
			if slices.Contains(have, i) {
				return i
			}
			return -1
		}
	}
	if len(have) == 0 {
		return -1
	}
	return have[0]
}

// planDeletion removes the replicas, then the images where that is wanted, and then lets the object go. A cluster that
// cannot be reached holds it up for a while and no longer.
func planDeletion(spec *v1alpha1.ModelDistributionSpec, o observed) todo {
	do := todo{pack: -1}
	waits := false
	for _, c := range o.clusters {
		switch {
		case !c.replica:
		case c.unreachable == nil:
			do.remove = append(do.remove, c.name)
		case o.now.Sub(o.deleting) > giveUpAfter:
			do.forget = append(do.forget, c.name)
		default:
			waits = true
		}
	}
	if len(do.remove) > 0 || waits {
		return do
	}
	if spec.DeletionPolicy == v1alpha1.DeletionDelete && o.packed != "" && !o.imagesDeleted {
		do.deleteImages = true
		return do
	}
	do.release = true
	return do
}
