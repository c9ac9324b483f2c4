package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// figures are those of one way to carry the model.
type figures struct {
	MBs      float64 `json:"mb_s"`
	Checked  float64 `json:"mb_s_checked,omitempty"` // until the sha256 of the whole was checked too, shoal only
	Sender   float64 `json:"cpu_s_per_gib_sender"`
	Receiver float64 `json:"cpu_s_per_gib_receiver"`
	Memory   float64 `json:"rss_anon_mib_receiver,omitempty"`
}

func (f figures) both() float64 { return f.Sender + f.Receiver }

// result is what was measured over one transport.
type result struct {
	Transport string   `json:"transport"`
	Shoal     figures  `json:"shoal"`
	HTTP      figures  `json:"http"`
	Curl      *figures `json:"curl,omitempty"` // nil: there is no curl here
	// CPURatio is the CPU of both sides, shoal's without the sha256 of the whole, over that of HTTP, and
	// SpeedRatio that of the rates. Both are taken within a run: the machine may be slower in another.
	CPURatio   float64 `json:"cpu_ratio"`
	SpeedRatio float64 `json:"speed_ratio"`
}

// report is the JSON object of the last line.
type report struct {
	Size     int64    `json:"size"`
	Runs     int      `json:"runs"`
	CPUs     int      `json:"cpus"`
	Digest   float64  `json:"cpu_s_per_gib_digest"` // reading the whole from the page cache and hashing it
	Results  []result `json:"results"`
	Verified bool     `json:"verified"`
}

const (
	maxCPURatio   = 1.25
	minSpeedRatio = 0.8
)

// median takes each figure's own median.
func median(runs []figures) figures {
	of := func(get func(figures) float64) float64 {
		var all []float64
		for _, r := range runs {
			all = append(all, get(r))
		}
		return middle(all)
	}
	return figures{
		of(func(f figures) float64 { return f.MBs }), of(func(f figures) float64 { return f.Checked }), of(func(f figures) float64 { return f.Sender }),
		of(func(f figures) float64 { return f.Receiver }), of(func(f figures) float64 { return f.Memory }),
	}
}

// middle is the median.
func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

func (r report) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "TRANSPORT\tBY\tMB/S\tCHECKED\tSENDER\tRECEIVER\tBOTH\tLESS DIGEST\tMEMORY\t")
	for _, x := range r.Results {
		row := func(by string, f figures, checked, less, memory string) {
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%s\t%.2f\t%.2f\t%.2f\t%s\t%s\t\n", x.Transport, by, f.MBs, checked, f.Sender, f.Receiver, f.both(), less, memory)
		}
		row("shoal", x.Shoal, fmt.Sprintf("%.0f", x.Shoal.Checked), fmt.Sprintf("%.2f", x.Shoal.both()-r.Digest), fmt.Sprintf("%.0f MiB", x.Shoal.Memory))
		row("http", x.HTTP, "", "", "")
		if x.Curl != nil {
			row("curl", *x.Curl, "", "", "")
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "digest of the whole: %.2f CPU s/GiB\n", r.Digest)
	for _, x := range r.Results {
		fmt.Fprintf(w, "%s: CPU %.2f x http (bound %.2f: %s), speed %.2f x http (bound %.2f: %s)\n", x.Transport,
			x.CPURatio, maxCPURatio, verdict(x.CPURatio <= maxCPURatio), x.SpeedRatio, minSpeedRatio, verdict(x.SpeedRatio >= minSpeedRatio))
	}
	return nil
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "NOT met"
}
