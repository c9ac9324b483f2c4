package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// Hosts is containerd's folder of registry hosts, /etc/containerd/certs.d (containerd, docs/hosts.md). In it
// each registry has a folder with a hosts.toml, which is read anew at each pull.
//
// What is written there is one block of text between two comments, in front of the other hosts. Whatever
// else a file says is left as it is, to the byte, and Uninstall takes the block out again. Each change is
// one rename, so that a crash leaves the old file or the new one.
type Hosts struct{ Dir string }

// Default stands for every registry that has no folder of its own.
const Default = "_default"

const (
	hostsFile = "hosts.toml"
	blockEnd  = "# shoal: end\n"
	// What the first line of a block says of the file around it.
	blockBegin  = "# shoal: this block is written anew when shoal peer starts, and taken out by shoal peer uninstall\n"
	blockJoined = "\n# shoal: as above; the line before it had no end\n"
	blockAlone  = "# shoal: this file was not there before; shoal peer uninstall removes it\n"
	leftover    = ".shoal-"
)

// IdentityDir is where the files belong that a block names. They lie beside the hosts, to be there and to be gone
// together with them: containerd refuses a pull when a file that hosts.toml names is missing.
func (h Hosts) IdentityDir() string { return filepath.Join(h.Dir, ".shoal") }

// Install makes containerd ask at address (https://IP:PORT) first for everything of the registry, and show
// the identity there. It changes nothing that it cannot parse.
func (h Hosts) Install(registry, address string, id *Identity) error {
	name, err := h.file(registry)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := removeLeftovers(filepath.Dir(name)); err != nil {
		return err
	}
	old, err := os.ReadFile(name)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	was, alone, err := takeOut(string(old))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	now, err := putIn(was, block(address, id), address, alone || missing)
	if err != nil {
		return fmt.Errorf("%s: %w: correct it, or take the registry %s out of Shoal's", name, err, registry)
	}
	if now == string(old) {
		return nil
	}
	return replace(name, now)
}

// Uninstall takes out what Install put in, of every registry, and then removes the identities. It returns the
// files that it changed.
func (h Hosts) Uninstall() (changed []string, err error) {
	folders, err := os.ReadDir(h.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var errs []error
	for _, f := range folders {
		done, err := h.uninstall(f.Name())
		if err != nil {
			errs = append(errs, err)
		}
		if done != "" {
			changed = append(changed, done)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, os.RemoveAll(h.IdentityDir()))
	}
	return changed, errors.Join(append(errs, err)...)
}

func (h Hosts) uninstall(folder string) (changed string, err error) {
	dir := filepath.Join(h.Dir, folder)
	name := target(filepath.Join(dir, hostsFile))
	old, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	was, alone, err := takeOut(string(old))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if was == string(old) {
		return "", nil
	}
	if err := removeLeftovers(filepath.Dir(name)); err != nil {
		return "", err
	}
	if !alone || was != "" {
		return name, replace(name, was)
	}
	if err := os.Remove(name); err != nil {
		return "", err
	}
	_ = os.Remove(dir) // it stays where there is more in it
	return name, nil
}

// file is the hosts.toml of a registry: the one that containerd would read, where there is one.
func (h Hosts) file(registry string) (string, error) {
	if registry == "" || strings.ContainsAny(registry, `/\`) || registry == "." || registry == ".." {
		return "", fmt.Errorf("registry %q: want HOST[:PORT] as in image references, or %s", registry, Default)
	}
	folders := []string{registry}
	if host, port, ok := strings.Cut(registry, ":"); ok {
		folders = []string{host + "_" + port + "_", registry} // in containerd's order
	}
	for _, f := range folders {
		if _, err := os.Stat(filepath.Join(h.Dir, f)); err == nil {
			return target(filepath.Join(h.Dir, f, hostsFile)), nil
		}
	}
	return filepath.Join(h.Dir, registry, hostsFile), nil
}

// target follows links, which a rename would replace.
func target(name string) string {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		return real
	}
	return name // it is not there, or whoever opens it says what is wrong
}

// block is the host's table.
func block(address string, id *Identity) string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n  client = [[%q, %q]]\n", address, id.CA, id.Cert, id.Key)
}

// takeOut returns text without a block of ours, and whether the file is there for the block alone.
func takeOut(text string) (rest string, alone bool, err error) {
	for _, begin := range []string{blockAlone, blockJoined, blockBegin} {
		before, after, ok := strings.Cut(text, begin)
		if !ok {
			continue
		}
		_, behind, ok := strings.Cut(after, blockEnd)
		if !ok {
			return "", false, fmt.Errorf("the block of Shoal has lost its last line (%s): take it out by hand", strings.TrimSpace(blockEnd))
		}
		return before + behind, begin == blockAlone, nil
	}
	return text, false, nil
}

// table finds the line that begins the first table: a top-level key after it would be the table's.
var table = regexp.MustCompile(`(?m)^[ \t]*\[`)

// putIn returns text with the block in front of its first table.
func putIn(text, block, address string, alone bool) (string, error) {
	before, err := parse(text)
	if err != nil {
		return "", err
	}
	if hosts, ok := before["host"].(map[string]any); ok && hosts[address] != nil {
		return "", fmt.Errorf("it has a host %s that Shoal did not write", address)
	}
	begin, at := blockBegin, len(text)
	if found := table.FindStringIndex(text); found != nil {
		at = found[0]
	} else if text != "" && !strings.HasSuffix(text, "\n") {
		begin = blockJoined
	}
	if alone && text == "" {
		begin = blockAlone
	}
	now := text[:at] + begin + block + blockEnd + text[at:]
	after, err := parse(now)
	if err != nil {
		return "", fmt.Errorf("the block of Shoal does not fit in: %w", err)
	}
	hosts, _ := after["host"].(map[string]any)
	if hosts[address] == nil {
		return "", errors.New("the block of Shoal does not fit in")
	}
	delete(hosts, address)
	if len(hosts) == 0 && before["host"] == nil {
		delete(after, "host")
	}
	if !reflect.DeepEqual(before, after) {
		return "", errors.New("the block of Shoal would change what the rest means")
	}
	return now, nil
}

func parse(text string) (map[string]any, error) {
	out := map[string]any{}
	if err := toml.Unmarshal([]byte(text), &out); err != nil {
		if at, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, column := at.Position()
			return nil, fmt.Errorf("it is not valid TOML (line %d, column %d): %w", row, column, err)
		}
		return nil, fmt.Errorf("it is not valid TOML: %w", err)
	}
	return out, nil
}

// replace changes a file by one rename, with the mode that it has.
func replace(name, text string) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(name); err == nil {
		mode = info.Mode().Perm()
	}
	return writeWhole(name, []byte(text), mode)
}

// removeLeftovers removes what a crash left of a change.
func removeLeftovers(dir string) error {
	found, err := filepath.Glob(filepath.Join(dir, leftover+"*"))
	if err != nil {
		return err
	}
	for _, name := range found {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
