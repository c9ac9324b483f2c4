package tracker

import (
	"cmp"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// maxProgress is the longest progress report in bytes: some hundred models.
	maxProgress = 128 << 10
	// maxError is how much of a model's error text is kept.
	maxError = 1024
)

// progress holds the nodes' last reports.
type progress struct {
	mu    sync.Mutex
	nodes map[string]report
}

type report struct {
	client.Progress
	at time.Time
}

// keep replaces a node's report and returns how many nodes there are; false when limit is reached.
func (p *progress) keep(r report, limit int) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, was := p.nodes[r.Node]; !was && len(p.nodes) >= limit {
		return len(p.nodes), false
	}
	p.nodes[r.Node] = r
	return len(p.nodes), true
}

// forget drops the reports that are older than before, and returns how many are left.
func (p *progress) forget(before time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, r := range p.nodes {
		if r.at.Before(before) {
			delete(p.nodes, name)
		}
	}
	return len(p.nodes)
}

// list returns the reports by node, with their ages.
func (p *progress) list(now time.Time) []client.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]client.Progress, 0, len(p.nodes))
	for _, r := range p.nodes {
		if age := now.Sub(r.at); age <= keepProgress {
			r.AgeMS = age.Milliseconds()
			list = append(list, r.Progress)
		}
	}
	slices.SortFunc(list, func(a, b client.Progress) int { return cmp.Compare(a.Node, b.Node) })
	return list
}

// postProgress answers POST /v1/progress.
func (s *Server) postProgress(w http.ResponseWriter, r *http.Request, who caller) error {
	var wire client.Progress
	if err := decode(w, r, maxProgress, &wire); err != nil {
		return err
	}
	if err := checkName("node", wire.Node); err != nil {
		return err
	}
	if err := who.mayBe(wire.Node); err != nil {
		return err
	}
	for i := range wire.Models {
		m := &wire.Models[i]
		m.Error = m.Error[:min(len(m.Error), maxError)]
	}
	n, ok := s.progress.keep(report{wire, s.cfg.Now()}, s.cfg.MaxNodes)
	if !ok {
		return refuse(http.StatusServiceUnavailable, "%d nodes report progress already, the tracker's limit: raise it", n)
	}
	s.metrics.progressNodes.Set(float64(n))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getProgress answers GET /v1/progress.
func (s *Server) getProgress(w http.ResponseWriter, _ *http.Request, _ caller) error {
	return writeJSON(w, http.StatusOK, s.progress.list(s.cfg.Now()))
}
