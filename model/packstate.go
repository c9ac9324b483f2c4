package model

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// packState is the folder of one unfinished pack: for each layer a JSON file that says how far its
// upload is, and a file of piece hashes that only grows. Nothing in it is believed that does not fit:
// a damaged file costs a layer's upload, no more.
type packState struct{ *stateFolder }

// layerState is what is kept of one layer.
type layerState struct {
	file string // without suffix; empty: nothing is kept

	sum    hash.Hash // of the hashes written so far
	hashes int       // how many those are

	saved savedLayer
}

type savedLayer struct {
	// Done is the layer when its upload is complete; nothing else is set then.
	Done *Layer `json:"done,omitempty"`
	// Location is where the upload goes on.
	Location string    `json:"location,omitempty"`
	Position *position `json:"position,omitempty"`
	// HashesSum is the sha256 of the piece hashes up to Position, in their own file.
	HashesSum digest.Digest `json:"hashesSum,omitempty"`
}

// layer opens the state of the layer made of files, which is empty where none was kept. A file that
// cannot be told from its next revision is never resumed.
func (p *packState) layer(files []File) (*layerState, error) {
	s := &layerState{sum: sha256.New()}
	if p.dir == "" {
		return s, nil
	}
	type identity struct {
		Path     string
		Size     int64
		Revision string
	}
	var key []identity
	for _, f := range files {
		revision := f.Revision
		if revision == "" {
			revision = f.Checksum
		}
		if revision == "" {
			return s, nil
		}
		key = append(key, identity{f.Path, f.Size, revision})
	}
	raw, err := json.Marshal(key)
	if err != nil {
		return nil, err
	}
	s.file = filepath.Join(p.dir, digest.FromBytes(raw).Encoded())
	if !s.load() {
		s.saved = savedLayer{}
		s.sum.Reset()
		s.hashes = 0
	}
	return s, nil
}

// load reports whether a usable state was read.
func (s *layerState) load() bool {
	raw, err := os.ReadFile(s.file + ".json")
	if err != nil || json.Unmarshal(raw, &s.saved) != nil {
		return false
	}
	if s.saved.Done != nil {
		return s.saved.Done.Validate() == nil
	}
	p := s.saved.Position
	if p == nil || s.saved.Location == "" {
		return false
	}
	wire, err := os.ReadFile(s.file + ".hashes")
	want := p.At / HashLayerPiece * sha256.Size
	if err != nil || p.At < 0 || int64(len(wire)) < want {
		return false
	}
	wire = wire[:want]
	s.sum.Write(wire)
	if digest.NewDigest(digest.SHA256, s.sum) != s.saved.HashesSum {
		return false
	}
	p.hashes = make(HashLayer, len(wire)/sha256.Size)
	for i := range p.hashes {
		copy(p.hashes[i][:], wire[i*sha256.Size:])
	}
	s.hashes = len(p.hashes)
	return true
}

// forget forgets an upload for later calls of Pack too.
func (s *layerState) forget() error {
	s.reset()
	if s.file == "" {
		return nil
	}
	if err := os.Remove(s.file + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state of the pack: %w", err)
	}
	return nil
}

// reset forgets an upload.
func (s *layerState) reset() {
	s.saved = savedLayer{}
	s.sum.Reset()
	s.hashes = 0
}

// accept writes down that the registry has the layer up to p.
func (s *layerState) accept(location string, p *position) error {
	if s.file == "" {
		return nil
	}
	wire, _ := p.hashes[s.hashes:].MarshalBinary() // never fails
	f, err := os.OpenFile(s.file+".hashes", os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(wire, int64(s.hashes)*sha256.Size)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	s.sum.Write(wire)
	s.hashes = len(p.hashes)
	return s.write(savedLayer{Location: location, Position: p, HashesSum: digest.NewDigest(digest.SHA256, s.sum)})
}

// done writes down that the registry has the layer and its hash layer.
func (s *layerState) done(l Layer) error {
	if s.file == "" {
		return nil
	}
	if err := os.Remove(s.file + ".hashes"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.write(savedLayer{Done: &l})
}

func (s *layerState) write(saved savedLayer) error {
	raw, err := json.Marshal(saved)
	if err != nil {
		return err
	}
	if err := replaceFile(s.file+".json", raw); err != nil {
		return err
	}
	s.saved = saved
	return nil
}
