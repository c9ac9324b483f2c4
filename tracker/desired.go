package tracker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

const (
	// maxDesired is the longest desired set in bytes: 100 models on 5,000 nodes that are all named.
	maxDesired = 32 << 20
	// maxModels bounds its models, each of which every node's view may hold.
	maxModels = 10_000
	// maxReference is far above what registries take.
	maxReference = 1024
)

// desired is the desired set, once a controller has written one.
type desired struct {
	mu      sync.Mutex
	set     *desiredSet
	changed chan struct{} // closed and replaced with each write
}

// desiredSet is one desired set; it is never changed.
type desiredSet struct {
	all    []client.DesiredModel // sorted by name
	forAll []int                 // models without nodes
	byNode map[string][]int      // models that name the node
}

func (d *desired) current() (*desiredSet, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.set, d.changed
}

func (d *desired) replace(set *desiredSet) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.set = set
	close(d.changed)
	d.changed = make(chan struct{})
}

// newDesiredSet checks models and brings them in one order, so that a set has one revision
// however a controller happens to list it. It takes models over.
func newDesiredSet(models []client.DesiredModel) (*desiredSet, error) {
	if len(models) > maxModels {
		return nil, refuse(http.StatusBadRequest, "desired set has %d models: send at most %d", len(models), maxModels)
	}
	slices.SortFunc(models, func(a, b client.DesiredModel) int { return cmp.Compare(a.Name, b.Name) })
	d := &desiredSet{all: models, byNode: map[string][]int{}}
	for i := range models {
		m := &models[i]
		if err := checkName("a model's name", m.Name); err != nil {
			return nil, err
		}
		if i > 0 && m.Name == models[i-1].Name {
			return nil, refuse(http.StatusBadRequest, "model %q is twice in the desired set: name the nodes of both in one", m.Name)
		}
		if m.Reference == "" {
			return nil, refuse(http.StatusBadRequest, "model %q has no reference: give registry/repository:tag or @digest", m.Name)
		}
		if m.Tier != "" && m.Tier != client.TierDisk && m.Tier != client.TierMemory {
			return nil, refuse(http.StatusBadRequest, "model %q has the tier %.100q: want %s or %s", m.Name, m.Tier, client.TierDisk, client.TierMemory)
		}
		if err := checkText("a model's reference", m.Reference, maxReference); err != nil {
			return nil, err
		}
		if len(m.Nodes) == 0 {
			m.Nodes = nil
			d.forAll = append(d.forAll, i)
		}
		slices.Sort(m.Nodes)
		m.Nodes = slices.Compact(m.Nodes)
		for _, n := range m.Nodes {
			if err := checkName("a node's name", n); err != nil {
				return nil, err
			}
			d.byNode[n] = append(d.byNode[n], i)
		}
	}
	return d, nil
}

// view returns the set as node sees it, or the whole of it for node "".
func (d *desiredSet) view(node string) (client.DesiredReply, error) {
	models := d.all
	if node != "" {
		which := slices.Concat(d.forAll, d.byNode[node])
		slices.Sort(which)
		models = make([]client.DesiredModel, len(which))
		for i, m := range which {
			models[i] = d.all[m]
			models[i].Nodes = nil
		}
	}
	wire, err := json.Marshal(models)
	if err != nil {
		return client.DesiredReply{}, err
	}
	sum := sha256.Sum256(wire)
	return client.DesiredReply{Revision: hex.EncodeToString(sum[:16]), Models: models}, nil
}

// putDesired answers PUT /v1/desired.
func (s *Server) putDesired(w http.ResponseWriter, r *http.Request, _ caller) error {
	var wire client.Desired
	if err := decode(w, r, maxDesired, &wire); err != nil {
		return err
	}
	if wire.Models == nil {
		return refuse(http.StatusBadRequest, `desired set has no "models": send an empty list if nothing is desired`)
	}
	set, err := newDesiredSet(wire.Models)
	if err != nil {
		return err
	}
	s.desired.replace(set)
	s.metrics.desiredModels.Set(float64(len(set.all)))
	s.log.InfoContext(r.Context(), "desired set replaced", "models", len(set.all))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getDesired answers GET /v1/desired?node=&revision=&wait=&epoch=.
func (s *Server) getDesired(w http.ResponseWriter, r *http.Request, _ caller) error {
	q := r.URL.Query()
	node := q.Get("node")
	if err := checkText("node", node, maxName); err != nil {
		return err
	}
	var wait time.Duration
	if text := q.Get("wait"); text != "" {
		var err error
		if wait, err = time.ParseDuration(text); err != nil {
			return refuse(http.StatusBadRequest, "wait %.40q: want a duration such as 30s", text)
		}
	}
	epoch := q.Get("epoch")
	s.grace.heard(s.cfg.Now(), false, epoch != "" && epoch != s.epoch)
	ctx, cancel := context.WithTimeout(r.Context(), min(max(wait, 0), client.MaxWait))
	defer cancel()
	reply, err := s.awaitDesired(ctx, node, q.Get("revision"))
	switch {
	case r.Context().Err() != nil:
		return r.Context().Err()
	case err != nil:
		return err
	case reply == nil:
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return writeJSON(w, http.StatusOK, reply)
}

// awaitDesired returns node's view when it has another revision, or at the end of ctx or of the
// Server what there is then; nil as long as no controller has written.
func (s *Server) awaitDesired(ctx context.Context, node, revision string) (*client.DesiredReply, error) {
	for {
		set, changed := s.desired.current()
		var reply *client.DesiredReply
		if set != nil {
			view, err := set.view(node)
			if err != nil {
				return nil, err
			}
			view.Epoch = s.epoch
			reply = &view
			if view.Revision != revision {
				return reply, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return reply, nil
		case <-s.stopped:
			return reply, nil
		}
	}
}
