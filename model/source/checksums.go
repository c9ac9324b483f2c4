package source

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// settled is how old a file's last change must be before its checksum is kept: a write within the
// clock's granularity of the one before leaves the same times (the "racy git" problem). Linux stamps
// by the timer tick, of 10 ms at most; some network file systems by the second.
func settled(changed time.Time) time.Duration {
	if changed.Nanosecond() == 0 {
		return 2 * time.Second
	}
	return 20 * time.Millisecond
}

// checksums remembers the sha256 of files by path, size, mtime and inode.
type checksums struct {
	file string // empty: nothing is kept
	log  *slog.Logger

	mu      sync.Mutex
	entries map[string]checksum
}

type checksum struct {
	identity
	SHA256 digest.Digest `json:"sha256"`
}

// openChecksums reads the cache of the directory root. A cache that cannot be read is an empty one:
// it only saves time.
func openChecksums(stateDir, root string, log *slog.Logger) *checksums {
	c := &checksums{log: log, entries: make(map[string]checksum)}
	if stateDir == "" {
		return c
	}
	c.file = filepath.Join(stateDir, "checksums", digest.FromString(root).Encoded()+".json")
	raw, err := os.ReadFile(c.file)
	if err == nil {
		err = json.Unmarshal(raw, &c.entries)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("checksum cache is not readable, files will be read again", "error", err)
		c.entries = make(map[string]checksum)
	}
	return c
}

func (c *checksums) get(name string, id identity) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, ok := c.entries[name]
	if !ok || entry.identity != id || entry.SHA256.Validate() != nil {
		return ""
	}
	return entry.SHA256.String()
}

func (c *checksums) put(name string, id identity, sum digest.Digest) (stored bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := time.Unix(0, max(id.MTime, id.CTime))
	entry := checksum{id, sum}
	if time.Since(changed) < settled(changed) || c.entries[name] == entry {
		return false
	}
	c.entries[name] = entry
	return true
}

func (c *checksums) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == "" {
		return nil
	}
	raw, err := json.Marshal(c.entries)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.file), 0o755); err != nil {
		return err
	}
	tmp := c.file + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, c.file)
}
