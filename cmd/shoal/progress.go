package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// isTerminal reports whether bars make sense on w.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newBars(w io.Writer) *mpb.Progress {
	return mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithAutoRefresh())
}

func addBar(bars *mpb.Progress, name string, total int64) *mpb.Bar {
	return bars.AddBar(total,
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace), decor.Percentage(decor.WCSyncSpace)))
}

// layerProgress shows layers as they are packed or pulled: a bar each on a terminal, else a line
// for each that ends. done ends the bars.
func layerProgress(w io.Writer) (show func(model.Progress), done func()) {
	if !isTerminal(w) {
		return lines(w), func() {}
	}
	bars := newBars(w)
	var mu sync.Mutex
	byLayer := map[int]*mpb.Bar{}
	show = func(p model.Progress) {
		mu.Lock()
		defer mu.Unlock()
		bar := byLayer[p.Layer]
		if bar == nil {
			name := p.Name
			if p.Reused {
				name += " (reused)"
			}
			bar = addBar(bars, name, p.Size)
			byLayer[p.Layer] = bar
		}
		bar.SetCurrent(p.Done)
	}
	done = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, bar := range byLayer {
			if !bar.Completed() {
				bar.Abort(false) // else Wait waits for ever
			}
		}
		bars.Wait()
	}
	return show, done
}

// lines reports each layer that ends, one line a layer.
func lines(w io.Writer) func(model.Progress) {
	return func(p model.Progress) {
		if p.Done < p.Size {
			return
		}
		how := units.BytesSize(float64(p.Size))
		if p.Reused {
			how += ", reused"
		}
		fmt.Fprintf(w, "layer %d of %d: %s (%s)\n", p.Layer+1, p.Layers, p.Name, how)
	}
}

// nodeProgress shows how far nodes are.
type nodeProgress struct {
	w     io.Writer
	names []string
	bars  *mpb.Progress // nil where w is no terminal
	bar   map[string]*mpb.Bar
	next  time.Time // of the next plain line
}

func newNodeProgress(w io.Writer, names []string) *nodeProgress {
	n := &nodeProgress{w: w, names: names, bar: map[string]*mpb.Bar{}}
	if isTerminal(w) {
		n.bars = newBars(w)
	}
	return n
}

// show takes the nodes' reports on one model.
func (n *nodeProgress) show(all []client.Progress) {
	var have, total int64
	for _, p := range all {
		m := p.Models[0]
		have, total = have+m.Bytes, total+m.Total
		if n.bars == nil || m.Total == 0 {
			continue
		}
		if n.bar[p.Node] == nil {
			n.bar[p.Node] = addBar(n.bars, p.Node, m.Total)
		}
		n.bar[p.Node].SetCurrent(m.Bytes)
	}
	if now := time.Now(); n.bars == nil && total > 0 && now.After(n.next) {
		n.next = now.Add(2 * time.Second)
		fmt.Fprintf(n.w, "%s of %s on %d nodes\n", units.BytesSize(float64(have)), units.BytesSize(float64(total)), len(all))
	}
}

func (n *nodeProgress) done() {
	if n.bars == nil {
		return
	}
	for _, bar := range n.bar {
		if !bar.Completed() {
			bar.Abort(false)
		}
	}
	n.bars.Wait()
}
