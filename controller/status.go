package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/go-units"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// describe writes down in status what is known of md. It looks at nothing else.
func describe(md *v1alpha1.ModelDistribution, o observed, status *v1alpha1.ModelDistributionStatus) {
	status.ObservedGeneration = md.Generation
	describePacking(o, status)
	describeRegistries(o, status)
	describeClusters(o, status)
	w := words{md: md, o: o, status: status}
	w.source()
	w.packaged()
	w.synced()
	w.distributed()
	w.preloaded()
	w.ready()
	status.Phase = phase(md, o, status)
	status.Summary = summarize(o, status)
}

func describePacking(o observed, status *v1alpha1.ModelDistributionStatus) {
	p := o.packing.Progress
	if p.Note != "" {
		status.Revision = p.Note
	}
	if p.Total == 0 {
		if status.Packing != nil {
			status.Packing.BytesPerSecond = 0
		}
		return
	}
	status.Packing = &v1alpha1.PackingStatus{TotalBytes: p.Total, DoneBytes: p.Done, ReusedBytes: p.Reused, BytesPerSecond: p.PerSecond}
}

func describeRegistries(o observed, status *v1alpha1.ModelDistributionStatus) {
	before := status.Registries
	status.Registries = nil
	for i, p := range o.places {
		r := v1alpha1.RegistryStatus{Reference: p.reference(), State: v1alpha1.RegistryPending}
		if k := slices.IndexFunc(before, func(b v1alpha1.RegistryStatus) bool { return b.Reference == r.Reference }); k >= 0 {
			r = before[k]
		}
		sync := o.registries[i].sync
		switch {
		case o.rival != "" || o.packed == "":
			r.Digest, r.Bytes, r.Message, r.State = "", 0, "", v1alpha1.RegistryPending
			if o.packing.Running && o.packing.Progress.Total > 0 && packInto(o) == i {
				r.State = v1alpha1.RegistryPushing
				r.Bytes = o.packing.Progress.Done + o.packing.Progress.Reused
			}
		case sync.Running && sync.Progress.Total > 0:
			r.State, r.Message, r.Bytes = v1alpha1.RegistryCopying, "", sync.Progress.Done+sync.Progress.Reused
		case sync.Ended:
			r.State, r.Message, r.Digest, r.Bytes = v1alpha1.RegistrySynced, "", o.packed.String(), status.Bytes
		case sync.Err != nil:
			r.State, r.Message = v1alpha1.RegistryFailed, oneLine(sync.Err)
		}
		status.Registries = append(status.Registries, r)
	}
}

// words writes the conditions.
type words struct {
	md     *v1alpha1.ModelDistribution
	o      observed
	status *v1alpha1.ModelDistributionStatus
}

func (w words) set(kind string, ok bool, reason, message string) {
	state := metav1.ConditionFalse
	if ok {
		state = metav1.ConditionTrue
	}
	apimeta.SetStatusCondition(&w.status.Conditions, metav1.Condition{
		Type: kind, Status: state, Reason: reason, Message: message, ObservedGeneration: w.md.Generation,
	})
}

func (w words) is(kind string) bool { return apimeta.IsStatusConditionTrue(w.status.Conditions, kind) }

// Reasons of conditions that are not true.
const (
	reasonRefused    = "Refused"
	reasonWaiting    = "Waiting"
	reasonRunning    = "InProgress"
	reasonFailed     = "Failed"
	reasonPaused     = "Paused"
	reasonDone       = "Done"
	reasonNotChosen  = "NoClusters"
	reasonIncomplete = "Incomplete"
)

// refusal is why nothing is done for an object that another one has forestalled.
func (w words) refusal() string {
	return fmt.Sprintf("%s is the same model and version from another source, and was there first: give this one another modelVersion, or delete one of the two", w.o.rival)
}

func (w words) source() {
	kind := v1alpha1.ConditionSourceResolved
	var failed *sourceError
	switch {
	case w.o.rival != "":
		w.set(kind, false, reasonRefused, w.refusal())
	case w.status.Revision != "" && (w.o.packed != "" || !errors.As(w.o.packing.Err, &failed)):
		w.set(kind, true, reasonDone, "the source's revision is "+w.status.Revision)
	case errors.As(w.o.packing.Err, &failed):
		w.set(kind, false, failed.reason(), oneLine(failed))
	case w.md.Spec.Paused:
		w.set(kind, false, reasonPaused, "spec.paused is true: set it to false to go on")
	case w.o.packing.Err != nil:
		w.set(kind, false, reasonWaiting, "the source was not looked at yet: "+oneLine(w.o.packing.Err))
	default:
		w.set(kind, false, reasonRunning, "the source is being looked at")
	}
}

func (w words) packaged() {
	kind := v1alpha1.ConditionPackaged
	p := w.o.packing
	switch {
	case w.o.rival != "":
		w.set(kind, false, reasonRefused, w.refusal())
	case w.o.packed != "":
		w.set(kind, true, reasonDone, "the image is "+w.o.packed.String())
	case w.md.Spec.Paused:
		w.set(kind, false, reasonPaused, "spec.paused is true: set it to false to go on")
	case p.Running && p.Progress.Total > 0:
		w.set(kind, false, reasonRunning, "the model is being packed: "+share(p.Progress.Done+p.Progress.Reused, p.Progress.Total))
	case p.Err != nil:
		w.set(kind, false, reasonFailed, oneLine(p.Err)+again(p))
	default:
		w.set(kind, false, reasonWaiting, "the packing has not begun")
	}
}

func (w words) synced() {
	kind := v1alpha1.ConditionSynced
	var failed, rest []string
	for _, r := range w.status.Registries {
		switch r.State {
		case v1alpha1.RegistrySynced:
		case v1alpha1.RegistryFailed:
			failed = append(failed, r.Reference+": "+r.Message)
		default:
			rest = append(rest, r.Reference)
		}
	}
	switch {
	case w.o.packed == "":
		w.set(kind, false, reasonWaiting, "the image is not packed yet")
	case len(failed) > 0:
		w.set(kind, false, reasonFailed, strings.Join(failed, "; "))
	case len(rest) > 0:
		w.set(kind, false, reasonRunning, "not there yet: "+strings.Join(rest, ", "))
	default:
		w.set(kind, true, reasonDone, count(len(w.status.Registries), "registry has", "registries have")+" the image")
	}
}

func (w words) distributed() {
	kind := v1alpha1.ConditionDistributed
	var failed, rest []string
	chosen := 0
	for _, c := range w.o.clusters {
		if !c.chosen {
			continue
		}
		chosen++
		switch {
		case c.unreachable != nil:
			failed = append(failed, oneLine(c.unreachable))
		case c.failed != nil:
			failed = append(failed, oneLine(c.failed))
		case !c.current:
			rest = append(rest, c.name)
		}
	}
	switch {
	case w.o.packed == "":
		w.set(kind, false, reasonWaiting, "the image is not packed yet")
	case w.md.Spec.Targets.Clusters == nil:
		w.set(kind, true, reasonNotChosen, "the spec names no clusters: the model ends in the registries")
	case len(failed) > 0:
		w.set(kind, false, reasonFailed, strings.Join(failed, "; "))
	case len(rest) > 0:
		w.set(kind, false, reasonWaiting, "no replica yet, because their registry lacks the image: "+strings.Join(rest, ", "))
	case chosen == 0:
		w.set(kind, false, reasonNotChosen, "no cluster is chosen: none is known that spec.targets.clusters matches")
	default:
		w.set(kind, true, reasonDone, count(chosen, "cluster has", "clusters have")+" its replica")
	}
}

func (w words) preloaded() {
	kind := v1alpha1.ConditionPreloaded
	var wanted, warm, failed int32
	waiting := 0
	memory := w.inMemory()
	for _, c := range w.status.Clusters {
		wanted += c.Nodes.Wanted
		failed += c.Nodes.Failed
		warm += warmNodes(c.Nodes, memory)
		if !c.Ready {
			waiting++
		}
	}
	switch {
	case !w.is(v1alpha1.ConditionDistributed):
		w.set(kind, false, reasonWaiting, "not every cluster has its replica yet")
	case failed > 0:
		w.set(kind, false, reasonFailed, fmt.Sprintf("%d of %d nodes cannot get on: status.clusters says why", failed, wanted))
	case warm < wanted:
		w.set(kind, false, reasonRunning, fmt.Sprintf("%d of %d nodes hold the model", warm, wanted))
	case waiting > 0:
		w.set(kind, false, reasonWaiting, count(waiting, "cluster is", "clusters are")+" not ready yet: status.clusters says why")
	default:
		w.set(kind, true, reasonDone, fmt.Sprintf("%d of %d nodes hold the model", warm, wanted))
	}
}

func (w words) ready() {
	for _, kind := range []string{
		v1alpha1.ConditionSourceResolved, v1alpha1.ConditionPackaged, v1alpha1.ConditionSynced,
		v1alpha1.ConditionDistributed, v1alpha1.ConditionPreloaded,
	} {
		if c := apimeta.FindStatusCondition(w.status.Conditions, kind); c == nil || c.Status != metav1.ConditionTrue {
			message := kind + " is not known yet"
			if c != nil {
				message = kind + ": " + c.Message
			}
			w.set(v1alpha1.ConditionReady, false, reasonIncomplete, message)
			return
		}
	}
	w.set(v1alpha1.ConditionReady, true, reasonDone, "the model is where it should be")
}

// inMemory reports whether a node holds the model only when it is in its memory.
func (w words) inMemory() bool { return wantsMemory(&w.md.Spec) }

func wantsMemory(spec *v1alpha1.ModelDistributionSpec) bool {
	c := spec.Targets.Clusters
	return c != nil && c.PreloadConfig != nil && c.PreloadConfig.Tier == v1alpha1.TierMemory
}

func warmNodes(n v1alpha1.NodesStatus, memory bool) int32 {
	if memory {
		return n.InMemory
	}
	return n.OnDisk
}

func phase(md *v1alpha1.ModelDistribution, o observed, status *v1alpha1.ModelDistributionStatus) v1alpha1.Phase {
	is := func(kind string) bool { return apimeta.IsStatusConditionTrue(status.Conditions, kind) }
	switch {
	case !o.deleting.IsZero():
		return v1alpha1.PhaseDeleting
	case o.rival != "":
		return v1alpha1.PhaseFailed
	case is(v1alpha1.ConditionReady):
		return v1alpha1.PhaseReady
	case md.Spec.Paused:
		return v1alpha1.PhasePaused
	case o.packed == "" && o.packing.Err != nil && !o.packing.Running:
		return v1alpha1.PhaseFailed
	case o.packed == "" && o.packing.Progress.Total > 0:
		return v1alpha1.PhasePacking
	case o.packed == "":
		return v1alpha1.PhasePending
	case !is(v1alpha1.ConditionSynced):
		return v1alpha1.PhaseSyncing
	case !is(v1alpha1.ConditionDistributed):
		return v1alpha1.PhaseDistributing
	}
	return v1alpha1.PhasePreloading
}

func summarize(o observed, status *v1alpha1.ModelDistributionStatus) v1alpha1.Summary {
	var s v1alpha1.Summary
	p := status.Packing
	switch {
	case o.packed != "":
		s.Packed = "100%"
	case p != nil && p.TotalBytes > 0:
		s.Packed = fmt.Sprintf("%d%%", 100*(p.DoneBytes+p.ReusedBytes)/p.TotalBytes)
	}
	synced := 0
	for _, r := range status.Registries {
		if r.State == v1alpha1.RegistrySynced {
			synced++
		}
	}
	s.Registries = fmt.Sprintf("%d/%d", synced, len(status.Registries))
	ready, chosen := 0, 0
	for _, c := range o.clusters {
		if c.chosen {
			chosen++
		}
	}
	var wanted, warm int32
	for _, c := range status.Clusters {
		if c.Ready {
			ready++
		}
		wanted += c.Nodes.Wanted
		warm += warmNodes(c.Nodes, o.memory)
	}
	if chosen > 0 {
		s.Clusters = fmt.Sprintf("%d/%d", ready, chosen)
	}
	if wanted > 0 {
		s.Warm = fmt.Sprintf("%d/%d", warm, wanted)
	}
	return s
}

// again says when something that failed is tried again.
func again(s snapshot) string {
	if s.Running || s.Next.IsZero() {
		return ""
	}
	return "; it is tried again"
}

func share(done, total int64) string {
	return fmt.Sprintf("%s of %s", units.BytesSize(float64(done)), units.BytesSize(float64(total)))
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// oneLine is an error without line breaks: errors.Join makes them.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
