package gossip

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/certs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a Gossip with its API on a real listener.
type node struct {
	*Gossip
	stop func()

	mu   sync.Mutex
	keys []string
}

func (n *node) has(keys ...string) {
	n.mu.Lock()
	n.keys = keys
	n.mu.Unlock()
	n.Changed()
}

type bundles struct {
	t  *testing.T
	ca string
}

func newBundles(t *testing.T) bundles {
	t.Helper()
	b := bundles{t, filepath.Join(t.TempDir(), "ca")}
	if err := certs.CreateCA(b.ca); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b bundles) issue(role string) *certs.Bundle {
	b.t.Helper()
	id, err := certs.ParseIdentity(role)
	if err != nil {
		b.t.Fatal(err)
	}
	dir := filepath.Join(b.t.TempDir(), "cert")
	if err := certs.Issue(b.ca, dir, id); err != nil {
		b.t.Fatal(err)
	}
	bundle, err := certs.Load(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return bundle
}

// start runs a node; change may alter its configuration.
func start(t *testing.T, bundle *certs.Bundle, name string, change func(*Config)) *node {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{}
	cfg := Config{
		Name: name, Bind: "127.0.0.1:0", Swarm: "127.0.0.1:1", API: l.Addr().String(), Keys: [][]byte{key(1)},
		Logger: slog.New(slog.DiscardHandler),
		Inventory: func() []string {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Clone(n.keys)
		},
	}
	if bundle != nil {
		cfg.TLS, cfg.Identify = bundle.Client(certs.Node), certs.From
		l = tls.NewListener(l, bundle.Server(certs.Node, certs.Tracker))
	}
	if change != nil {
		change(&cfg)
	}
	if n.Gossip, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: n.Handler(), ReadHeaderTimeout: time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) })
	running.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	n.stop = sync.OnceFunc(func() {
		cancel()
		_ = server.Close()
		running.Wait()
	})
	t.Cleanup(n.stop)
	return n
}

func key(b byte) []byte { return []byte(strings.Repeat(string(rune('a'+b)), 32)) }

// until polls until ok or the test's end.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

func names(members []Member) []string {
	var out []string
	for _, m := range members {
		out = append(out, m.Name)
	}
	return out
}

func TestFindEachOther(t *testing.T) {
	b := newBundles(t)
	a := start(t, b.issue("node/a"), "a", func(c *Config) { c.Zone, c.Rack = "z1", "r1" })
	join := func(zone, rack string) func(*Config) {
		return func(c *Config) { c.Join, c.Zone, c.Rack = []string{a.Addr()}, zone, rack }
	}
	far := start(t, b.issue("node/far"), "far", join("z2", "r1"))
	near := start(t, b.issue("node/near"), "near", join("z1", "r1"))
	zone := start(t, b.issue("node/zone"), "zone", join("z1", "r2"))
	all := []*node{a, far, near, zone}
	for _, n := range all {
		until(t, n.cfg.Name+" knows all", func() bool { return len(n.Members()) == len(all) })
	}
	for _, n := range all {
		n.has("x")
	}
	near.has("x", "y")
	until(t, "a knows who has x", func() bool { return len(a.WhoHas(t.Context(), "x")) == 3 })
	if got := names(a.WhoHas(t.Context(), "x")); !slices.Equal(got, []string{"near", "zone", "far"}) {
		t.Errorf("x: %v, want near ones first and not the asker", got)
	}
	until(t, "far knows who has y", func() bool { return slices.Equal(names(far.WhoHas(t.Context(), "y")), []string{"near"}) })
	near.has("x")
	until(t, "far knows that nobody has y", func() bool { return len(far.WhoHas(t.Context(), "y")) == 0 })

	near.stop()
	until(t, "near left", func() bool { return !slices.Contains(names(a.Members()), "near") })
	if got := names(a.WhoHas(t.Context(), "x")); slices.Contains(got, "near") {
		t.Errorf("x after near left: %v", got)
	}
}

func TestDeadNodeVanishes(t *testing.T) {
	a := start(t, nil, "a", nil)
	dead, err := New(Config{Name: "dead", Bind: "127.0.0.1:0", Swarm: "127.0.0.1:1", API: "127.0.0.1:2", Keys: [][]byte{key(1)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dead.list.Join([]string{a.Addr()}); err != nil {
		t.Fatal(err)
	}
	start(t, nil, "b", func(c *Config) { c.Join = []string{a.Addr()} })
	until(t, "a knows both", func() bool { return len(a.Members()) == 3 })
	if err := dead.list.Shutdown(); err != nil { // without a word
		t.Fatal(err)
	}
	until(t, "the dead node is gone", func() bool { return len(a.Members()) == 2 })
}

func TestLateSeedAndNames(t *testing.T) {
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().(*net.TCPAddr)
	free.Close()
	n := start(t, nil, "early", func(c *Config) {
		c.Join = []string{"does-not-exist.invalid:1", fmt.Sprintf("localhost:%d", addr.Port), "nonsense"}
	})
	if len(n.Members()) != 1 {
		t.Fatal("a node that is alone has company")
	}
	start(t, nil, "late", func(c *Config) { c.Bind = addr.String() })
	until(t, "they meet", func() bool { return len(n.Members()) == 2 })
}

func TestKeys(t *testing.T) {
	a := start(t, nil, "a", nil)
	b := start(t, nil, "b", func(c *Config) { c.Join = []string{a.Addr()} })
	until(t, "b joins", func() bool { return len(a.Members()) == 2 })
	stranger := start(t, nil, "stranger", func(c *Config) { c.Keys = [][]byte{key(9)} })
	if n, err := stranger.list.Join([]string{a.Addr()}); err == nil || n > 0 {
		t.Error("a node with another key joined")
	}
	for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
		for _, n := range []*node{a, b} {
			if err := n.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := start(t, nil, "c", func(c *Config) { c.Join, c.Keys = []string{b.Addr()}, [][]byte{key(2)} })
	until(t, "all see each other with the new key", func() bool {
		return len(a.Members()) == 3 && len(b.Members()) == 3 && len(c.Members()) == 3
	})
	if err := a.SetKeys(nil); err == nil {
		t.Error("encryption was turned off")
	}
	if err := a.SetKeys([][]byte{[]byte("short")}); err == nil {
		t.Error("a short key was taken")
	}
}

func TestIPv6(t *testing.T) {
	a := start(t, nil, "a", func(c *Config) { c.Bind, c.Swarm = "[::1]:0", "[::1]:1" })
	b := start(t, nil, "b", func(c *Config) { c.Bind, c.Swarm, c.Join = "[::1]:0", "[::1]:2", []string{a.Addr()} })
	until(t, "they meet", func() bool { return len(a.Members()) == 2 && len(b.Members()) == 2 })
	for _, m := range b.Members() {
		if m.Name == "a" && m.Swarm != "[::1]:1" {
			t.Errorf("the swarm's address arrived as %q", m.Swarm)
		}
	}
}

func TestAPIIsForItsRoles(t *testing.T) {
	b := newBundles(t)
	n := start(t, b.issue("node/a"), "a", nil)
	for role, want := range map[string]int{"node/b": http.StatusOK, "tracker": http.StatusForbidden} {
		c := http.Client{Transport: &http.Transport{TLSClientConfig: b.issue(role).Client(certs.Node)}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+n.cfg.API+inventoryPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		c.CloseIdleConnections()
		if resp.StatusCode != want {
			t.Errorf("%s: %s", role, resp.Status)
		}
	}
}

// A node that says another's API address is its own cannot speak for it.
func TestInventoryOfAnother(t *testing.T) {
	b := newBundles(t)
	a := start(t, b.issue("node/a"), "a", nil)
	victim := start(t, b.issue("node/victim"), "victim", nil)
	victim.has("x")
	if _, err := a.inventoryOf(t.Context(), Member{Name: "liar", API: victim.cfg.API}); err == nil || !strings.Contains(err.Error(), "answers as node/victim") {
		t.Errorf("error: %v", err)
	}
}

func TestRefusedConfig(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no name":        {func(c *Config) { c.Name = "" }, "no name"},
		"no port":        {func(c *Config) { c.Bind = "127.0.0.1" }, "want IP:port"},
		"any address":    {func(c *Config) { c.Bind = "0.0.0.0:0" }, "give the one to advertise"},
		"a long zone":    {func(c *Config) { c.Zone = strings.Repeat("z", 500) }, "zone (500 bytes)"},
		"a key too long": {func(c *Config) { c.Keys = [][]byte{make([]byte, 33)} }, "key"},
	} {
		cfg := Config{Name: "a", Bind: "127.0.0.1:0", Swarm: "127.0.0.1:1", API: "127.0.0.1:2"}
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseKeys(t *testing.T) {
	one, two := base64.StdEncoding.EncodeToString(key(1)), base64.StdEncoding.EncodeToString(key(2))
	keys, err := ParseKeys("# first\n" + one + "\n\n  " + two + "\r\n")
	if err != nil || len(keys) != 2 || !slices.Equal(keys[0], key(1)) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	for _, text := range []string{"", "# none", "not base64!", "c2hvcnQ=", strings.Repeat(one+"\n", maxKeys+1)} {
		if _, err := ParseKeys(text); err == nil {
			t.Errorf("%.20q is taken", text)
		} else if strings.Contains(err.Error(), "c2hv") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

func TestState(t *testing.T) {
	var s inventories
	s.merge("b", newInventory(7, []string{"x", "y"}))
	s.merge("b", newInventory(6, nil)) // older
	state, err := parseState(s.state(newInventory(1, []string{"z"}).wire("a")))
	if err != nil {
		t.Fatal(err)
	}
	if len(state) != 2 || len(state["b"].keys) != 2 || state["b"].version != 7 || len(state["a"].keys) != 1 {
		t.Errorf("%+v", state)
	}
	if !s.has("b", prefixOf("y")) || s.has("b", prefixOf("z")) {
		t.Error("prefixes are mixed up")
	}
}

func FuzzState(f *testing.F) {
	var s inventories
	f.Add(s.state(newInventory(1, []string{"z"}).wire("a")))
	f.Add([]byte(`[{"n":"","i":1,"k":"AA=="}]`))
	f.Add([]byte(`[{"n":"a","i":-1,"k":"AAAAAAAAAAA="},{"n":"a"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		state, err := parseState(raw)
		if err != nil {
			return
		}
		var s inventories
		for name, inv := range state {
			s.merge(name, inv)
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add([]byte(`{"v":1,"s":"127.0.0.1:1","a":"[::1]:2","i":3}`))
	f.Add([]byte(`{"v":2}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := parseMeta(raw)
		if err == nil && (m.Swarm == "" || m.API == "") {
			t.Errorf("%q became %+v", raw, m)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString(key(1)))
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ParseKeys(text)
		if err == nil && len(keys) == 0 {
			t.Errorf("%q: no key and no error", text)
		}
	})
}
