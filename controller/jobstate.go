package controller

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// stateLimit is how much of a state folder a ConfigMap keeps, in bytes: Kubernetes allows 1 MiB for everything in it
// , and the report is beside it.
const stateLimit = 900 << 10

// stateKey is a file of a state folder as a key of a ConfigMap: its path with '_' for '/', which no name in such a
// folder has. Keys that are anything else are passed over.
var stateKey = regexp.MustCompile(`^(pack|copy)_[0-9a-f]{64}_[0-9a-z][0-9a-z-]{0,80}\.(json|hashes)$`)

// readState returns the files of a state folder by their keys, as many as have room in limit bytes: what is left out is
// sent again by the next try, no more. The folder may be written to meanwhile.
func readState(dir string, limit int) (map[string][]byte, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*", "*", "*.json"))
	if err != nil {
		return nil, err
	}
	// A blob has one file or two, which are worth nothing one without the other.
	type blob struct {
		files map[string][]byte
		size  int
	}
	var blobs []blob
	for _, name := range names {
		b := blob{files: map[string][]byte{}}
		for _, file := range []string{name, strings.TrimSuffix(name, ".json") + ".hashes"} { // in the reverse order of writing
			content, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			rel, err := filepath.Rel(dir, file)
			if err != nil {
				return nil, err
			}
			b.files[strings.ReplaceAll(filepath.ToSlash(rel), "/", "_")] = content
			b.size += len(content)
		}
		blobs = append(blobs, b)
	}
	// Those that are whole first: they are small. The rest has its piece hashes, whose number is how far it is.
	slices.SortStableFunc(blobs, func(a, b blob) int {
		if one, other := len(a.files), len(b.files); one != other || one < 2 {
			return cmp.Or(cmp.Compare(one, other), cmp.Compare(a.size, b.size))
		}
		return cmp.Compare(b.size, a.size)
	})
	out := map[string][]byte{}
	for _, b := range blobs {
		if b.size > limit {
			continue
		}
		limit -= b.size
		maps.Copy(out, b.files)
	}
	return out, nil
}

// writeState is the way back from readState, into an empty folder. Whether a file has any sense is for its reader.
func writeState(dir string, data map[string][]byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for key, content := range data {
		if !stateKey.MatchString(key) {
			continue
		}
		name := strings.ReplaceAll(key, "_", "/")
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return fmt.Errorf("state of the pack: %w", err)
		}
		if err := root.WriteFile(name, content, 0o644); err != nil {
			return fmt.Errorf("state of the pack: %w", err)
		}
	}
	return nil
}
