package gossip

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// Bounds of what is kept and carried. memberlist refuses a state of more than 20 MiB.
const (
	maxMembers   = 16384
	maxInventory = 32768   // swarms of one node; a blob of 8 TB without a root has as many segments
	maxState     = 8 << 20 // bytes of a push/pull
)

// prefix stands for a swarm's key: a wrong guess costs one connection.
type prefix uint64

func prefixOf(key string) prefix {
	sum := sha256.Sum256([]byte(key))
	return prefix(binary.BigEndian.Uint64(sum[:]))
}

// inventory is what one node takes part in, as of a version.
type inventory struct {
	version int64
	keys    map[prefix]struct{}
}

func newInventory(version int64, keys []string) inventory {
	inv := inventory{version, make(map[prefix]struct{}, len(keys))}
	for _, key := range keys[:min(len(keys), maxInventory)] {
		inv.keys[prefixOf(key)] = struct{}{}
	}
	return inv
}

// wireInventory is an inventory as JSON: the prefixes in 8 bytes each, big endian, sorted.
type wireInventory struct {
	Name    string `json:"n"`
	Version int64  `json:"i"`
	Keys    []byte `json:"k"`
}

func (inv inventory) wire(name string) wireInventory {
	w := wireInventory{Name: name, Version: inv.version, Keys: make([]byte, 0, 8*len(inv.keys))}
	for _, p := range slices.Sorted(maps.Keys(inv.keys)) {
		w.Keys = binary.BigEndian.AppendUint64(w.Keys, uint64(p))
	}
	return w
}

func (w wireInventory) parse() (inventory, error) {
	if len(w.Keys)%8 != 0 || len(w.Keys) > 8*maxInventory {
		return inventory{}, fmt.Errorf("inventory of %.100q: %d bytes", w.Name, len(w.Keys))
	}
	inv := inventory{w.Version, make(map[prefix]struct{}, len(w.Keys)/8)}
	for k := w.Keys; len(k) > 0; k = k[8:] {
		inv.keys[prefix(binary.BigEndian.Uint64(k))] = struct{}{}
	}
	return inv, nil
}

// inventories are those of the other nodes.
type inventories struct {
	mu sync.Mutex
	of map[string]inventory
}

// merge takes name's inventory where it is newer than the known one.
func (s *inventories) merge(name string, inv inventory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[string]inventory{}
	}
	old, known := s.of[name]
	if (known && old.version >= inv.version) || (!known && len(s.of) >= maxMembers) {
		return
	}
	s.of[name] = inv
}

func (s *inventories) forget(name string) {
	s.mu.Lock()
	delete(s.of, name)
	s.mu.Unlock()
}

// version returns the known version, 0 where there is none.
func (s *inventories) version(name string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[name].version
}

func (s *inventories) has(name string, p prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.of[name].keys[p]
	return ok
}

// state encodes own and the others, in random order where not all of them fit.
func (s *inventories) state(own wireInventory) []byte {
	all := []wireInventory{own}
	size := len(own.Keys)
	s.mu.Lock()
	names := slices.Collect(maps.Keys(s.of))
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		w := s.of[name].wire(name)
		if size += len(w.Keys) + len(name) + 64; size > maxState/2 { // base64 makes 4 of 3
			break
		}
		all = append(all, w)
	}
	s.mu.Unlock()
	raw, err := json.Marshal(all)
	if err != nil {
		return nil // strings and bytes always encode
	}
	return raw
}

// parseState reads what another node's state returned.
func parseState(raw []byte) (map[string]inventory, error) {
	if len(raw) > maxState {
		return nil, fmt.Errorf("state of %d bytes, the limit is %d", len(raw), maxState)
	}
	var all []wireInventory
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	if len(all) > maxMembers {
		return nil, fmt.Errorf("state of %d members, the limit is %d", len(all), maxMembers)
	}
	out := make(map[string]inventory, len(all))
	for _, w := range all {
		if w.Name == "" || len(w.Name) > 255 {
			return nil, errors.New("state of a member without a proper name")
		}
		inv, err := w.parse()
		if err != nil {
			return nil, err
		}
		out[w.Name] = inv
	}
	return out, nil
}
