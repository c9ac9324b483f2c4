package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestFlagsThenEnvironmentThenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "shoal.yaml")
	text := "listen: 127.0.0.1:3\ndir: /from/file\nlayers: 7\nupstream: [a, b]\nkeep-free: 3GiB\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := peerCommand()
	if err := cmd.ParseFlags([]string{"--config", file, "--listen", "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SHOAL_LISTEN": "127.0.0.1:2", "SHOAL_DIR": "/from/env", "SHOAL_KEEP_FREE": "2GiB"}
	if err := fillFlags(cmd.Flags(), lookup(env)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"listen": "127.0.0.1:1", "dir": "/from/env", "keep-free": "2GiB", "layers": "7", "upstream": "[a,b]", "zone": "",
	} {
		if got := cmd.Flags().Lookup(name).Value.String(); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func lookup(env map[string]string) func(string) (string, bool) {
	return func(key string) (string, bool) { v, ok := env[key]; return v, ok }
}

func TestBadConfiguration(t *testing.T) {
	for name, c := range map[string]struct{ text, env, want string }{
		"unknown flag":     {text: "listn: x", want: `no flag "listn"`},
		"not YAML":         {text: "{", want: "yaml"},
		"wrong type":       {text: "layers: many", want: "layers"},
		"wrong variable":   {env: "many", want: "SHOAL_LAYERS"},
		"config in itself": {text: "config: other", want: `no flag "config"`},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "shoal.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			flags.String("config", file, "")
			flags.Int("layers", 0, "")
			env := map[string]string{}
			if c.env != "" {
				env["SHOAL_LAYERS"] = c.env
			}
			if err := fillFlags(flags, lookup(env)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %s", err, c.want)
			}
		})
	}
}

func TestParseUpstream(t *testing.T) {
	for in, want := range map[string]upstream{
		"registry.example.com":                   {"registry.example.com", "registry.example.com", false},
		"docker.io=https://registry-1.docker.io": {"docker.io", "registry-1.docker.io", false},
		"127.0.0.1:5000=http://127.0.0.1:5000/":  {"127.0.0.1:5000", "127.0.0.1:5000", true},
	} {
		if got, err := parseUpstream(in); err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{"", "=http://x", "a=ftp://x", "a=x", "a=http://u:secret@x", "a=http://x/path"} {
		if got, err := parseUpstream(in); err == nil {
			t.Errorf("%q passes as %+v", in, got)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the password is printed: %v", in, err)
		}
	}
}

func TestListeningLine(t *testing.T) {
	line := `{"time":"now","level":"INFO","msg":"listening","component":"peer","what":"swarm","addr":"127.0.0.2:41"}`
	if got := listening([]byte(line), "swarm"); got != "127.0.0.2:41" {
		t.Errorf("got %q", got)
	}
	for _, other := range []string{"", "listening", `{"msg":"listening","what":"admin","addr":"x"}`} {
		if got := listening([]byte(other), "swarm"); got != "" {
			t.Errorf("%s: got %q", other, got)
		}
	}
}

func TestGeneratedModelIsSafetensors(t *testing.T) {
	dir := t.TempDir()
	if err := writeModel(t.Context(), dir, 4<<20); err != nil {
		t.Fatal(err)
	}
	for i := range demoShards {
		checkSafetensors(t, filepath.Join(dir, shardName(i)))
	}
	before, _, err := sumFile(filepath.Join(dir, shardName(demoShards/2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := changeModel(dir, true, 4<<20); err != nil {
		t.Fatal(err)
	}
	after, _, err := sumFile(filepath.Join(dir, shardName(demoShards/2)))
	if err != nil || before == after {
		t.Errorf("version two is version one, %v", err)
	}
}
