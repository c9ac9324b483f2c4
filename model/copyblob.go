package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
)

// copyBlob brings blob i into the target, by the cheapest way there is.
func (c *copier) copyBlob(ctx context.Context, i int) error {
	desc := c.blobs[i]
	switch size, err := c.to.BlobSize(ctx, desc.Digest); {
	case err == nil && size != desc.Size:
		return fmt.Errorf("blob %s has %d bytes in %s, and %d by the manifest in %s: one of them is damaged, push the image again", desc.Digest, size, c.to.Name(), desc.Size, c.from.Name())
	case err == nil:
		c.present.Add(desc.Size)
		c.progress(i, desc.Size, true)
		return nil
	case !errors.Is(err, errdef.ErrNotFound):
		return err
	}
	for _, repository := range c.mountFrom {
		mounted, err := c.to.MountBlob(ctx, desc.Digest, repository)
		if err != nil {
			return err
		}
		if mounted {
			c.mounted.Add(desc.Size)
			c.progress(i, desc.Size, true)
			return nil
		}
	}
	send := c.sendLarge
	if desc.Size <= uploadChunk {
		send = c.sendSmall
	}
	if err := send(ctx, i); err != nil {
		return fmt.Errorf("copy blob %s from %s to %s: %w", desc.Digest, c.from.Name(), c.to.Name(), err)
	}
	c.progress(i, desc.Size, false)
	return nil
}

// sendSmall copies a blob of one chunk.
func (c *copier) sendSmall(ctx context.Context, i int) error {
	desc := c.blobs[i]
	stream := newBlobStream(c.from, desc)
	defer stream.close()
	buf := make([]byte, desc.Size)
	if _, _, err := stream.fill(ctx, buf); err != nil {
		return err
	}
	if err := stream.verify(); err != nil {
		return err
	}
	if err := c.to.Push(ctx, desc, bytes.NewReader(buf)); err != nil {
		return err
	}
	c.sent.Add(desc.Size)
	return nil
}

// sendLarge copies a blob in chunks, from where a killed copy left off.
func (c *copier) sendLarge(ctx context.Context, i int) error {
	state := openBlobState(c.state, c.blobs[i].Digest)
	for try := 1; ; try++ {
		err := c.sendChunks(ctx, i, state)
		if !errors.Is(err, errUploadLost) || try == uploadTries {
			return err
		}
		c.log.Info("the registry lost an upload, the blob begins again", "digest", c.blobs[i].Digest, "error", err)
		state.saved = savedBlob{}
	}
}

func (c *copier) sendChunks(ctx context.Context, i int, state *blobState) error {
	desc := c.blobs[i]
	stream := newBlobStream(c.from, desc)
	defer stream.close()
	up := &blobUpload{copier: c, index: i, state: state}
	if err := up.resume(ctx, stream); err != nil {
		return err
	}
	resumed := up.location != ""
	if !resumed {
		var err error
		if up.location, err = c.to.StartUpload(ctx); err != nil {
			return err
		}
	}
	present := up.has
	if err := alternate(ctx, stream.fill, up.send); err != nil {
		// Nobody goes on with an upload that is not written down. A registry that is down keeps it.
		if (state.file == "" || up.has == 0) && !registry.Unavailable(err) {
			up.cancel(ctx)
		}
		return err
	}
	if err := stream.verify(); err != nil {
		up.cancel(ctx)
		state.remove()
		if resumed { // it may be the state that is damaged, not the source
			err = fmt.Errorf("%w: %w", errUploadLost, err)
		}
		return err
	}
	if err := c.to.CommitUpload(ctx, up.location, desc.Digest, desc.Size); err != nil {
		return uploadError(err)
	}
	c.sent.Add(desc.Size - present)
	c.present.Add(present)
	return nil
}

// blobUpload is one blob's way into the target: the next chunk is read and hashed while the last one
// is sent.
type blobUpload struct {
	*copier
	index    int
	state    *blobState
	location string
	has      int64 // what the registry has of the blob
}

// resume puts stream where the state left off, if the registry still has that much. Bytes that it
// has beyond are read and hashed again, not sent.
func (u *blobUpload) resume(ctx context.Context, stream *blobStream) error {
	saved := u.state.saved
	if saved.Location == "" {
		return nil
	}
	location, has, err := u.to.UploadStatus(ctx, saved.Location)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case registry.Unavailable(err):
		return err // the upload may be there when the registry is back
	case err != nil:
		return fmt.Errorf("%w: %w", errUploadLost, err)
	case has < saved.At || has > stream.desc.Size:
		return fmt.Errorf("%w: it has %d bytes of %d", errUploadLost, has, saved.At)
	}
	if err := stream.seek(saved); err != nil {
		return fmt.Errorf("%w: saved state: %w", errUploadLost, err)
	}
	u.location, u.has = location, has
	u.log.Debug("upload goes on", "digest", stream.desc.Digest, "bytes", saved.At)
	return nil
}

// cancel frees what the upload holds in the registry, or leaves it to the registry's own purger: not
// every one lets uploads be cancelled.
func (u *blobUpload) cancel(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	if err := u.to.CancelUpload(ctx, u.location); err != nil {
		u.log.Debug("an upload is left behind", "digest", u.blobs[u.index].Digest, "error", err)
	}
}

// send brings a chunk into the registry and writes down how far the blob is.
func (u *blobUpload) send(ctx context.Context, c blobChunk) error {
	end := c.start + int64(len(c.buf))
	if u.has < end {
		skip := max(u.has-c.start, 0)
		location, err := u.to.UploadChunk(ctx, u.location, c.start+skip, c.buf[skip:])
		if err != nil {
			return uploadError(err)
		}
		u.location, u.has = location, end
	}
	if u.has == end {
		if err := u.state.accept(savedBlob{Location: u.location, At: end, Sum: c.sum}); err != nil {
			return fmt.Errorf("state of the copy: %w", err)
		}
	}
	if end < u.blobs[u.index].Size {
		u.progress(u.index, end, false) // the end is told when the blob is committed
	}
	return nil
}

// blobChunk is a piece of a blob, and the marshaled hash of all up to its end.
type blobChunk struct {
	buf   []byte
	start int64
	sum   []byte
}

// blobStream reads a blob in order and hashes it on the way. It belongs to one goroutine.
type blobStream struct {
	from *registry.Repository
	desc ocispec.Descriptor
	at   int64
	sum  hash.Hash
	body io.ReadCloser // nil before the first read
}

// newBlobStream begins at byte 0.
func newBlobStream(from *registry.Repository, desc ocispec.Descriptor) *blobStream {
	return &blobStream{from: from, desc: desc, sum: desc.Digest.Algorithm().Hash()}
}

// fill reads the next len(buf) bytes of the blob, fewer only at its end; false means that nothing was
// left. ctx is that of the first call for all later ones.
func (s *blobStream) fill(ctx context.Context, buf []byte) (blobChunk, bool, error) {
	if s.at == s.desc.Size {
		return blobChunk{}, false, nil
	}
	if s.body == nil {
		var err error
		if s.body, err = s.from.OpenRange(ctx, s.desc, s.at, s.desc.Size-s.at); err != nil {
			return blobChunk{}, false, err
		}
	}
	c := blobChunk{buf: buf[:min(int64(len(buf)), s.desc.Size-s.at)], start: s.at}
	if _, err := io.ReadFull(s.body, c.buf); err != nil {
		return c, false, err
	}
	s.sum.Write(c.buf)
	s.at += int64(len(c.buf))
	var err error
	c.sum, err = marshalHash(s.sum)
	return c, true, err
}

// seek puts a new stream where a saved one was.
func (s *blobStream) seek(saved savedBlob) error {
	if saved.At < 0 || saved.At > s.desc.Size {
		return errors.New("position does not fit the blob")
	}
	s.at = saved.At
	return unmarshalHash(s.sum, saved.Sum)
}

// verify compares the digest when all bytes have passed.
func (s *blobStream) verify() error {
	if got := digest.NewDigest(s.desc.Digest.Algorithm(), s.sum); got != s.desc.Digest {
		return fmt.Errorf("the %d bytes that %s serves are %s: it is damaged there, push the image again", s.at, s.from.Name(), got)
	}
	return nil
}

// close ends the read.
func (s *blobStream) close() {
	if s.body != nil {
		s.body.Close()
	}
}

// blobState is what is kept of one blob's upload.
type blobState struct {
	file  string // empty: nothing is kept
	saved savedBlob
}

// savedBlob says how far an upload is. Nothing of it is believed that does not fit, and the digest
// decides at the end: a damaged file costs an upload, no more.
type savedBlob struct {
	// Location is where the upload goes on, from byte At.
	Location string `json:"location"`
	At       int64  `json:"at"`
	// Sum is the marshaled hash of the blob up to At.
	Sum []byte `json:"sum"`
}

// openBlobState reads what was kept of the upload of d, if anything was.
func openBlobState(folder *stateFolder, d digest.Digest) *blobState {
	if folder.dir == "" {
		return &blobState{}
	}
	s := &blobState{file: filepath.Join(folder.dir, d.Algorithm().String()+"-"+d.Encoded()+".json")}
	raw, err := os.ReadFile(s.file)
	if err != nil || json.Unmarshal(raw, &s.saved) != nil {
		s.saved = savedBlob{}
	}
	return s
}

// accept writes down that the registry has the blob up to saved.At.
func (s *blobState) accept(saved savedBlob) error {
	if s.file == "" {
		return nil
	}
	raw, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	return replaceFile(s.file, raw)
}

// remove forgets the upload.
func (s *blobState) remove() {
	if s.file != "" {
		os.Remove(s.file)
	}
}
