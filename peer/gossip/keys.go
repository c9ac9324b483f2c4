package gossip

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/memberlist"
)

// maxKeys is how many keys a file may have: two are enough to rotate.
const maxKeys = 16

// ParseKeys reads a file of keys: one in base64 a line, the first one is used, empty lines and those
// that begin with # are left out.
func ParseKeys(text string) ([][]byte, error) {
	var keys [][]byte
	for i, line := range slices.Collect(strings.SplitSeq(text, "\n")) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err == nil {
			err = memberlist.ValidateKey(key)
		}
		if err != nil { // never with the key itself in it
			return nil, fmt.Errorf("line %d is not a key: want 16, 24 or 32 bytes in base64", i+1)
		}
		if keys = append(keys, key); len(keys) > maxKeys {
			return nil, fmt.Errorf("more than %d keys: drop those that no node uses any more", maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no key: make one with `shoal certs gossip-key`")
	}
	return keys, nil
}

func containsKey(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}
