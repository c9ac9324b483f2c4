package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is one run of one scenario. Copies are body bytes over the model's size.
type result struct {
	Scenario       string  `json:"scenario"`
	Transport      string  `json:"transport"`
	Nodes          int     `json:"nodes"`
	Size           int64   `json:"size"`
	Rate           string  `json:"rate"`
	SizeOverRate   float64 `json:"size_over_rate_s"`
	BoundS         float64 `json:"bound_s"` // one node alone over plain HTTP
	FirstS         float64 `json:"first_s"`
	MedianS        float64 `json:"median_s"`
	LastS          float64 `json:"last_s"`
	Ratio          float64 `json:"ratio"`
	OriginCopies   float64 `json:"origin_copies"`
	MirrorCopies   float64 `json:"mirror_copies"`
	DuplicateRatio float64 `json:"duplicate_ratio"`
	CPUNode        float64 `json:"cpu_s_per_gib_node"`
	CPUMirror      float64 `json:"cpu_s_per_gib_mirror"`
	// CPUBusy is the part of the machine's CPU time that was used, or taken by its hypervisor, meanwhile: close
	// to 1 it is not the links that limit.
	CPUBusy      float64 `json:"cpu_busy"`
	RSSAnonMiB   float64 `json:"rss_anon_mib_max"`
	RSSMirrorMiB float64 `json:"rss_anon_mib_mirror"`
	// LinkOverhead is what all hosts received by their links over the body bytes, less one.
	LinkOverhead float64 `json:"link_overhead"`
	// ThinCopies is what crossed the link between the zones towards the far one, all headers included.
	ThinCopies float64 `json:"thin_link_copies,omitempty"`
	Shares     []int64 `json:"origin_bytes_by_node"`
	Verified   bool    `json:"verified"`
	Commit     string  `json:"commit"`
	Machine    string  `json:"machine"`
}

// revision is the commit that this program was built from; the Makefile sets it.
var revision string

// machine names the CPUs that everything ran on, and how its TCP reacts to a full link, which the namespaces
// take over from it.
func machine() string {
	model := runtime.GOARCH
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for text := range strings.Lines(string(raw)) {
			if key, value, ok := strings.Cut(text, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	control, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		control = []byte("TCP unknown")
	}
	return fmt.Sprintf("%d CPUs, %s, %s", runtime.NumCPU(), model, bytes.TrimSpace(control))
}

// baseline is what the same links do without Shoal.
type baseline struct {
	Name  string  `json:"name"`
	Nodes int     `json:"nodes"`
	LastS float64 `json:"last_s"`
	Ratio float64 `json:"ratio"`
}

// median returns the run with the median ratio.
func median(runs []result) result {
	runs = slices.Clone(runs)
	slices.SortFunc(runs, func(a, b result) int { return cmp.Compare(a.Ratio, b.Ratio) })
	return runs[len(runs)/2]
}

func table(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "SCENARIO\tNODES\tRATE\tTLS\tBOUND\tFIRST\tMEDIAN\tLAST\tRATIO\tREGISTRY\tMIRROR\tTWICE\tCPU/GIB\tBUSY\tMEMORY\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%.2f s\t%.2f s\t%.2f s\t%.2f s\t%.3f\t%.3f\t%.3f\t%.2f %%\t%.1f s\t%.0f %%\t%.0f MiB\t\n",
			r.Scenario, r.Nodes, r.Rate, r.Transport, r.BoundS, r.FirstS, r.MedianS, r.LastS, r.Ratio,
			r.OriginCopies, r.MirrorCopies, 100*r.DuplicateRatio, r.CPUNode, 100*r.CPUBusy, r.RSSAnonMiB)
	}
	return t.Flush()
}
