package endpoint_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/shoal-project/shoal/peer/endpoint"
)

const address = "https://127.0.0.1:7073"

func newIdentity(t *testing.T) *endpoint.Identity {
	t.Helper()
	id, err := endpoint.NewIdentity(filepath.Join(t.TempDir(), "endpoint"), net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// hostTable is a file's table of a host.
func hostTable(t *testing.T, text, host string) map[string]any {
	t.Helper()
	var parsed struct {
		Host map[string]map[string]any `toml:"host"`
	}
	if err := toml.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return parsed.Host[host]
}

func TestInstallAndUninstall(t *testing.T) {
	for name, before := range map[string]string{
		"empty":                      "",
		"only a server":              "server = \"https://reg.example.com\"\n",
		"no end of line":             "server = \"https://reg.example.com\"",
		"other hosts":                "# ours\nserver = \"https://reg.example.com\"\n\n# the old mirror\n[host.\"https://old.example.com\"]\n  capabilities = [\"pull\"]\n[host.\"https://second.example.com\"]\n",
		"a key without a table name": "[host]\n[host.\"https://a.example.com\"]\nskip_verify = true\n",
		"windows":                    "server = \"https://reg.example.com\"\r\n[host.\"https://a.example.com\"]\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			hosts := endpoint.Hosts{Dir: t.TempDir()}
			file := filepath.Join(hosts.Dir, "reg.example.com:5000", "hosts.toml")
			write(t, file, before)
			for range 2 { // the second start has another identity
				id := newIdentity(t)
				if err := hosts.Install("reg.example.com:5000", address, id); err != nil {
					t.Fatal(err)
				}
				got := read(t, file)
				table := hostTable(t, got, address)
				if table["ca"] != id.CA {
					t.Errorf("ca is %v, want %s in\n%s", table["ca"], id.CA, got)
				}
				if first := strings.Index(got, "[host.\"https://"); !strings.HasPrefix(got[first:], "[host.\""+address) {
					t.Errorf("another host comes first:\n%s", got)
				}
			}
			changed, err := hosts.Uninstall()
			if err != nil || len(changed) != 1 || changed[0] != file {
				t.Errorf("uninstall: %v, %v", changed, err)
			}
			if got := read(t, file); got != before {
				t.Errorf("after uninstall %q, before install %q", got, before)
			}
			info, err := os.Stat(file)
			if err != nil || info.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if changed, err := hosts.Uninstall(); err != nil || len(changed) != 0 {
				t.Errorf("a second uninstall: %v, %v", changed, err)
			}
		})
	}
}

func TestInstallWhereNothingWas(t *testing.T) {
	hosts := endpoint.Hosts{Dir: filepath.Join(t.TempDir(), "certs.d")}
	id, err := endpoint.NewIdentity(hosts.IdentityDir(), net.IPv4(127, 0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := hosts.Install(endpoint.Default, address, id); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(hosts.Dir, "_default", "hosts.toml")
	if hostTable(t, read(t, file), address) == nil {
		t.Errorf("no host in\n%s", read(t, file))
	}
	if _, err := hosts.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(hosts.Dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// What somebody added around the block of a file that was not there before stays.
func TestUninstallKeepsWhatWasAdded(t *testing.T) {
	hosts := endpoint.Hosts{Dir: t.TempDir()}
	if err := hosts.Install("reg.example.com", address, newIdentity(t)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(hosts.Dir, "reg.example.com", "hosts.toml")
	const added = "[host.\"https://later.example.com\"]\n"
	write(t, file, read(t, file)+added)
	if _, err := hosts.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, file); got != added {
		t.Errorf("%q is left, want %q", got, added)
	}
}

// containerd looks at the folder host_port_ first.
func TestInstallWhereContainerdLooks(t *testing.T) {
	hosts := endpoint.Hosts{Dir: t.TempDir()}
	file := filepath.Join(hosts.Dir, "reg.example.com_5000_", "hosts.toml")
	write(t, file, "")
	if err := hosts.Install("reg.example.com:5000", address, newIdentity(t)); err != nil {
		t.Fatal(err)
	}
	if hostTable(t, read(t, file), address) == nil {
		t.Error("the block is in another folder")
	}
}

func TestInstallRefuses(t *testing.T) {
	for name, c := range map[string]struct{ registry, text, want string }{
		"broken TOML":           {"r.test", "server = \n", "not valid TOML (line 1"},
		"the host is another's": {"r.test", "[host.\"" + address + "\"]\n", "Shoal did not write"},
		"array that looks like a table": {"r.test", "x = [\n[1],\n[2],\n]\n[host.\"https://a.test\"]\n",
			"does not fit in"},
		"block without an end": {"r.test", "# shoal: this file was not there before; shoal peer uninstall removes it\n[host.\"x\"]\n", "take it out by hand"},
		"path as a name":       {"../etc", "", "HOST[:PORT]"},
		"no name":              {"", "", "HOST[:PORT]"},
	} {
		t.Run(name, func(t *testing.T) {
			hosts := endpoint.Hosts{Dir: t.TempDir()}
			file := filepath.Join(hosts.Dir, "r.test", "hosts.toml")
			write(t, file, c.text)
			err := hosts.Install(c.registry, address, newIdentity(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if got := read(t, file); got != c.text {
				t.Errorf("the file was changed to %q", got)
			}
		})
	}
}

func TestReadContainerd(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		reads bool
		say   string
	}{
		"1.7":                            {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n", true, "containerd reads /etc/containerd/certs.d"},
		"2.x":                            {"version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/x:/etc/containerd/certs.d'\n", true, "containerd reads"},
		"2.x, the path under 1.x's name": {"version = 3\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n", false, "does not set config_path"},
		"another folder":                 {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/certs.d\"\n", false, "reads /etc/certs.d, not"},
		"not set":                        {"version = 2\n", false, "earlier ones do not"},
		"old mirrors":                    {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m\"]\n", false, "ignores"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.toml")
			write(t, file, c.text)
			got, err := endpoint.ReadContainerd(file)
			if err != nil {
				t.Fatal(err)
			}
			reads, say := got.Reads("/etc/containerd/certs.d")
			if reads != c.reads || !strings.Contains(say, c.say) {
				t.Errorf("%t, %s", reads, say)
			}
		})
	}
	if _, err := endpoint.ReadContainerd(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("without a configuration: %v", err)
	}
}
