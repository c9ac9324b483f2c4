package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller"
)

// outlook is what would happen if a ModelDistribution were applied. Sizes are in bytes, and of layers alone:
// manifests and hash layers, about 64 bytes a MiB, come on top.
type outlook struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Model     string `json:"model"`
	// Result is created, configured or unchanged; empty where the API server was not asked.
	Result     string            `json:"result,omitempty"`
	Source     sourceOutlook     `json:"source"`
	Registries []registryOutlook `json:"registries"`
	Clusters   clusterOutlook    `json:"clusters"`
	// InTheWay is what would keep it from becoming Ready, Notes what is not known, and why.
	InTheWay []string `json:"in_the_way"`
	Notes    []string `json:"notes"`
}

// sourceOutlook is what there is, and what of it would be read.
type sourceOutlook struct {
	Name     string `json:"name"`
	Revision string `json:"revision,omitempty"`
	// Packed says that a registry has the image already, and the source is not read.
	Packed bool `json:"packed"`
	// Listed says that the numbers are known.
	Listed       bool  `json:"listed"`
	Files        int   `json:"files"`
	Bytes        int64 `json:"bytes"`
	ReadFiles    int   `json:"read_files"`
	ReadBytes    int64 `json:"read_bytes"`
	Layers       int   `json:"layers"`
	ReusedLayers int   `json:"reused_layers"`
	ImageBytes   int64 `json:"image_bytes"`
	ReusedBytes  int64 `json:"reused_bytes"`
}

// registryOutlook is what one registry would get. SendBytes, MountBytes and HasBytes add up to the image.
type registryOutlook struct {
	Reference string `json:"reference"`
	Region    string `json:"region,omitempty"`
	// By is push, where the model is packed into it, or copy, from another registry.
	By        string `json:"by"`
	SendBytes int64  `json:"send_bytes"`
	// MountBytes come from another repository of the same registry, where it does that.
	MountBytes int64 `json:"mount_bytes"`
	HasBytes   int64 `json:"has_bytes"`
	// Error is why it could not be asked: then everything counts as sent.
	Error string `json:"error,omitempty"`
}

// clusterOutlook is who would get it. The nodes are those of the one cluster that was asked.
type clusterOutlook struct {
	Chosen string        `json:"chosen"`
	Tier   v1alpha1.Tier `json:"tier,omitempty"`
	// Preload says that nodes get it before a Pod asks, Match which labels these have, Wanted how many they are here.
	Preload bool          `json:"preload"`
	Match   string        `json:"match,omitempty"`
	Wanted  int           `json:"wanted"`
	Nodes   []nodeOutlook `json:"nodes"`
}

// nodeOutlook is whether the model fits a node. DiskBytes and MemoryBytes are what the node has for all Pods together,
// not what is free now; 0 where it does not say.
type nodeOutlook struct {
	Name        string `json:"name"`
	DiskBytes   int64  `json:"disk_bytes"`
	MemoryBytes int64  `json:"memory_bytes"`
	Fits        bool   `json:"fits"`
	Message     string `json:"message,omitempty"`
}

// nodesFound are the nodes that match, with their names and what they have, or why they are not known.
type nodesFound struct {
	nodes []nodeOutlook
	err   error
}

// foresee makes an outlook of what is wanted and what was found out. It looks at nothing else.
func foresee(md *v1alpha1.ModelDistribution, s *controller.Survey, found nodesFound) *outlook {
	o := &outlook{
		Namespace: md.Namespace, Name: md.Name, Model: string(md.Spec.ModelName) + ":" + string(md.Spec.ModelVersion),
		Registries: []registryOutlook{}, InTheWay: []string{}, Notes: []string{},
	}
	if md.Spec.Paused {
		o.blocked("spec.paused is true: nothing begins until it is false")
	}
	if s.Rival != "" {
		o.blocked("ModelDistribution %s is this model and version with another source, and was first: this one would be refused, give another modelVersion", s.Rival)
	}
	if s.Unlisted != nil {
		o.blocked("the source cannot be listed: %v", s.Unlisted)
	}
	push := packedInto(s)
	o.Source = foreseeSource(md, s, push)
	for i := range s.Registries {
		r := foreseeRegistry(s, i, push)
		if r.Error != "" {
			o.blocked("registry %s cannot be asked: %s", r.Reference, r.Error)
		}
		o.Registries = append(o.Registries, r)
	}
	o.foreseeClusters(md.Spec.Targets.Clusters, found)
	return o
}

func (o *outlook) blocked(format string, args ...any) {
	o.InTheWay = append(o.InTheWay, oneLine(fmt.Sprintf(format, args...)))
}

func (o *outlook) note(format string, args ...any) {
	o.Notes = append(o.Notes, oneLine(fmt.Sprintf(format, args...)))
}

// packedInto is the registry that the model is packed into: the first that can be asked. -1 is none.
func packedInto(s *controller.Survey) int {
	for _, i := range s.Order {
		if s.Registries[i].Err == nil {
			return i
		}
	}
	if len(s.Order) == 0 {
		return -1
	}
	return s.Order[0]
}

// has reports whether a registry that could be asked has a part.
func has(r controller.SurveyRegistry, k int) bool { return r.Err == nil && k < len(r.Has) && r.Has[k] }

func foreseeSource(md *v1alpha1.ModelDistribution, s *controller.Survey, push int) sourceOutlook {
	out := sourceOutlook{
		Name: sourceName(&md.Spec.ModelSource), Revision: s.Revision, Packed: s.Packed,
		Listed: s.Unlisted == nil, Layers: len(s.Parts),
	}
	for k, p := range s.Parts {
		out.Files += p.Files
		out.Bytes += p.Bytes
		out.ImageBytes += p.Size
		switch {
		case s.Packed || push >= 0 && has(s.Registries[push], k):
			out.ReusedLayers++
			out.ReusedBytes += p.Size
		case push >= 0 && s.Registries[push].Host == s.SourceHost: // mounted, within the registry
		default:
			out.ReadFiles += p.Files
			out.ReadBytes += p.Bytes
		}
	}
	return out
}

func foreseeRegistry(s *controller.Survey, i, push int) registryOutlook {
	r := s.Registries[i]
	out := registryOutlook{Reference: r.Reference, Region: r.Region, By: "copy"}
	from := s.Registries[push].Host
	if i == push {
		from = s.SourceHost
		if from == "" && !s.Packed {
			out.By = "push"
		}
	}
	if r.Err != nil {
		out.Error = oneLine(r.Err.Error())
	}
	for k, p := range s.Parts {
		switch {
		case has(r, k):
			out.HasBytes += p.Size
		case from == r.Host && r.Err == nil:
			out.MountBytes += p.Size
		default:
			out.SendBytes += p.Size
		}
	}
	return out
}

func (o *outlook) foreseeClusters(t *v1alpha1.ClusterTargets, found nodesFound) {
	o.Clusters = clusterOutlook{Chosen: chosenClusters(t), Nodes: []nodeOutlook{}}
	if t == nil || t.PreloadConfig == nil {
		return
	}
	c := &o.Clusters
	c.Preload, c.Tier, c.Match = true, tierOf(t.PreloadConfig), nodeLabels(t.PreloadConfig)
	if found.err != nil {
		o.note("the nodes of the kubeconfig's cluster cannot be listed: %v", found.err)
		return
	}
	fitting, disks := 0, 0
	for _, n := range found.nodes {
		if o.Source.Listed {
			n.Message = tooSmall(n, o.Source.ImageBytes, c.Tier)
			n.Fits = n.Message == ""
		} else {
			n.Message = "the model's size is not known"
		}
		if n.Fits {
			fitting++
		}
		if tooSmall(n, o.Source.ImageBytes, v1alpha1.TierDisk) == "" {
			disks++
		}
		c.Nodes = append(c.Nodes, n)
	}
	slices.SortFunc(c.Nodes, func(a, b nodeOutlook) int { return strings.Compare(a.Name, b.Name) })
	c.Wanted = len(c.Nodes)
	if n := t.PreloadConfig.Nodes; n != nil {
		c.Wanted = min(c.Wanted, int(*n))
	}
	if !o.Source.Listed || fitting >= c.Wanted {
		return
	}
	advice := "choose others by preloadConfig.nodeSelector"
	if disks >= c.Wanted {
		advice += ", or keep it on their disks alone by preloadConfig.tier Disk"
	}
	o.blocked("only %d of the %d nodes that are to get it can hold it: %s", fitting, c.Wanted, advice)
}

// tierOf is where nodes hold it; the API server fills in Memory.
func tierOf(p *v1alpha1.PreloadConfig) v1alpha1.Tier {
	if p.Tier == "" {
		return v1alpha1.TierMemory
	}
	return p.Tier
}

// tooSmall says why a node cannot hold that many bytes, "" where it can.
func tooSmall(n nodeOutlook, size int64, tier v1alpha1.Tier) string {
	var says []string
	if n.DiskBytes < size {
		says = append(says, short(size, n.DiskBytes, "ephemeral storage"))
	}
	if tier == v1alpha1.TierMemory && n.MemoryBytes < size {
		says = append(says, short(size, n.MemoryBytes, "memory"))
	}
	return strings.Join(says, "; ")
}

func short(want, have int64, what string) string {
	if have == 0 {
		return "it does not say how much " + what + " it has"
	}
	return fmt.Sprintf("%s of %s are needed, it has %s", size(want), what, size(have))
}

// chosenClusters says in words which clusters the spec chooses.
func chosenClusters(t *v1alpha1.ClusterTargets) string {
	switch {
	case t == nil:
		return "none: it ends in the registries"
	case t.AllClusters:
		return "all that the hub knows, also those that join later"
	case t.Selector != nil:
		return "those that the hub knows with the labels " + metav1.FormatLabelSelector(t.Selector)
	}
	names := make([]string, len(t.Names))
	for i, n := range t.Names {
		names[i] = string(n)
	}
	return strings.Join(names, ", ")
}

// nodeLabels are those that a node must have, as kubectl's -l takes them; "" for none.
func nodeLabels(p *v1alpha1.PreloadConfig) string {
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(p.NodeSelector)) {
		labels = append(labels, key+"="+string(p.NodeSelector[key]))
	}
	return strings.Join(labels, ",")
}
