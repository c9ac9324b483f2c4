package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// finding is the one thing that holds a ModelDistribution back now.
type finding struct {
	State findingState `json:"state"`
	Says  string       `json:"says"`            // one or two sentences
	Do    string       `json:"do,omitempty"`    // what to do, where more is known than the messages say
	Chain []link       `json:"chain,omitempty"` // what it was found in, from the condition down to the node
}

// findingState is whether somebody has to do something.
type findingState string

const (
	findingReady    findingState = "Ready"    // nothing holds it back
	findingWaiting  findingState = "Waiting"  // nothing is wrong: it takes its time
	findingHeld     findingState = "Held"     // it does not get on without help
	findingPaused   findingState = "Paused"   // somebody wants it to wait
	findingDeleting findingState = "Deleting" // it is going away
)

// link is one thing that a finding was found in.
type link struct {
	Kind    string `json:"kind"` // condition, registry, cluster or node
	Name    string `json:"name"`
	State   string `json:"state,omitempty"`
	Message string `json:"message,omitempty"`
}

// explain finds what holds d back. What needs somebody's help comes before what only takes its time, and of
// each the earlier step first, as the later ones wait for it.
func explain(d *v1alpha1.ModelDistribution) finding {
	for _, cause := range []func(*v1alpha1.ModelDistribution) *finding{
		deleting, paused, unseen, ready,
		refused, failedRegistry, heldCluster, failedNodes, failedOtherwise,
		resolving, packing, syncing, distributing, preloading,
	} {
		if f := cause(d); f != nil {
			return *f
		}
	}
	return finding{
		State: findingWaiting, Says: fmt.Sprintf("It is %s, and its status does not say what it waits for.", phase(d)),
		Do: "Look at the controller's log.", Chain: untrue(d),
	}
}

func deleting(d *v1alpha1.ModelDistribution) *finding {
	if d.DeletionTimestamp == nil {
		return nil
	}
	f := &finding{State: findingDeleting}
	var waits []string
	for _, c := range d.Status.Clusters {
		waits = append(waits, c.Name)
		f.Chain = append(f.Chain, clusterLink(c))
	}
	if i := slices.IndexFunc(d.Status.Clusters, func(c v1alpha1.ClusterStatus) bool { return c.Message != "" }); i >= 0 {
		c := d.Status.Clusters[i]
		f.Says = "It is being deleted, but cluster " + c.Name + " still has it: " + sentence(c.Message) + others(len(waits)-1, "cluster", "has it too", "have it too")
		return f
	}
	if len(waits) > 0 {
		f.Says = "It is being deleted, and waits for " + strings.Join(waits, ", ") + " to give it up."
		return f
	}
	for _, r := range d.Status.Registries {
		if d.Spec.DeletionPolicy == v1alpha1.DeletionDelete && r.State == v1alpha1.RegistryFailed {
			f.Says = "It is being deleted, but the image in " + r.Reference + " is not: " + sentence(r.Message)
			f.Do = "Mend it, or set spec.deletionPolicy to Retain to leave the images where they are."
			f.Chain = append(f.Chain, registryLink(r))
			return f
		}
	}
	f.Says = "It is being deleted."
	if len(d.Finalizers) > 0 {
		f.Says = "It is being deleted, and waits for what is to be done first: finalizers " + strings.Join(d.Finalizers, ", ") + "."
		f.Do = "If nothing happens, see whether the controller runs."
	}
	return f
}

func paused(d *v1alpha1.ModelDistribution) *finding {
	if !d.Spec.Paused {
		return nil
	}
	return &finding{
		State: findingPaused, Says: "spec.paused is true: nothing new is begun, and what is there stays and is served.",
		Do:    fmt.Sprintf(`kubectl patch md %s -n %s --type merge -p '{"spec":{"paused":false}}'`, d.Name, d.Namespace),
		Chain: untrue(d),
	}
}

func unseen(d *v1alpha1.ModelDistribution) *finding {
	const see = "If it stays so, see whether the controller runs, and whether it watches this namespace."
	switch seen := d.Status.ObservedGeneration; {
	case seen == 0:
		return &finding{State: findingWaiting, Says: "No controller has looked at it yet.", Do: see}
	case seen < d.Generation:
		return &finding{
			State: findingWaiting, Do: see, Chain: untrue(d),
			Says: fmt.Sprintf("The controller has not looked at the last change yet: its status is about generation %d of the spec, which is at %d.", seen, d.Generation),
		}
	}
	return nil
}

func ready(d *v1alpha1.ModelDistribution) *finding {
	if !isReady(d) {
		return nil
	}
	says := "Nothing holds it back: " + count(len(d.Status.Registries), "registry", "registries")
	if n := len(d.Status.Clusters); n > 0 {
		says += " and " + count(n, "cluster", "clusters")
	}
	says += " have it"
	if have, wanted := warm(d); wanted > 0 {
		says += fmt.Sprintf(", and %d of %s hold it %s", have, count(wanted, "node", "nodes"), tierWords(d))
	}
	return &finding{State: findingReady, Says: says + "."}
}

// refused: the source or the packing has failed.
func refused(d *v1alpha1.ModelDistribution) *finding {
	if d.Status.Phase != v1alpha1.PhaseFailed {
		return nil
	}
	for _, step := range []struct{ condition, says string }{
		{v1alpha1.ConditionSourceResolved, "The source cannot be used"},
		{v1alpha1.ConditionPackaged, "It cannot be packed"},
	} {
		c := meta.FindStatusCondition(d.Status.Conditions, step.condition)
		if c == nil || c.Status == metav1.ConditionTrue {
			continue
		}
		f := &finding{State: findingHeld, Says: step.says + " (" + c.Reason + "): " + sentence(c.Message), Chain: []link{conditionLink(*c)}}
		if step.condition == v1alpha1.ConditionPackaged {
			f.Chain = append(f.Chain, registryLinks(d, v1alpha1.RegistryFailed)...)
		}
		return f
	}
	return nil
}

func failedRegistry(d *v1alpha1.ModelDistribution) *finding {
	failed := registryLinks(d, v1alpha1.RegistryFailed)
	if len(failed) == 0 {
		return nil
	}
	says := "Registry " + failed[0].Name + " does not take the image"
	if failed[0].Message != "" {
		says += ": " + failed[0].Message
	}
	f := &finding{State: findingHeld, Says: sentence(says), Chain: append(links(d, v1alpha1.ConditionPackaged, v1alpha1.ConditionSynced), failed...)}
	f.Says += others(len(failed)-1, "registry", "fails too", "fail too")
	f.Says += others(len(d.Status.Registries)-len(failed), "registry", "goes on", "go on")
	return f
}

// heldCluster: a cluster that has its registry, or could have it, and still says what is wrong.
func heldCluster(d *v1alpha1.ModelDistribution) *finding {
	synced := d.Status.Digest != "" && len(registryLinks(d, v1alpha1.RegistrySynced)) == len(d.Status.Registries)
	f := &finding{State: findingHeld}
	for _, c := range d.Status.Clusters {
		if !c.Ready && c.Message != "" && (synced || c.Reference != "") {
			f.Chain = append(f.Chain, clusterLink(c))
		}
	}
	if len(f.Chain) == 0 {
		return nil
	}
	f.Says = "Cluster " + f.Chain[0].Name + " is not ready: " + sentence(f.Chain[0].Message) +
		others(len(f.Chain)-1, "cluster", "is not ready either", "are not ready either") +
		others(len(d.Status.Clusters)-len(f.Chain), "cluster", "goes on", "go on")
	f.Chain = append(links(d, v1alpha1.ConditionDistributed), f.Chain...)
	return f
}

func failedNodes(d *v1alpha1.ModelDistribution) *finding {
	f := &finding{State: findingHeld}
	failed, first := 0, v1alpha1.NodeFailure{}
	for _, c := range d.Status.Clusters {
		if c.Nodes.Failed == 0 {
			continue
		}
		failed += int(c.Nodes.Failed)
		f.Chain = append(f.Chain, clusterLink(c))
		for _, n := range c.Nodes.Failures {
			if first.Node == "" {
				first = n
			}
			f.Chain = append(f.Chain, link{"node", n.Node, n.Reason, n.Message})
		}
	}
	if failed == 0 {
		return nil
	}
	_, wanted := warm(d)
	f.Says = fmt.Sprintf("%d of %s cannot get the model.", failed, count(wanted, "node", "nodes"))
	if first.Node != "" {
		f.Says = strings.TrimSuffix(f.Says, ".") + ": " + sentence(first.Node+" has "+first.Reason+ifAny(": ", first.Message)) +
			others(failed-1, "node", "fails too", "fail too")
	}
	if first.Message == "" {
		f.Do = "kubectl get modelreplica -o yaml in the cluster, and the agent's log on the node, say more. Nodes that are not meant to hold it are left out by targets.clusters.preloadConfig.nodeSelector."
	}
	f.Chain = append(links(d, v1alpha1.ConditionPreloaded), f.Chain...)
	return f
}

// failedOtherwise: the phase says that it has failed, and only conditions say why.
func failedOtherwise(d *v1alpha1.ModelDistribution) *finding {
	if d.Status.Phase != v1alpha1.PhaseFailed {
		return nil
	}
	f := &finding{State: findingHeld, Says: "It has failed, and its status does not say why.", Do: "Look at the controller's log.", Chain: untrue(d)}
	if len(f.Chain) > 0 {
		f.Says, f.Do = "It has failed: "+sentence(f.Chain[0].Name+" is "+f.Chain[0].State+ifAny(": ", f.Chain[0].Message)), ""
	}
	return f
}

func resolving(d *v1alpha1.ModelDistribution) *finding {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionSourceResolved) {
		return nil
	}
	f := &finding{State: findingWaiting, Says: "It waits until " + sourceName(&d.Spec.ModelSource) + " is looked through.", Chain: links(d, v1alpha1.ConditionSourceResolved)}
	if len(f.Chain) > 0 && f.Chain[0].Message != "" {
		f.Says = "The source is not resolved yet: " + sentence(f.Chain[0].Message)
	}
	return f
}

// slow is from how long a packing on, at its present rate, advice on endpoints is worth giving.
const slow = time.Hour

func packing(d *v1alpha1.ModelDistribution) *finding {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionPackaged) {
		return nil
	}
	f := &finding{State: findingWaiting, Chain: append(links(d, v1alpha1.ConditionPackaged), registryLinks(d, v1alpha1.RegistryPushing)...)}
	p := d.Status.Packing
	if p == nil || p.TotalBytes == 0 {
		f.Says = sentence("It waits until the packing begins" + message(f.Chain))
		return f
	}
	done := p.DoneBytes + p.ReusedBytes
	far := fmt.Sprintf("%.0f%%, %s of %s", percent(done, p.TotalBytes), size(done), size(p.TotalBytes))
	switch {
	case done >= p.TotalBytes:
		f.Says = sentence("All files are packed, and the image is being completed" + message(f.Chain))
	case p.BytesPerSecond == 0:
		f.Says = sentence("The packing begins, and nothing was sent yet" + message(f.Chain))
		if p.DoneBytes > 0 {
			f.State, f.Says = findingHeld, sentence("The packing stands still at "+far+message(f.Chain))
		}
		f.Do = "If it stays so: " + fmt.Sprintf("kubectl get events -n %s --field-selector involvedObject.name=%s, and the packer's log, say what it waits for.", d.Namespace, d.Name)
	default:
		f.Says = "It is being packed: " + far + ". At the present " + size(p.BytesPerSecond) + "/s it takes " + remaining(p) + " more."
		if packingTime(p) >= slow {
			f.Do = nearer(d)
		}
	}
	return f
}

// nearer says which endpoints of the spec lead through the internet where a shorter way exists.
func nearer(d *v1alpha1.ModelDistribution) string {
	if o := d.Spec.ModelSource.OSS; o != nil && !strings.Contains(string(o.Endpoint), "-internal.") {
		return fmt.Sprintf("OSS is read from outside: inside Alibaba Cloud, oss.endpoint oss-%s-internal.aliyuncs.com is faster.", o.Region)
	}
	for _, r := range d.Spec.Targets.Registries {
		if r.Options.Type == v1alpha1.RegistryACR && !r.Options.VPC {
			return "ACR is reached from outside: inside its VPC, options.vpc: true of the registry is faster."
		}
	}
	return ""
}

func syncing(d *v1alpha1.ModelDistribution) *finding {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionSynced) {
		return nil
	}
	f := &finding{State: findingWaiting, Says: "It waits until the registries have the image."}
	var behind []v1alpha1.RegistryStatus
	for _, r := range d.Status.Registries {
		if r.State != v1alpha1.RegistrySynced {
			behind = append(behind, r)
			f.Chain = append(f.Chain, registryLink(r))
		}
	}
	if len(behind) > 0 {
		r := behind[0]
		f.Says = "Registry " + r.Reference + " is still to get the image"
		if r.State != v1alpha1.RegistryPending {
			f.Says = "Registry " + r.Reference + " is getting the image: it has " + part(r.Bytes, d.Status.Bytes)
		}
		f.Says = sentence(f.Says+ifAny(": ", r.Message)) + others(len(behind)-1, "registry", "lacks it too", "lack it too")
	}
	f.Chain = append(links(d, v1alpha1.ConditionSynced), f.Chain...)
	return f
}

func distributing(d *v1alpha1.ModelDistribution) *finding {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionDistributed) {
		return nil
	}
	f := &finding{State: findingWaiting}
	for _, c := range d.Status.Clusters {
		if !c.Ready {
			f.Chain = append(f.Chain, clusterLink(c))
		}
	}
	var names []string
	for _, l := range f.Chain {
		names = append(names, l.Name)
	}
	f.Chain = append(links(d, v1alpha1.ConditionDistributed), f.Chain...)
	waits := "the clusters"
	if len(names) > 0 {
		waits = strings.Join(names, ", ")
	}
	f.Says = sentence("It waits for " + waits + " to make volumes of it" + message(f.Chain))
	return f
}

func preloading(d *v1alpha1.ModelDistribution) *finding {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionPreloaded) {
		return nil
	}
	have, wanted := warm(d)
	f := &finding{
		State: findingWaiting, Chain: links(d, v1alpha1.ConditionPreloaded),
		Says: fmt.Sprintf("%d of %s hold it %s, and it waits for the others.", have, count(wanted, "node", "nodes"), tierWords(d)),
	}
	for _, c := range d.Status.Clusters {
		if held(d, c.Nodes) < c.Nodes.Wanted {
			f.Chain = append(f.Chain, clusterLink(c))
		}
	}
	return f
}

// isReady reports whether d is Ready, for the spec as it is now.
func isReady(d *v1alpha1.ModelDistribution) bool {
	c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionReady)
	return c != nil && c.Status == metav1.ConditionTrue && d.Status.ObservedGeneration >= d.Generation
}

// warm counts the nodes of all clusters that hold the model at the wanted tier, and those that are to.
func warm(d *v1alpha1.ModelDistribution) (have, wanted int) {
	for _, c := range d.Status.Clusters {
		have, wanted = have+int(held(d, c.Nodes)), wanted+int(c.Nodes.Wanted)
	}
	return have, wanted
}

// held counts the nodes of a cluster that hold the model at the wanted tier.
func held(d *v1alpha1.ModelDistribution, n v1alpha1.NodesStatus) int32 {
	if onDiskOnly(d) {
		return n.OnDisk
	}
	return n.InMemory
}

func onDiskOnly(d *v1alpha1.ModelDistribution) bool {
	c := d.Spec.Targets.Clusters
	return c != nil && c.PreloadConfig != nil && c.PreloadConfig.Tier == v1alpha1.TierDisk
}

func tierWords(d *v1alpha1.ModelDistribution) string {
	if onDiskOnly(d) {
		return "on disk"
	}
	return "in memory"
}

// untrue are all conditions that are not true, but Ready, which only sums them up.
func untrue(d *v1alpha1.ModelDistribution) []link {
	return links(d, v1alpha1.ConditionSourceResolved, v1alpha1.ConditionPackaged, v1alpha1.ConditionSynced,
		v1alpha1.ConditionDistributed, v1alpha1.ConditionPreloaded)
}

// links are those of the named conditions that are there and not true.
func links(d *v1alpha1.ModelDistribution, conditions ...string) []link {
	var found []link
	for _, name := range conditions {
		if c := meta.FindStatusCondition(d.Status.Conditions, name); c != nil && c.Status != metav1.ConditionTrue {
			found = append(found, conditionLink(*c))
		}
	}
	return found
}

func conditionLink(c metav1.Condition) link {
	return link{"condition", c.Type, string(c.Status) + ifAny(" ", c.Reason), c.Message}
}

func registryLink(r v1alpha1.RegistryStatus) link {
	return link{"registry", r.Reference, string(r.State), r.Message}
}

func registryLinks(d *v1alpha1.ModelDistribution, state v1alpha1.RegistryState) []link {
	var found []link
	for _, r := range d.Status.Registries {
		if r.State == state {
			found = append(found, registryLink(r))
		}
	}
	return found
}

func clusterLink(c v1alpha1.ClusterStatus) link {
	state := "not ready"
	if c.Ready {
		state = "ready"
	}
	if c.Nodes.Wanted > 0 {
		state += fmt.Sprintf(", nodes: %d wanted, %d on disk, %d in memory, %d failed", c.Nodes.Wanted, c.Nodes.OnDisk, c.Nodes.InMemory, c.Nodes.Failed)
	}
	return link{"cluster", c.Name, state, c.Message}
}

// message is the first message of a chain, behind a colon.
func message(chain []link) string {
	for _, l := range chain {
		if l.Message != "" {
			return ": " + l.Message
		}
	}
	return ""
}

// sentence ends s with a full stop.
func sentence(s string) string {
	s = strings.TrimSpace(s)
	if s == "" || strings.ContainsAny(s[len(s)-1:], ".!?") {
		return s
	}
	return s + "."
}

// ifAny is s behind before, or nothing.
func ifAny(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// others is a sentence on n more of a kind, or nothing.
func others(n int, kind, does, do string) string {
	switch {
	case n <= 0:
		return ""
	case n == 1:
		return " 1 other " + kind + " " + does + "."
	}
	plural := kind + "s"
	if kind == "registry" {
		plural = "registries"
	}
	return fmt.Sprintf(" %d other %s %s.", n, plural, do)
}
