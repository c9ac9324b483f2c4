package gossip

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/certs"
)

const (
	// inventoryPath answers with the node's wireInventory.
	inventoryPath = "/v1/inventory"
	// askSample is how many members with a newer inventory are asked for it at once: in a large
	// region push/pull brings the rest.
	askSample = 16
	// askAtOnce is how many of these requests run side by side.
	askAtOnce = 8
	// askTimeout bounds a request.
	askTimeout = time.Second
	// askAgain is how soon a member is asked again: it may have changed, or not have answered.
	askAgain = 500 * time.Millisecond
	// maxAnswer bounds an inventory in JSON, in bytes.
	maxAnswer = 12*maxInventory + 1024
)

// own is this node's inventory.
func (g *Gossip) own() inventory {
	version := g.version.Load() // first: the keys may be newer than it says, never older
	return newInventory(version, g.cfg.Inventory())
}

// Handler answers the other nodes: GET /v1/inventory.
func (g *Gossip) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+inventoryPath, func(w http.ResponseWriter, r *http.Request) {
		if g.cfg.Identify != nil {
			if id, ok := g.cfg.Identify(r); !ok || (id.Role != certs.Node && id.Role != certs.Mirror && id.Role != certs.Controller) {
				http.Error(w, "inventories are for nodes, mirrors and controllers: show such a certificate", http.StatusForbidden)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g.own().wire(g.cfg.Name)) // the asker is gone where this fails
	})
	return mux
}

// WhoHas returns the live members that take part in the swarm key, those of this node's rack first,
// then those of its zone; this node is not among them. It asks a sample of the members whose
// inventory has changed, which takes about a second at most.
func (g *Gossip) WhoHas(ctx context.Context, key string) []Member {
	p := prefixOf(key)
	var members []Member
	var stale []Member
	now := time.Now()
	for _, m := range g.members.all() {
		if m.Name == g.cfg.Name {
			continue
		}
		members = append(members, m.Member)
		if g.known.version(m.Name) < m.version && g.mayAsk(m.Name, now) {
			stale = append(stale, m.Member)
		}
	}
	g.ask(ctx, stale)
	members = slices.DeleteFunc(members, func(m Member) bool { return !g.known.has(m.Name, p) })
	slices.SortFunc(members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(g.distance(a), g.distance(b)), cmp.Compare(a.Name, b.Name))
	})
	return members
}

func (g *Gossip) distance(m Member) int {
	switch {
	case m.Zone != g.cfg.Zone:
		return 2
	case m.Rack != g.cfg.Rack:
		return 1
	}
	return 0
}

// mayAsk reports whether a member was not asked just now, and notes that it is.
func (g *Gossip) mayAsk(name string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(g.asked[name]) < askAgain {
		return false
	}
	if len(g.asked) > maxMembers {
		clear(g.asked)
	}
	g.asked[name] = now
	return true
}

// ask brings the inventories of a sample of members up to date.
func (g *Gossip) ask(ctx context.Context, members []Member) {
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	var group errgroup.Group
	group.SetLimit(askAtOnce)
	for _, m := range members[:min(len(members), askSample)] {
		group.Go(func() error {
			inv, err := g.inventoryOf(ctx, m)
			if err != nil {
				g.log.Debug("a node does not say what it has", "peer", m.Name, "err", err)
				return nil // the others count
			}
			g.known.merge(m.Name, inv)
			return nil
		})
	}
	_ = group.Wait() // no function above returns an error
}

func (g *Gossip) inventoryOf(ctx context.Context, m Member) (inventory, error) {
	scheme := "https"
	if g.cfg.TLS == nil {
		scheme = "http"
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+m.API+inventoryPath, nil)
	if err != nil {
		return inventory{}, err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return inventory{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return inventory{}, fmt.Errorf("status %s", resp.Status)
	}
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		// The address came by gossip: whoever answers there speaks for its own name only.
		id, err := certs.Of(resp.TLS.PeerCertificates[0])
		if err != nil || id.Name != m.Name {
			return inventory{}, fmt.Errorf("%s answers as %s, not as %s", m.API, id, m.Name)
		}
	}
	return parseAnswer(io.LimitReader(resp.Body, maxAnswer), m.Name)
}

func parseAnswer(r io.Reader, name string) (inventory, error) {
	var w wireInventory
	if err := json.NewDecoder(r).Decode(&w); err != nil {
		return inventory{}, err
	}
	if w.Name != name {
		return inventory{}, fmt.Errorf("the inventory is of %.100q", w.Name)
	}
	return w.parse()
}
