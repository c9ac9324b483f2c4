package main

import (
	"fmt"
	"strings"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// page says the outlook to people.
func (o *outlook) page() string {
	parts := []string{o.head(), o.registryTable(), o.clusterLines(), o.nodeTable(), bullets("In the way:", o.InTheWay), bullets("Not known:", o.Notes)}
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

func (o *outlook) head() string {
	s := o.Source
	name := o.Namespace + "/" + o.Name
	switch o.Result {
	case "":
	case "unchanged":
		name += " stays as it is"
	default:
		name += " would be " + o.Result
	}
	rows := [][]string{{"Name:", name}, {"Model:", o.Model}, {"Source:", s.Name}}
	if s.Revision != "" {
		rows = append(rows, []string{"Revision:", s.Revision})
	}
	switch {
	case s.Packed:
		rows = append(rows, []string{"Read:", "nothing: a registry has the image already"})
	case !s.Listed:
		rows = append(rows, []string{"Read:", "not known, the source cannot be listed"})
	default:
		rows = append(rows,
			[]string{"Read:", fmt.Sprintf("%s of %s, %d of %s", size(s.ReadBytes), size(s.Bytes), s.ReadFiles, counted(s.Files, "file"))},
			[]string{"Reused:", fmt.Sprintf("%s of %s, %d of %s", size(s.ReusedBytes), size(s.ImageBytes), s.ReusedLayers, counted(s.Layers, "layer"))})
	}
	return table(rows)
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (o *outlook) registryTable() string {
	rows := [][]string{{"REGISTRY", "REGION", "BY", "SENT", "MESSAGE"}}
	for _, r := range o.Registries {
		sent := "not known"
		if o.Source.Listed {
			sent = size(r.SendBytes) + " of " + size(o.Source.ImageBytes)
		}
		message := ""
		switch {
		case r.Error != "":
			message = "cannot be asked what it has"
		case r.MountBytes > 0:
			message = size(r.MountBytes) + " come from another repository of the same registry, or are sent where it does not do that"
		}
		rows = append(rows, []string{r.Reference, r.Region, r.By, sent, message})
	}
	return tableOf(rows)
}

func (o *outlook) clusterLines() string {
	c := o.Clusters
	rows := [][]string{{"Clusters:", c.Chosen}}
	if !c.Preload {
		return table(append(rows, []string{"Nodes:", "none before a Pod asks for it"}))
	}
	match := "all of them"
	if c.Match != "" {
		match = "those with " + c.Match
	}
	where := "disk"
	if c.Tier == v1alpha1.TierMemory {
		where = "disk and in memory"
	}
	here := counted(c.Wanted, "node") + " of the kubeconfig's cluster"
	if len(c.Nodes) > c.Wanted {
		here = fmt.Sprintf("%d of %s of the kubeconfig's cluster", c.Wanted, counted(len(c.Nodes), "node"))
	}
	return table(append(rows, []string{"Nodes:", fmt.Sprintf("%s, on %s; %s", match, where, here)}))
}

func (o *outlook) nodeTable() string {
	rows := [][]string{{"NODE", "DISK", "MEMORY", "FITS", "MESSAGE"}}
	for _, n := range o.Clusters.Nodes {
		fits := "no"
		switch {
		case n.Fits:
			fits = "yes"
		case !o.Source.Listed:
			fits = ""
		}
		rows = append(rows, []string{n.Name, part(n.DiskBytes, 0), part(n.MemoryBytes, 0), fits, n.Message})
	}
	return tableOf(rows)
}

func bullets(title string, lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return title + "\n  " + strings.Join(lines, "\n  ") + "\n"
}
