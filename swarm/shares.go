package swarm

import (
	"crypto/sha256"
	"encoding/binary"
)

// ownerOf returns the one of names that fetches piece i of a blob when no tracker gives leases:
// the name with the highest hash (rendezvous hashing), so that a name that goes moves only its own
// pieces.
func ownerOf(i int, blob string, names []string) string {
	var owner string
	var best uint64
	for _, name := range names {
		h := sha256.New()
		_ = binary.Write(h, binary.BigEndian, uint64(i)) // a hash takes every write
		_, _ = h.Write([]byte(blob + "/" + name))
		if score := binary.BigEndian.Uint64(h.Sum(nil)); owner == "" || score > best {
			owner, best = name, score
		}
	}
	return owner
}
