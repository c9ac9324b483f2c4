package main

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// statusTable is a line a ModelDistribution, behind its namespace where they may differ.
func statusTable(all []*v1alpha1.ModelDistribution, namespaces bool, now time.Time) string {
	rows := [][]string{{"NAMESPACE", "NAME", "MODEL", "VERSION", "PHASE", "PACKED", "REGISTRIES", "CLUSTERS", "WARM", "AGE"}}
	for _, d := range all {
		s := d.Status.Summary
		rows = append(rows, []string{
			d.Namespace, d.Name, string(d.Spec.ModelName), string(d.Spec.ModelVersion), string(phase(d)),
			s.Packed, s.Registries, s.Clusters, s.Warm, age(d.CreationTimestamp, now),
		})
	}
	if !namespaces {
		for i := range rows {
			rows[i] = rows[i][1:]
		}
	}
	return table(rows)
}

// statusPage is all that the status of d says, for people.
func statusPage(d *v1alpha1.ModelDistribution, now time.Time) string {
	parts := []string{statusHead(d, now), packingLine(d), registryTable(d), clusterTable(d), failureTable(d), conditionTable(d)}
	var b strings.Builder
	for _, part := range parts {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(part)
	}
	return b.String()
}

func statusHead(d *v1alpha1.ModelDistribution, now time.Time) string {
	rows := [][]string{
		{"Name:", d.Namespace + "/" + d.Name},
		{"Model:", string(d.Spec.ModelName) + ":" + string(d.Spec.ModelVersion)},
		{"Source:", sourceName(&d.Spec.ModelSource)},
	}
	if d.Status.Revision != "" {
		rows = append(rows, []string{"Revision:", d.Status.Revision})
	}
	if d.Status.Digest != "" {
		rows = append(rows, []string{"Image:", d.Status.Digest + ", " + size(d.Status.Bytes)})
	}
	rows = append(rows, []string{"Phase:", string(phase(d))}, []string{"Age:", age(d.CreationTimestamp, now)})
	switch seen := d.Status.ObservedGeneration; {
	case seen == 0:
		rows = append(rows, []string{"Stale:", "no controller has looked at it yet"})
	case seen < d.Generation:
		rows = append(rows, []string{"Stale:", fmt.Sprintf("the status is about generation %d of the spec, which is at %d", seen, d.Generation)})
	}
	return table(rows)
}

// packingLine says how far the packing is; nothing when it has not begun, or is over.
func packingLine(d *v1alpha1.ModelDistribution) string {
	p := d.Status.Packing
	if p == nil || p.TotalBytes == 0 {
		return ""
	}
	done := p.DoneBytes + p.ReusedBytes
	says := []string{fmt.Sprintf("%.0f%%, %s of %s", percent(done, p.TotalBytes), size(done), size(p.TotalBytes))}
	if p.ReusedBytes > 0 {
		says = append(says, size(p.ReusedBytes)+" of it reused")
	}
	if left := p.TotalBytes - done; left > 0 && d.Status.Digest == "" {
		if p.BytesPerSecond > 0 {
			says = append(says, size(p.BytesPerSecond)+"/s", remaining(p)+" left")
		} else {
			says = append(says, "nothing moves")
		}
	}
	return table([][]string{{"Packed:", strings.Join(says, ", ")}})
}

func registryTable(d *v1alpha1.ModelDistribution) string {
	rows := [][]string{{"REGISTRY", "STATE", "BYTES", "MESSAGE"}}
	for _, r := range d.Status.Registries {
		rows = append(rows, []string{r.Reference, string(r.State), part(r.Bytes, d.Status.Bytes), r.Message})
	}
	return tableOf(rows)
}

func clusterTable(d *v1alpha1.ModelDistribution) string {
	rows := [][]string{{"CLUSTER", "READY", "ON DISK", "IN MEMORY", "WANTED", "FAILED", "MESSAGE"}}
	for _, c := range d.Status.Clusters {
		ready := "no"
		if c.Ready {
			ready = "yes"
		}
		n := c.Nodes
		rows = append(rows, []string{c.Name, ready, fmt.Sprint(n.OnDisk), fmt.Sprint(n.InMemory), fmt.Sprint(n.Wanted), fmt.Sprint(n.Failed), c.Message})
	}
	return tableOf(rows)
}

// failureTable has a line a node that cannot get on, and one for those of a cluster that its status leaves out.
func failureTable(d *v1alpha1.ModelDistribution) string {
	rows := [][]string{{"NODE", "CLUSTER", "REASON", "MESSAGE"}}
	for _, c := range d.Status.Clusters {
		for _, f := range c.Nodes.Failures {
			rows = append(rows, []string{f.Node, c.Name, f.Reason, f.Message})
		}
		if more := int(c.Nodes.Failed) - len(c.Nodes.Failures); more > 0 {
			rows = append(rows, []string{fmt.Sprintf("(%d more)", more), c.Name, "", "kubectl get modelreplica there says more"})
		}
	}
	return tableOf(rows)
}

// conditionTable has the conditions that are not true.
func conditionTable(d *v1alpha1.ModelDistribution) string {
	rows := [][]string{{"CONDITION", "STATUS", "REASON", "MESSAGE"}}
	for _, c := range d.Status.Conditions {
		if c.Status != metav1.ConditionTrue {
			rows = append(rows, []string{c.Type, string(c.Status), c.Reason, c.Message})
		}
	}
	return tableOf(rows)
}

// tableOf is a table, or nothing where there is only a header.
func tableOf(rows [][]string) string {
	if len(rows) == 1 {
		return ""
	}
	return table(rows)
}

// table aligns cells in columns; an empty one in the middle of a row is a dash.
func table(rows [][]string) string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = oneLine(cell)
			if i < len(row)-1 {
				cells[i] = cmp.Or(cells[i], "-")
			}
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	_ = t.Flush() // a Builder takes everything
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// oneLine is s without line breaks, tabs and what else would move a terminal's cursor: messages come from
// registries and nodes.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
}

// phase is Pending until the controller writes one, as nothing has been done then.
func phase(d *v1alpha1.ModelDistribution) v1alpha1.Phase {
	return cmp.Or(d.Status.Phase, v1alpha1.PhasePending)
}

// age is how long ago since was, as kubectl writes it.
func age(since metav1.Time, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return duration.HumanDuration(now.Sub(since.Time))
}

// size is a number of bytes for people.
func size(n int64) string { return units.BytesSize(float64(n)) }

// part is some of a whole number of bytes, which is 0 while it is not known.
func part(n, whole int64) string {
	switch {
	case whole > 0:
		return size(n) + " of " + size(whole)
	case n > 0:
		return size(n)
	}
	return "-"
}

// remaining is how long packing takes at the present rate, which is not 0.
func remaining(p *v1alpha1.PackingStatus) string { return duration.HumanDuration(packingTime(p)) }

func packingTime(p *v1alpha1.PackingStatus) time.Duration {
	left := max(p.TotalBytes-p.DoneBytes-p.ReusedBytes, 0)
	return time.Duration(float64(left) / float64(p.BytesPerSecond) * float64(time.Second)).Round(time.Second)
}

// sourceName is where the files come from, in one word.
func sourceName(s *v1alpha1.ModelSource) string {
	switch {
	case s.OSS != nil:
		return "oss://" + string(s.OSS.Bucket) + folder(s.OSS.Path)
	case s.S3 != nil:
		return "s3://" + string(s.S3.Bucket) + folder(s.S3.Prefix)
	case s.ModelScope != nil:
		return fmt.Sprintf("modelScope:%s@%s", s.ModelScope.Model, s.ModelScope.Revision)
	case s.HuggingFace != nil:
		return fmt.Sprintf("huggingFace:%s@%s", s.HuggingFace.Model, s.HuggingFace.Revision)
	case s.Registry != nil:
		return "image:" + s.Registry.Reference
	case s.PVC != nil:
		return "pvc:" + s.PVC.ClaimName + folder(s.PVC.Path)
	}
	return "-"
}

func folder(p v1alpha1.Path) string {
	if trimmed := strings.Trim(string(p), "/"); trimmed != "" {
		return "/" + trimmed
	}
	return ""
}
