package tracker

import (
	"net/http"
	"net/netip"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
	"github.com/shoal-project/shoal/tracker/lease"
)

const (
	// maxAnnounce is the longest announce in bytes: a bitmap in base64, the lists, and room for more.
	maxAnnounce = model.MaxPieces/8*4/3 + 32<<10
	// maxBlob keeps the arithmetic of sizes far from its end. Registries have nothing near 1 PiB.
	maxBlob = 1 << 50
)

// announced is an announce that was checked.
type announced struct {
	id     swarmID
	peer   client.Peer
	have   lease.Bitmap
	open   []int
	stuck  []int
	doubts []string
	alone  bool
	want   lease.Want
	left   bool
	fresh  bool // the node has no reply of ours yet
}

// announce answers POST /v1/swarms/{key}/announce.
func (s *Server) announce(w http.ResponseWriter, r *http.Request, who caller) error {
	key, err := pathKey(r)
	if err != nil {
		return err
	}
	var wire client.Announce
	if err := decode(w, r, maxAnnounce, &wire); err != nil {
		return err
	}
	a, err := checkAnnounce(key, wire)
	if err != nil {
		return err
	}
	if err := who.mayBe(wire.Node); err != nil {
		return err
	}
	a.fresh = wire.Epoch != s.epoch
	s.grace.heard(s.cfg.Now(), true, a.fresh && wire.Epoch != "")
	for {
		sw, err := s.find(a.id, a.left)
		if err != nil {
			return err
		}
		if sw == nil {
			return writeJSON(w, http.StatusOK, s.newReply())
		}
		reply, ok, err := sw.take(a)
		if err != nil {
			return err
		}
		if ok {
			s.metrics.announces.Inc()
			return writeJSON(w, http.StatusOK, reply)
		}
		s.drop(sw)
	}
}

func (s *Server) newReply() client.AnnounceReply {
	return client.AnnounceReply{Epoch: s.epoch, IntervalMS: s.cfg.Lease.Interval.Milliseconds()}
}

func pathKey(r *http.Request) (client.Key, error) {
	key, err := client.ParseKey(r.PathValue("key"))
	if err != nil {
		return client.Key{}, refuse(http.StatusBadRequest, "%v", err)
	}
	return key, nil
}

// checkAnnounce checks everything that a node says, whoever it is.
func checkAnnounce(key client.Key, wire client.Announce) (announced, error) {
	none := announced{}
	if err := checkName("node", wire.Node); err != nil {
		return none, err
	}
	if err := checkSize(wire.Size); err != nil {
		return none, err
	}
	a := announced{
		id:   swarmID{key: key, size: wire.Size},
		peer: client.Peer{Node: wire.Node, Zone: wire.Zone, Rack: wire.Rack},
		left: wire.Left,
	}
	if a.left {
		return a, nil
	}
	var err error
	if a.peer.Addr, err = checkAddr(wire.Addr); err != nil {
		return none, err
	}
	if err := checkText("zone", wire.Zone, maxLabel); err != nil {
		return none, err
	}
	if err := checkText("rack", wire.Rack, maxLabel); err != nil {
		return none, err
	}
	pieces := model.NumPieces(wire.Size)
	if a.have, err = lease.ParseBitmap(wire.Have, pieces); err != nil {
		return none, refuse(http.StatusBadRequest,
			"have: %v: derive the pieces from the size %d as this version of Shoal does", err, wire.Size)
	}
	if wire.Complete {
		a.have = lease.FullBitmap(pieces)
	}
	a.peer.Complete = wire.Complete || a.have.Count() == pieces
	a.open = wire.Open[:min(len(wire.Open), client.MaxOpen)]
	a.stuck = wire.Stuck[:min(len(wire.Stuck), client.MaxStuck)]
	a.doubts = wire.Doubts[:min(len(wire.Doubts), client.MaxDoubts)]
	a.alone = wire.Alone
	a.want = lease.Want{Origin: min(max(wire.Want, 0), client.MaxWant), Imports: min(max(wire.WantImports, 0), client.MaxWant)}
	return a, nil
}

func checkSize(size int64) error {
	if size <= 0 || size > maxBlob {
		return refuse(http.StatusBadRequest, "size %d: want the blob's size in bytes, at least 1 (an empty blob needs no swarm)", size)
	}
	return nil
}

// checkAddr returns the canonical form of an address that others can dial.
func checkAddr(addr string) (string, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
		return "", refuse(http.StatusBadRequest, "addr %.100q: want the IP:PORT at which other nodes reach this one", addr)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String(), nil
}
