package gossip

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/hashicorp/memberlist"
)

// meta is what a node says of itself in memberlist's metadata, which has 512 bytes.
type meta struct {
	Format  int    `json:"v"`
	Swarm   string `json:"s"`
	API     string `json:"a"`
	Zone    string `json:"z,omitempty"`
	Rack    string `json:"r,omitempty"`
	Version int64  `json:"i"` // of the inventory
}

const metaFormat = 1

// meta returns this node's metadata, of at most limit bytes.
func (g *Gossip) meta(limit int) ([]byte, error) {
	raw, err := json.Marshal(meta{metaFormat, g.cfg.Swarm, g.cfg.API, g.cfg.Zone, g.cfg.Rack, g.version.Load()})
	if err != nil {
		return nil, err
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("zone (%d bytes) and rack (%d bytes) are too long: with the addresses they make %d bytes, the limit is %d",
			len(g.cfg.Zone), len(g.cfg.Rack), len(raw), limit)
	}
	return raw, nil
}

// parseMeta reads another node's metadata.
func parseMeta(raw []byte) (meta, error) {
	var m meta
	if len(raw) > memberlist.MetaMaxSize {
		return m, fmt.Errorf("metadata of %d bytes", len(raw))
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, fmt.Errorf("metadata: %w", err)
	}
	if m.Format != metaFormat {
		return m, fmt.Errorf("metadata of format %d, this node reads %d", m.Format, metaFormat)
	}
	for _, addr := range []string{m.Swarm, m.API} {
		if _, err := netip.ParseAddrPort(addr); err != nil {
			return m, fmt.Errorf("metadata: address %q: want IP:port", addr)
		}
	}
	return m, nil
}

func (m meta) member(name string) Member {
	return Member{Name: name, Zone: m.Zone, Rack: m.Rack, Swarm: m.Swarm, API: m.API}
}
