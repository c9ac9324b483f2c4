package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// Key names a blob in the store.
type Key struct {
	// Digest is the sha256 of the blob.
	Digest digest.Digest `json:"digest"`
	// Root is the pieces root by which its bytes are checked; zero for a raw blob.
	Root model.Hash `json:"root,omitzero"`
	// Layout tells apart two member tables for the same bytes, of which one lies: they must not
	// share files. It is made of the members' paths and sizes, and empty where there are none.
	Layout string `json:"layout,omitempty"`
}

// KeyOf returns the key of a model's layer.
func KeyOf(l model.Layer) Key { return Key{Digest: l.Digest, Root: l.Root, Layout: layoutOf(l)} }

// String returns "<sha256 hex>-<root hex>", the name of the blob's swarm, or "<sha256 hex>-raw".
func (k Key) String() string {
	if k.Root.IsZero() {
		return k.Digest.Encoded() + "-raw"
	}
	return k.Digest.Encoded() + "-" + k.Root.String()
}

// dir is the name of the blob's folder.
func (k Key) dir() string {
	if k.Layout == "" {
		return k.String()
	}
	return k.String() + "-" + k.Layout
}

func layoutOf(l model.Layer) string {
	sum := sha256.New()
	for _, m := range l.Members {
		fmt.Fprintf(sum, "%d %s\x00", m.Size, m.Path)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

// Spec describes a blob.
type Spec struct {
	// Digest is the sha256 of the blob, Size its length in bytes.
	Digest digest.Digest
	Size   int64
	// Root is the blob's BEP 52 pieces root. Zero means that its bytes can be checked only as a
	// whole, by the digest.
	Root model.Hash
	// Hashes is the hash layer, checked against Root. It may be nil when Root is zero, or when the
	// store has the blob already.
	Hashes model.HashLayer
	// Layer makes the members' contents files of their own; nil keeps the blob in one file.
	Layer *model.Layer
}

// Key returns the key under which the store keeps the blob.
func (s Spec) Key() Key {
	if s.Layer != nil {
		return KeyOf(*s.Layer)
	}
	return Key{Digest: s.Digest, Root: s.Root}
}

func (s Spec) validate() error {
	if err := checkDigest(s.Digest); err != nil {
		return err
	}
	if s.Size < 0 || s.Size > MaxSize {
		return fmt.Errorf("blob %s: size %d is out of range", s.Digest, s.Size)
	}
	if s.Layer != nil {
		if err := s.Layer.Validate(); err != nil {
			return err
		}
		if l := s.Layer; l.Digest != s.Digest || l.Size != s.Size || l.Root != s.Root {
			return fmt.Errorf("blob %s: its layer has another digest, size or root", s.Digest)
		}
	}
	if s.Root.IsZero() && s.Hashes != nil {
		return fmt.Errorf("blob %s: has hashes and no root to check them against", s.Digest)
	}
	if !s.Root.IsZero() && s.Hashes != nil {
		if err := checkHashes(s.Hashes, s.Root, s.Size); err != nil {
			return fmt.Errorf("blob %s: %w", s.Digest, err)
		}
	}
	return nil
}

// MaxSize bounds a blob, in bytes, so that sums of sizes cannot overflow.
const MaxSize = 1 << 50

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is not a sha256 digest", d)
	}
	return nil
}

func checkHashes(hashes model.HashLayer, root model.Hash, size int64) error {
	wire, err := hashes.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = model.ParseHashLayer(wire, root, size)
	return err
}

// rawPiece is the length, in bytes, of what a raw blob of size bytes marks at once. There is no hash
// for it: it only says how finely a fill goes on and begins, and hence is about a 256th of the blob. It
// is never shorter than the pieces of the blob's segments.
func rawPiece(size int64) int64 {
	length := int64(model.HashLayerPiece)
	for length < 4<<20 && size/length > 256 {
		length *= 2
	}
	return length
}

// pieceLength returns the length of the blob's pieces in bytes.
func (s Spec) pieceLength() int64 {
	if s.Root.IsZero() {
		return rawPiece(s.Size)
	}
	return model.PieceLength(s.Size)
}

func (s Spec) numPieces() int {
	length := s.pieceLength()
	return int((s.Size + length - 1) / length)
}

// savedSpec is blob.json.
type savedSpec struct {
	Version int           `json:"version"`
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"`
	Root    model.Hash    `json:"root,omitzero"`
	Layer   *model.Layer  `json:"layer,omitempty"`
}

// formatVersion is that of blob.json, state and the records.
const formatVersion = 1

var errVersion = errors.New("is of a format that this program does not read; run the program that wrote it, or use another folder")

func (s Spec) encode() ([]byte, error) {
	return json.Marshal(savedSpec{formatVersion, s.Digest, s.Size, s.Root, s.Layer})
}

// parseSpec reads blob.json; the hashes lie in a file of their own.
func parseSpec(raw []byte) (Spec, error) {
	var saved savedSpec
	if err := json.Unmarshal(raw, &saved); err != nil {
		return Spec{}, err
	}
	if saved.Version != formatVersion {
		return Spec{}, fmt.Errorf("version %d: %w", saved.Version, errVersion)
	}
	s := Spec{Digest: saved.Digest, Size: saved.Size, Root: saved.Root, Layer: saved.Layer}
	return s, s.validate()
}

// Errors that callers branch on.
var (
	// ErrNotFound means that the store does not have the blob or model, or not verified.
	ErrNotFound = errors.New("not in the store")
	// ErrNoSpace means that the quota or the bytes to keep free leave no room, also after everything
	// that nobody needs was removed.
	ErrNoSpace = errors.New("no room in the store; raise its quota, free the disk, or remove a model")
	// ErrIncomplete means that pieces are missing.
	ErrIncomplete = errors.New("not complete; fetch the missing pieces")
	// ErrLocked means that another process has the store open.
	ErrLocked = errors.New("another process uses this folder; stop it or choose another folder")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("store is closed")
	// ErrInUse means that a blob cannot be removed while somebody reads or fetches it, or while a
	// model is made of it.
	ErrInUse = errors.New("in use")
)

// CorruptError means that a blob's bytes are not those of its digest.
type CorruptError struct {
	Key Key
	// Actual is the sha256 of the bytes.
	Actual digest.Digest
}

// Error implements error.
func (e *CorruptError) Error() string {
	if e.Key.Root.IsZero() {
		return fmt.Sprintf("blob %s: what was fetched has the digest %s; fetch it again from another source", e.Key.Digest, e.Actual)
	}
	return fmt.Sprintf("blob %s: the pieces root %s that its manifest gives is that of %s: the manifest is wrong; pack the model again",
		e.Key.Digest, e.Key.Root, e.Actual)
}
