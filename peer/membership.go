package peer

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/swarm"
	"github.com/shoal-project/shoal/tracker/client"
)

// membership is the node's part in one swarm while it runs.
type membership struct {
	seed    *seed
	key     client.Key
	session *swarm.Session
	cancel  context.CancelFunc
	ended   chan struct{} // Run has returned
	err     error         // of Run; read after ended
}

// join makes the node a member of t's swarm. The bytes of t lie at offset in the seed's blob as the
// origins have it. The caller calls stop.
func (sd *seed) join(ctx context.Context, t swarm.Torrent, storage swarm.Storage, offset int64) (*membership, error) {
	cfg := sd.all.cfg
	blob := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sd.key.Digest, Size: sd.size}
	var origins []swarm.Origin
	for _, repo := range sd.repos {
		origins = append(origins, rangeOrigin{repo, blob, offset})
	}
	key := client.Key{Digest: t.Digest, Root: t.Root}
	session, err := cfg.Swarm.Join(t, storage, swarm.JoinConfig{
		Name: cfg.Name, Origins: origins, Leaser: newAnnouncer(cfg, sd.all.contact, key, t.Size),
	})
	if err != nil {
		return nil, err
	}
	work, cancel := context.WithCancel(ctx)
	m := &membership{seed: sd, key: key, session: session, cancel: cancel, ended: make(chan struct{})}
	sd.mu.Lock()
	sd.live = append(sd.live, m)
	sd.mu.Unlock()
	sd.all.changed()
	go func() {
		defer close(m.ended)
		m.err = session.Run(work)
	}()
	return m, nil
}

// underWay reports whether pieces are still to come.
func (m *membership) underWay() bool {
	select {
	case <-m.ended:
		return false
	default:
		return m.session.Missing() > 0
	}
}

// stop leaves the swarm and returns why the session could not go on, nil where it could have.
func (m *membership) stop() error {
	m.cancel()
	<-m.ended
	sd := m.seed
	sd.mu.Lock()
	for i, other := range sd.live {
		if other == m {
			sd.live = append(sd.live[:i:i], sd.live[i+1:]...)
			break
		}
	}
	sd.past = add(sd.past, m.session.Stats())
	sd.mu.Unlock()
	sd.all.changed()
	return m.err
}
