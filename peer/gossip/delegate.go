package gossip

import (
	"bytes"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist sees of Gossip. Its methods must not block.
type delegate struct{ g *Gossip }

// NodeMeta implements memberlist.Delegate.
func (d delegate) NodeMeta(limit int) []byte {
	raw, err := d.g.meta(limit)
	if err != nil {
		return nil // New has checked it: only the version's digits change
	}
	return raw
}

// NotifyMsg implements memberlist.Delegate; no messages of our own are sent.
func (delegate) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (d delegate) LocalState(bool) []byte {
	return d.g.known.state(d.g.own().wire(d.g.cfg.Name))
}

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(buf []byte, _ bool) {
	state, err := parseState(buf)
	if err != nil {
		d.g.log.Warn("a node sent inventories that cannot be read", "err", err)
		return
	}
	for name, inv := range state {
		if name != d.g.cfg.Name {
			d.g.known.merge(name, inv)
		}
	}
}

// NotifyAlive implements memberlist.AliveDelegate: nodes of another kind are kept out.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	_, err := parseMeta(n.Meta)
	return err
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.g.log.Error("two nodes have one name: give one of them another",
		"name", existing.Name, "addr", existing.Address(), "other", other.Address())
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.g.log.Debug("a node joined", "peer", n.Name, "addr", n.Address())
	d.g.members.note(n)
}

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.g.log.Info("a node left", "peer", n.Name, "addr", n.Address())
	d.g.members.forget(n.Name)
	d.g.known.forget(n.Name)
}

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.g.members.note(n) }

// newLogger hands memberlist's warnings to logger.
func newLogger(logger *slog.Logger) *log.Logger { return log.New(logWriter{logger}, "", 0) }

type logWriter struct{ to *slog.Logger }

// Write implements io.Writer for lines such as "[WARN] memberlist: ...".
func (w logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	switch {
	case bytes.HasPrefix(line, []byte("[ERR]")), bytes.HasPrefix(line, []byte("[WARN]")):
		w.to.Warn("gossip", "detail", text)
	default:
		w.to.Debug("gossip", "detail", text)
	}
	return len(line), nil
}

var _ io.Writer = logWriter{}
