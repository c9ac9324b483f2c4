package model

import (
	"context"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// layerStream makes a layer's bytes from the source, in order, and hashes them on the way. It
// belongs to one goroutine.
type layerStream struct {
	source Source
	files  []File
	layer  Layer // SHA256 of a member is set when its last byte has passed
	read   *atomic.Int64

	at     int64 // the next byte of the layer
	member int   // the member whose skeleton or content comes next
	sha256 hash.Hash
	pieces *PieceHasher

	skeleton []byte        // what is left of the skeleton before member
	content  io.ReadCloser // the member's, once it is open
	sum      *contentHash
}

// newLayerStream begins at byte 0.
func newLayerStream(source Source, layer Layer, files []File, read *atomic.Int64) *layerStream {
	s := &layerStream{source: source, files: files, layer: layer, read: read, sha256: sha256.New(), pieces: new(PieceHasher)}
	s.layer.Members = append([]Member(nil), layer.Members...)
	_, s.skeleton = s.layer.skeletonBefore(0)
	return s
}

// fill reads the next len(buf) bytes of the layer, fewer only at its end.
func (s *layerStream) fill(ctx context.Context, buf []byte) (int, error) {
	n := 0
	for n < len(buf) && s.at < s.layer.Size {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		got, err := s.step(ctx, buf[n:])
		s.sha256.Write(buf[n : n+got])
		_, _ = s.pieces.Write(buf[n : n+got])
		n += got
		s.at += int64(got)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// step reads from the one run of bytes that comes next. It may return 0 bytes at a run's end.
func (s *layerStream) step(ctx context.Context, buf []byte) (int, error) {
	if len(s.skeleton) > 0 {
		n := copy(buf, s.skeleton)
		s.skeleton = s.skeleton[n:]
		return n, s.finishMember(ctx, s.at+int64(n))
	}
	m := s.layer.Members[s.member]
	if err := s.open(ctx, s.at-m.Offset); err != nil {
		return 0, err
	}
	n, err := s.content.Read(buf[:min(int64(len(buf)), m.Offset+m.Size-s.at)])
	s.read.Add(int64(n))
	_, _ = s.sum.Write(buf[:n])
	switch {
	case err == io.EOF && s.at+int64(n) < m.Offset+m.Size:
		return n, fmt.Errorf("file %q ended after %d of %d bytes: it changed while it was packed", m.Path, s.at+int64(n)-m.Offset, m.Size)
	case err != nil && err != io.EOF:
		return n, fmt.Errorf("read %q: %w", m.Path, err)
	}
	return n, s.finishMember(ctx, s.at+int64(n))
}

func (s *layerStream) open(ctx context.Context, offset int64) error {
	if s.content != nil {
		return nil
	}
	f := s.files[s.member]
	content, err := s.source.Open(ctx, f.Path, offset)
	if err != nil {
		return fmt.Errorf("open %q: %w", f.Path, err)
	}
	s.content = content
	if s.sum == nil {
		s.sum = newContentHash(f.Checksum)
	}
	return nil
}

// finishMember closes the current member if at is its end. Empty members end where their skeleton
// ends. The read past the end makes the source say whether the file is still the one listed.
func (s *layerStream) finishMember(ctx context.Context, at int64) error {
	if s.member == len(s.layer.Members) || len(s.skeleton) > 0 {
		return nil
	}
	m := &s.layer.Members[s.member]
	if at != m.Offset+m.Size {
		return nil
	}
	if err := s.open(ctx, m.Size); err != nil {
		return err
	}
	n, err := io.ReadFull(s.content, make([]byte, 1))
	s.read.Add(int64(n))
	if n > 0 {
		return fmt.Errorf("file %q has more than the %d bytes listed: it changed while it was packed", m.Path, m.Size)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %q: %w", m.Path, err)
	}
	closeErr := s.content.Close()
	s.content = nil
	if closeErr != nil {
		return fmt.Errorf("close %q: %w", m.Path, closeErr)
	}
	if m.SHA256, err = s.sum.sum(); err != nil {
		return s.place(err, m.Path)
	}
	s.sum = nil
	s.member++
	_, s.skeleton = s.layer.skeletonBefore(s.member)
	return nil
}

// place says in a *ChecksumError which file it is about.
func (s *layerStream) place(err error, path string) error {
	wrong, ok := errors.AsType[*ChecksumError](err)
	if !ok {
		return fmt.Errorf("file %q: %w", path, err)
	}
	wrong.Path = path
	if name, ok := s.source.(fmt.Stringer); ok {
		wrong.Source = name.String()
	}
	return wrong
}

// close frees the source's reader.
func (s *layerStream) close() {
	if s.content != nil {
		s.content.Close()
	}
}

// finish returns the layer with everything that its bytes gave, and its hash layer.
func (s *layerStream) finish() (Layer, HashLayer) {
	hashes, root := s.pieces.Sum()
	wire, _ := hashes.MarshalBinary() // never fails
	s.layer.Root = root
	s.layer.Digest = digest.NewDigest(digest.SHA256, s.sha256)
	s.layer.Hashes = digest.FromBytes(wire)
	return s.layer, hashes
}

// position is a layerStream at a multiple of HashLayerPiece, in a form that can be written down.
type position struct {
	At     int64  `json:"at"`
	Layer  []byte `json:"layer"` // marshaled sha256 of the layer up to At
	Member int    `json:"member"`
	// Content and Checksum are the marshaled hashes of the member that At lies in, if any.
	Content  []byte `json:"content,omitempty"`
	Checksum []byte `json:"checksum,omitempty"`
	// Sums are the sha256 of the members that are complete.
	Sums []digest.Digest `json:"sums"`

	hashes HashLayer // up to At; kept in a file of its own, for it grows
}

// position returns nil where the stream cannot be resumed: at its end.
func (s *layerStream) position() (*position, error) {
	hashes, at, ok := s.pieces.State()
	if !ok || at != s.at {
		return nil, nil
	}
	p := &position{At: at, Member: s.member, hashes: slices.Clip(hashes)}
	var err error
	if p.Layer, err = marshalHash(s.sha256); err != nil {
		return nil, err
	}
	for _, m := range s.layer.Members[:s.member] {
		p.Sums = append(p.Sums, m.SHA256)
	}
	if s.sum == nil {
		return p, nil
	}
	if p.Content, err = marshalHash(s.sum.sha256); err != nil || s.sum.other == nil {
		return p, err
	}
	p.Checksum, err = marshalHash(s.sum.other)
	return p, err
}

// seek puts a new stream at p. An error means that p is of no use; the stream is then undefined.
func (s *layerStream) seek(p *position) error {
	if p.At < 0 || p.At > s.layer.Size || p.At%HashLayerPiece != 0 || int64(len(p.hashes)) != p.At/HashLayerPiece ||
		p.Member < 0 || p.Member > len(s.layer.Members) || len(p.Sums) != p.Member {
		return errors.New("position does not fit the layer")
	}
	if err := unmarshalHash(s.sha256, p.Layer); err != nil {
		return err
	}
	s.pieces = ResumePieceHasher(p.hashes, p.At)
	s.at, s.member = p.At, p.Member
	for i, sum := range p.Sums {
		s.layer.Members[i].SHA256 = sum
	}
	start, skeleton := s.layer.skeletonBefore(s.member)
	if s.at < start {
		return errors.New("position does not fit the layer")
	}
	s.skeleton = skeleton[min(s.at-start, int64(len(skeleton))):]
	if inside := s.at > start+int64(len(skeleton)); inside != (p.Content != nil) {
		return errors.New("position does not fit the layer")
	}
	if p.Content == nil {
		return nil
	}
	s.sum = newContentHash(s.files[s.member].Checksum)
	if err := unmarshalHash(s.sum.sha256, p.Content); err != nil || s.sum.other == nil {
		return err
	}
	return unmarshalHash(s.sum.other, p.Checksum)
}

func marshalHash(h hash.Hash) ([]byte, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("hash %T cannot be saved", h)
	}
	return m.MarshalBinary()
}

func unmarshalHash(h hash.Hash, state []byte) error {
	m, ok := h.(encoding.BinaryUnmarshaler)
	if !ok {
		return fmt.Errorf("hash %T cannot be restored", h)
	}
	return m.UnmarshalBinary(state)
}
