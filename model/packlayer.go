package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
)

// packLayer brings layer i into the registry, by the cheapest way there is.
func (p *packer) packLayer(ctx context.Context, i int) (Layer, error) {
	if old, ok, err := p.previous.find(ctx, p.groups[i]); err != nil || ok {
		if ok {
			p.reused.Add(1)
			p.progress(i, old.Size, true)
		}
		return old, err
	}
	state, err := p.state.layer(p.groups[i])
	if err != nil {
		return Layer{}, err
	}
	if done := state.saved.Done; done != nil {
		ok, err := inRepository(ctx, p.target, *done)
		if err != nil {
			return Layer{}, err
		}
		if ok {
			p.learn(*done)
			p.progress(i, done.Size, false)
			return *done, nil
		}
		state.reset()
	}
	for try := 1; ; try++ {
		layer, err := p.sendLayer(ctx, i, state)
		if err == nil {
			return layer, nil
		}
		if _, wrong := errors.AsType[*ChecksumError](err); wrong {
			// What was sent of the layer is damaged: going on from there would fail for ever.
			return Layer{}, errors.Join(err, state.forget())
		}
		if !errors.Is(err, errUploadLost) || try == uploadTries {
			return Layer{}, err
		}
		p.log.Info("the registry lost an upload, the layer begins again", "layer", layerName(p.layers[i]), "error", err)
		state.reset()
	}
}

// sendLayer streams one layer, from where state left off.
func (p *packer) sendLayer(ctx context.Context, i int, state *layerState) (Layer, error) {
	stream := newLayerStream(p.source, p.layers[i], p.groups[i], &p.read)
	defer stream.close()
	up := &layerUpload{packer: p, index: i, state: state}
	if err := up.resume(ctx, stream); err != nil {
		return Layer{}, err
	}
	if up.location == "" {
		var err error
		if up.location, err = p.target.StartUpload(ctx); err != nil {
			return Layer{}, err
		}
	}
	if err := up.run(ctx, stream); err != nil {
		return Layer{}, err
	}
	layer, hashes := stream.finish()
	for m, f := range p.groups[i] {
		if f.Checksum != "" && !strings.HasPrefix(f.Checksum, "sha256:") {
			layer.Members[m].Source = f.Checksum
		}
	}
	if err := p.target.CommitUpload(ctx, up.location, layer.Digest, layer.Size); err != nil {
		return Layer{}, uploadError(err)
	}
	wire, err := hashes.MarshalBinary()
	if err != nil {
		return Layer{}, err
	}
	if err := p.push(ctx, document{desc: hashLayerDescriptor(layer), raw: wire}); err != nil {
		return Layer{}, err
	}
	if err := state.done(layer); err != nil {
		return Layer{}, fmt.Errorf("state of the pack: %w", err)
	}
	p.learn(layer)
	p.progress(i, layer.Size, false)
	return layer, nil
}

// layerUpload is one layer's way into the registry: the next chunk is read and hashed while the last
// one is sent.
type layerUpload struct {
	*packer
	index    int
	state    *layerState
	location string
	has      int64 // what the registry has of the layer
}

// resume puts stream where the state left off, if the registry still has that much. Bytes that it
// has beyond are read and hashed again, not sent.
func (u *layerUpload) resume(ctx context.Context, stream *layerStream) error {
	saved := u.state.saved
	if saved.Position == nil {
		return nil
	}
	location, has, err := u.target.UploadStatus(ctx, saved.Location)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		// Whatever the registry says here, the way out is the same, and a registry that is down
		// refuses the new upload too.
		return fmt.Errorf("%w: %w", errUploadLost, err)
	}
	if has < saved.Position.At || has > stream.layer.Size {
		return fmt.Errorf("%w: it has %d bytes of %d", errUploadLost, has, saved.Position.At)
	}
	if err := stream.seek(saved.Position); err != nil {
		return fmt.Errorf("%w: saved state: %w", errUploadLost, err)
	}
	u.location, u.has = location, has
	u.log.Debug("upload goes on", "layer", layerName(u.layers[u.index]), "bytes", saved.Position.At)
	return nil
}

// chunk is a piece of the layer and the stream's position after it.
type chunk struct {
	buf   []byte
	start int64
	next  *position // nil at the layer's end
}

func (u *layerUpload) run(ctx context.Context, stream *layerStream) error {
	return alternate(ctx, func(ctx context.Context, buf []byte) (chunk, bool, error) {
		if stream.at == stream.layer.Size {
			return chunk{}, false, nil
		}
		// After a resume the first chunk ends at the next multiple, so that each can be saved.
		start := stream.at
		n, err := stream.fill(ctx, buf[:uploadChunk-start%uploadChunk])
		if err != nil {
			return chunk{}, false, err
		}
		c := chunk{buf: buf[:n], start: start}
		c.next, err = stream.position()
		return c, true, err
	}, u.send)
}

// send brings a chunk into the registry and writes down how far the layer is.
func (u *layerUpload) send(ctx context.Context, c chunk) error {
	end := c.start + int64(len(c.buf))
	if u.has < end {
		skip := max(u.has-c.start, 0)
		location, err := u.target.UploadChunk(ctx, u.location, c.start+skip, c.buf[skip:])
		if err != nil {
			return uploadError(err)
		}
		u.location, u.has = location, end
		u.sent.Add(int64(len(c.buf)) - skip)
	}
	if c.next != nil && u.has == end {
		if err := u.state.accept(u.location, c.next); err != nil {
			return fmt.Errorf("state of the pack: %w", err)
		}
	}
	if end < u.layers[u.index].Size {
		u.progress(u.index, end, false) // the end is told when the layer is committed
	}
	return nil
}

// push sends a document unless the registry has it.
func (p *packer) push(ctx context.Context, d document) error {
	ok, err := p.target.Exists(ctx, d.desc)
	if err != nil || ok {
		return err
	}
	p.sent.Add(int64(len(d.raw)))
	return p.target.Push(ctx, d.desc, bytes.NewReader(d.raw))
}
