package store

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
)

// state is what a blob's state file says: only what was true on the disk when it was written.
type state struct {
	Version int `json:"version"`
	// Pieces are those whose bytes were checked and synced.
	Pieces bitmap `json:"pieces"`
	// Stamps are the files' times of modification in nanoseconds, in the order of the layout. A
	// file with another one is not trusted.
	Stamps []int64 `json:"stamps"`
	// Frontier is how many pieces from the first on went into Sum, the state of a sha256.
	Frontier int    `json:"frontier,omitempty"`
	Sum      []byte `json:"sum,omitempty"`
	// Verified says that the bytes which have the root have the digest too; for a raw blob, that
	// the bytes have the digest.
	Verified bool `json:"verified,omitempty"`
	// Contradicted says that the bytes which have the root have another digest.
	Contradicted bool `json:"contradicted,omitempty"`
	// Skeleton says that the tar's headers are those of the member table.
	Skeleton bool `json:"skeleton,omitempty"`
}

// encode puts a digest before the JSON: a flipped bit must not make a missing piece a held one.
func (s state) encode() ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return append(append([]byte(hex.EncodeToString(sum[:])), '\n'), body...), nil
}

// parseState reads the state file of a blob of so many pieces and files.
func parseState(raw []byte, pieces, files int) (state, error) {
	head, body, ok := bytes.Cut(raw, []byte{'\n'})
	sum := sha256.Sum256(body)
	if !ok || string(head) != hex.EncodeToString(sum[:]) {
		return state{}, errors.New("state: checksum does not match")
	}
	var s state
	if err := json.Unmarshal(body, &s); err != nil {
		return state{}, fmt.Errorf("state: %w", err)
	}
	switch {
	case s.Version != formatVersion:
		return state{}, fmt.Errorf("state: format version %d, this program reads %d", s.Version, formatVersion)
	case !s.Pieces.valid(pieces):
		return state{}, fmt.Errorf("state: bitmap is not one of %d pieces", pieces)
	case len(s.Stamps) != files:
		return state{}, fmt.Errorf("state: %d stamps for %d files", len(s.Stamps), files)
	case s.Frontier < 0 || s.Frontier > pieces:
		return state{}, fmt.Errorf("state: frontier %d of %d pieces", s.Frontier, pieces)
	case s.Verified && s.Contradicted:
		return state{}, errors.New("state: both verified and contradicted")
	}
	if _, err := resumeSum(s.Sum); err != nil {
		return state{}, err
	}
	if s.Frontier > 0 && len(s.Sum) == 0 {
		return state{}, errors.New("state: frontier without a sum")
	}
	return s, nil
}

// resumeSum returns the sha256 that saveSum saved, or a new one.
func resumeSum(saved []byte) (hash.Hash, error) {
	h := sha256.New()
	if len(saved) == 0 {
		return h, nil
	}
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved); err != nil {
		return nil, fmt.Errorf("state: sum: %w", err)
	}
	return h, nil
}

func saveSum(h hash.Hash) ([]byte, error) { return h.(encoding.BinaryMarshaler).MarshalBinary() }
