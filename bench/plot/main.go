// Command plot draws the results of bench/fanout (JSON, one a line, from stdin) as an SVG on stdout: how
// many times the bound of one node alone each work took, for the last node.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"os"
)

// line is a result, or a baseline where it has a Name.
type line struct {
	Name      string
	Scenario  string
	Transport string
	Nodes     int
	Rate      string
	Ratio     float64
	Commit    string
	Machine   string
}

func (l line) label() string {
	if l.Name != "" {
		return fmt.Sprintf("without Shoal: %s, %d nodes", l.Name, l.Nodes)
	}
	s := fmt.Sprintf("%s, %d nodes at %s", l.Scenario, l.Nodes, l.Rate)
	if l.Transport == "none" {
		s += ", plain text"
	}
	return s
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(r io.Reader, w io.Writer) error {
	var lines []line
	for in := bufio.NewScanner(r); in.Scan(); {
		var l line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return fmt.Errorf("line %d: %w", len(lines)+1, err)
		}
		if l.Ratio <= 0 {
			return fmt.Errorf("line %d has no ratio", len(lines)+1)
		}
		lines = append(lines, l)
	}
	if len(lines) == 0 {
		return errors.New("no results on stdin")
	}
	return draw(w, lines)
}

// Pixels.
const (
	left, width = 330, 420 // of the bars
	row, bar    = 24, 15
	top         = 46
)

func draw(w io.Writer, lines []line) error {
	longest := 2.
	for _, l := range lines {
		longest = max(longest, l.Ratio)
	}
	x := func(ratio float64) float64 { return left + width*ratio/longest }
	height := top + row*len(lines) + 34
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", left+width+60, height)
	fmt.Fprintf(out, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	fmt.Fprintf(out, `<text x="10" y="20" font-size="15">The last node, in times of one node alone</text>`+"\n")
	for i, l := range lines {
		y := top + i*row
		colour := "#1f6f8b"
		if l.Name != "" {
			colour = "#b0b0b0"
		}
		fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, y+12, html.EscapeString(l.label()))
		fmt.Fprintf(out, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y, x(l.Ratio)-left, bar, colour)
		fmt.Fprintf(out, `<text x="%.1f" y="%d">%.2f</text>`+"\n", x(l.Ratio)+5, y+12, l.Ratio)
	}
	bottom := top + row*len(lines)
	fmt.Fprintf(out, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#c0392b" stroke-dasharray="4 3"/>`+"\n", x(1), top-8, x(1), bottom)
	fmt.Fprintf(out, `<text x="%.1f" y="%d" fill="#c0392b" text-anchor="middle">1</text>`+"\n", x(1), top-12)
	for _, l := range lines {
		if l.Commit != "" {
			fmt.Fprintf(out, `<text x="10" y="%d" fill="#666">%s, commit %s</text>`+"\n", bottom+22, html.EscapeString(l.Machine), html.EscapeString(l.Commit))
			break
		}
	}
	fmt.Fprintln(out, `</svg>`)
	return out.Flush()
}
