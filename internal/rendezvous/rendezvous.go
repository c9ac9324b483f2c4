// Package rendezvous shares work out by rendezvous hashing (highest random weight): everybody who knows the
// same names agrees on whose a key is, and a name that goes moves only its own keys.
package rendezvous

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// weight is the hash of key and name.
func weight(key, name string) uint64 {
	sum := sha256.Sum256([]byte(key + "/" + name))
	return binary.BigEndian.Uint64(sum[:])
}

// Owner returns the name of the highest weight for key, "" where there are no names.
func Owner(key string, names []string) string {
	var owner string
	var best uint64
	for _, name := range names {
		if w := weight(key, name); owner == "" || w > best {
			owner, best = name, w
		}
	}
	return owner
}

// Rank returns the names in the order in which they are to be tried for key: the owner, then who owns it
// when the owner goes, and so on.
func Rank(key string, names []string) []string {
	ranked := slices.Clone(names)
	slices.SortStableFunc(ranked, func(a, b string) int { return cmp.Compare(weight(key, b), weight(key, a)) })
	return ranked
}
