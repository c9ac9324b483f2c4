package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Containerd is what containerd's configuration says about registry hosts.
type Containerd struct {
	File    string // the configuration, as given
	Found   bool   // there is one; without it containerd's defaults hold
	Version int64  // of its format: 2 up to containerd 1.7, 3 from 2.0
	// Path is config_path, a list separated by colons; "" where it is not set.
	Path string
	// Old reports that registry.mirrors or registry.configs are set, with which config_path is refused.
	Old bool
}

// registryTables are where the configuration of the registry hosts stands, by the format's version.
var registryTables = map[int64]string{
	2: "io.containerd.grpc.v1.cri",
	3: "io.containerd.cri.v1.images",
}

// ReadContainerd reads containerd's configuration file, usually /etc/containerd/config.toml. Files that it
// imports are not followed.
func ReadContainerd(file string) (Containerd, error) {
	c := Containerd{File: file}
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.Found = true
	parsed, err := parse(string(raw))
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	c.Version, _ = parsed["version"].(int64)
	name, ok := registryTables[c.Version]
	if !ok {
		return c, fmt.Errorf("%s: version %d of the format is not known (want 2 or 3)", file, c.Version)
	}
	registry := dig(parsed, "plugins", name, "registry")
	c.Path, _ = registry["config_path"].(string)
	c.Old = len(dig(registry, "mirrors")) > 0 || len(dig(registry, "configs")) > 0
	return c, nil
}

func dig(in map[string]any, names ...string) map[string]any {
	for _, name := range names {
		in, _ = in[name].(map[string]any)
	}
	return in
}

// Reads reports whether containerd reads the folder certs, and says in a sentence what it does, or what has to
// be done.
func (c Containerd) Reads(certs string) (bool, string) {
	paths := filepath.SplitList(c.Path)
	switch {
	case c.Old:
		return false, fmt.Sprintf("%s sets registry.mirrors or registry.configs, with which containerd ignores %s: move them to hosts.toml files there, set config_path = %q and restart containerd", c.File, certs, certs)
	case slices.Contains(paths, certs):
		return true, fmt.Sprintf("containerd reads %s (config_path in %s)", certs, c.File)
	case c.Path != "":
		return false, fmt.Sprintf("containerd reads %s, not %s (config_path in %s): give shoal peer that folder, or change config_path and restart containerd", c.Path, certs, c.File)
	case certs == "/etc/containerd/certs.d" || certs == "/etc/docker/certs.d":
		return false, fmt.Sprintf("%s does not set config_path: containerd 2.2 and later read %s all the same, earlier ones do not. To be sure, set config_path = %q in [plugins.%q.registry] and restart containerd", c.File, certs, certs, registryTables[c.format()])
	}
	return false, fmt.Sprintf("%s does not set config_path: set config_path = %q in [plugins.%q.registry] and restart containerd", c.File, certs, registryTables[c.format()])
}

// format is the version of the configuration to write.
func (c Containerd) format() int64 {
	if c.Found {
		return c.Version
	}
	return 3
}
