package swarm

import (
	"fmt"
	"io"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/metainfo"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// Torrent names a blob and the pieces that it is made of.
type Torrent struct {
	Digest digest.Digest
	Size   int64 // bytes, more than 0
	Root   model.Hash
	// Pieces are the hashes at model.PieceLength(Size), checked against Root by the caller.
	Pieces []model.Hash
}

// Key names the swarm: the same bytes under another root are another swarm, because the root
// binds bytes to the manifest that named it and not to the digest.
func (t Torrent) Key() string { return t.Digest.Encoded() + "-" + t.Root.String() }

func (t Torrent) validate() error {
	if err := t.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", t.Digest, err)
	}
	if t.Size <= 0 {
		return fmt.Errorf("blob %s: size %d", t.Digest, t.Size)
	}
	if want := model.NumPieces(t.Size); len(t.Pieces) != want {
		return fmt.Errorf("blob %s: %d piece hashes, its size needs %d", t.Digest, len(t.Pieces), want)
	}
	return nil
}

// info returns the bencoded info dictionary.
func (t Torrent) info() ([]byte, error) {
	pieces := make([]byte, 0, len(t.Pieces)*metainfo.HashSize)
	for _, h := range t.Pieces {
		pieces = append(pieces, h[:metainfo.HashSize]...)
	}
	b, err := bencode.Marshal(metainfo.Info{
		// The root takes part in the info hash: two roots of one digest must never share a swarm,
		// also where all of their hashes agree in the first 20 bytes.
		Name:        t.Key(),
		PieceLength: model.PieceLength(t.Size),
		Pieces:      pieces,
		Length:      t.Size,
	})
	if err != nil {
		return nil, fmt.Errorf("info of %s: %w", t.Digest, err)
	}
	return b, nil
}

// span returns where piece i lies in the blob.
func (t Torrent) span(i int) (off, length int64) {
	length = model.PieceLength(t.Size)
	off = int64(i) * length
	return off, min(length, t.Size-off)
}

// BlockSize is how many bytes are asked from a peer in one request. A node that gets a model from another
// takes a sixth more CPU with 64 KiB, and its sender a third more with 1 MiB (docs/performance.md). It is 16
// leaves, which one call hashes at once.
const BlockSize = 256 << 10

// Storage is the place of a blob's bytes on a node. It is safe for concurrent use; offsets are
// those of the blob.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	// Have reports whether piece i is there and was checked.
	Have(i int) bool
	// MarkPiece records that the bytes of piece i, written before, were checked.
	MarkPiece(i int) error
	// Bitmap returns the held pieces; piece i is bit 7-i%8 of byte i/8 (BEP 3).
	Bitmap() []byte
}
