package tracker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

func asError(err error, into *client.Error) bool {
	e, ok := errors.AsType[*client.Error](err)
	if ok {
		*into = *e
	}
	return ok
}

func get(t *testing.T, url string) *http.Response {
	t.Helper()
	return send(t, http.MethodGet, url, nil)
}

// send sends a request on a connection of its own and reads the answer's body into memory.
func send(t *testing.T, method, url string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body = io.NopCloser(strings.NewReader(string(text)))
	return resp
}

func TestHostileRequests(t *testing.T) {
	r := newRegion(t, Config{})
	key := keyOf(1, model.Hash{}).String()
	announce := client.SwarmsPath + "/" + key + "/announce"
	hashes := client.HashesPath + "/" + key
	long := strings.Repeat("x", 300)
	tests := []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"no body", "POST", announce, "", 400, "not the JSON"},
		{"no JSON", "POST", announce, "hello", 400, "not the JSON"},
		{"another type", "POST", announce, `{"node":7}`, 400, "not the JSON"},
		{"an array", "POST", announce, `[]`, 400, "not the JSON"},
		{"two values", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1}{}`, 400, "send one value"},
		{"too long", "POST", announce, `{"node":"` + strings.Repeat("a", maxAnnounce) + `"}`, 413, "longer than"},
		{"long tail", "POST", announce, `{}` + strings.Repeat(" ", maxAnnounce), 413, "longer than"},
		{"deep", "POST", announce, `{"x":` + strings.Repeat("[", 20000), 400, "not the JSON"},
		{"no node", "POST", announce, `{"addr":"1.2.3.4:1","size":1}`, 400, "node is missing"},
		{"long node", "POST", announce, `{"node":"` + long + `","addr":"1.2.3.4:1","size":1}`, 400, "at most 253"},
		{"node with control characters", "POST", announce, `{"node":"a\u001b[2J","addr":"1.2.3.4:1","size":1}`, 400, "do not print"},
		{"long zone", "POST", announce, `{"node":"a","zone":"` + long + `","addr":"1.2.3.4:1","size":1}`, 400, "zone has"},
		{"rack with a line end", "POST", announce, `{"node":"a","rack":"a\nb","addr":"1.2.3.4:1","size":1}`, 400, "rack"},
		{"no address", "POST", announce, `{"node":"a","size":1}`, 400, "IP:PORT"},
		{"address by name", "POST", announce, `{"node":"a","addr":"host:1","size":1}`, 400, "IP:PORT"},
		{"address without port", "POST", announce, `{"node":"a","addr":"1.2.3.4","size":1}`, 400, "IP:PORT"},
		{"port 0", "POST", announce, `{"node":"a","addr":"1.2.3.4:0","size":1}`, 400, "IP:PORT"},
		{"unspecified address", "POST", announce, `{"node":"a","addr":"0.0.0.0:1","size":1}`, 400, "IP:PORT"},
		{"multicast address", "POST", announce, `{"node":"a","addr":"224.0.0.1:1","size":1}`, 400, "IP:PORT"},
		{"size 0", "POST", announce, `{"node":"a","addr":"1.2.3.4:1"}`, 400, "size 0"},
		{"negative size", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":-1}`, 400, "size -1"},
		{"huge size", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":9223372036854775807}`, 400, "size 9"},
		{"size beyond int64", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1e30}`, 400, "not the JSON"},
		{"long bitmap", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1,"have":"AAAA"}`, 400, "3 bytes"},
		{"spare bits", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1,"have":"wA=="}`, 400, "past its 1 pieces"},
		{"bitmap not in base64", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1,"have":"!"}`, 400, "not the JSON"},
		{"pieces out of range", "POST", announce, `{"node":"a","addr":"1.2.3.4:1","size":1,"open":[-1,9,1000000000000],"stuck":[-5,7],"want":-3}`, 200, "epoch"},
		{"key without root", "POST", client.SwarmsPath + "/abc/announce", `{}`, 400, "swarm key"},
		{"key with upper case", "POST", client.SwarmsPath + "/" + strings.ToUpper(key) + "f/announce", `{}`, 400, "swarm key"},
		{"announce by GET", "GET", announce, "", 405, ""},
		{"unknown path", "GET", "/v2/", "", 404, ""},
		{"hashes without size", "GET", hashes, "", 400, "size"},
		{"hashes of size 0", "GET", hashes + "?size=0", "", 400, "size 0"},
		{"hashes that nobody put", "GET", hashes + "?size=1", "", 404, "registry"},
		{"hashes of the wrong length", "PUT", hashes + "?size=1", "x", 400, "needs 32"},
		{"hashes that are wrong", "PUT", hashes + "?size=1", strings.Repeat("x", 32), 400, "does not match"},
		{"hashes too long", "PUT", hashes + "?size=1000000000000000", "x", 413, "too long"},
		{"desired without models", "PUT", client.DesiredPath, `{}`, 400, "empty list"},
		{"desired with a nameless model", "PUT", client.DesiredPath, `{"models":[{"reference":"r"}]}`, 400, "name"},
		{"desired with a model twice", "PUT", client.DesiredPath, `{"models":[{"name":"m","reference":"r"},{"name":"m","reference":"q"}]}`, 400, "twice"},
		{"desired without reference", "PUT", client.DesiredPath, `{"models":[{"name":"m"}]}`, 400, "no reference"},
		{"desired with an empty node", "PUT", client.DesiredPath, `{"models":[{"name":"m","reference":"r","nodes":[""]}]}`, 400, "node's name"},
		{"poll with a bad wait", "GET", client.DesiredPath + "?wait=soon", "", 400, "duration"},
		{"poll with a long node", "GET", client.DesiredPath + "?node=" + long, "", 400, "at most 253"},
		{"poll with a negative wait", "GET", client.DesiredPath + "?wait=-5s", "", 204, ""},
		{"progress without node", "POST", client.ProgressPath, `{}`, 400, "node is missing"},
		{"progress too long", "POST", client.ProgressPath, `{"node":"` + strings.Repeat("a", maxProgress) + `"}`, 413, "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp := send(t, tt.method, r.url+tt.path, strings.NewReader(tt.body))
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.want) {
				t.Fatalf("answer %d %s, want %d with %q", resp.StatusCode, body, tt.status, tt.want)
			}
			if tt.status < 400 || tt.want == "" {
				return
			}
			var doc struct{ Error string }
			if err := json.Unmarshal(body, &doc); err != nil || doc.Error == "" {
				t.Fatalf("answer %s is not {\"error\": ...}: %v", body, err)
			}
		})
	}
}

func TestRoles(t *testing.T) {
	ca := newAuthority(t)
	s, err := New(Config{Identify: certs.From, Now: newClock().Now})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(s.Handler())
	web.TLS = ca.issue("tracker").Server()
	web.StartTLS()
	t.Cleanup(web.Close)
	content := newBlob(t, 1, testSize)
	announce := func(name string) func(context.Context, *client.Client) error {
		return func(ctx context.Context, c *client.Client) error {
			_, err := c.Announce(ctx, content.key, client.Announce{Node: name, Addr: "127.0.0.1:1", Size: content.size})
			return err
		}
	}
	report := func(name string) func(context.Context, *client.Client) error {
		return func(ctx context.Context, c *client.Client) error {
			return c.Report(ctx, client.Progress{Node: name})
		}
	}
	write := func(ctx context.Context, c *client.Client) error { return c.SetDesired(ctx, client.Desired{}) }
	put := func(ctx context.Context, c *client.Client) error {
		return c.PutHashes(ctx, content.key, content.size, content.layer)
	}
	read := func(ctx context.Context, c *client.Client) error {
		_, err := c.Swarms(ctx)
		if err == nil {
			_, err = c.Progress(ctx)
		}
		if err == nil {
			_, err = c.Desired(ctx, "a", "", 0)
		}
		if err == nil {
			_, err = c.Hashes(ctx, content.key, content.size)
		}
		return err
	}
	tests := []struct {
		identity, what string
		do             func(context.Context, *client.Client) error
		refused        bool
	}{
		{"controller", "writes the desired set", write, false},
		{"node/a", "writes the desired set", write, true},
		{"mirror", "writes the desired set", write, true},
		{"tracker", "writes the desired set", write, true},
		{"client", "writes the desired set", write, true},
		{"node/a", "announces itself", announce("a"), false},
		{"node/a", "announces another", announce("b"), true},
		{"node/a", "announces a mirror", announce("mirror/a"), true},
		{"node/mirror", "announces itself as a mirror", announce("mirror"), true},
		{"mirror", "announces itself", announce("mirror"), false},
		{"mirror", "announces itself by name", announce("mirror/east"), false},
		{"mirror", "announces a node", announce("a"), true},
		{"controller", "announces a node", announce("a"), true},
		{"client", "announces a node", announce("a"), true},
		{"node/a", "reports its progress", report("a"), false},
		{"node/a", "reports another's progress", report("b"), true},
		{"controller", "reports progress", report("a"), true},
		{"node/a", "puts hashes", put, false},
		{"mirror", "puts hashes", put, false},
		{"client", "puts hashes", put, true},
		{"node/a", "reads", read, false},
		{"mirror", "reads", read, false},
		{"controller", "reads", read, false},
		{"client", "reads", read, false},
	}
	for _, tt := range tests {
		t.Run(tt.identity+" "+tt.what, func(t *testing.T) {
			c, err := client.New(client.Config{URL: web.URL, TLS: ca.issue(tt.identity).Client(certs.Tracker)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			err = tt.do(t.Context(), c)
			var e client.Error
			switch {
			case !tt.refused && err != nil:
				t.Fatal(err)
			case tt.refused && (!asError(err, &e) || e.Status != http.StatusForbidden || !strings.Contains(e.Message, "certificate") && !strings.Contains(e.Message, "name")):
				t.Fatalf("error %v, want 403 with what is wrong", err)
			}
		})
	}
}

func TestPlainTextIsNobody(t *testing.T) {
	r := newRegion(t, Config{Identify: certs.From})
	if resp := get(t, r.url+client.SwarmsPath); resp.StatusCode != http.StatusUnauthorized {
		t.Fatalf("answer %s, want 401", resp.Status)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	r := newRegion(t, Config{Registerer: reg})
	n := newNode(r, "a", "127.0.0.1:1", keyOf(1, model.Hash{}))
	n.ask(0)
	r.clock.advance(500 * time.Millisecond)
	n.ask(3)
	n.a.Addr = "nowhere"
	if _, err := n.c.Announce(t.Context(), n.key, n.a); err == nil {
		t.Fatal("a bad address was taken")
	}
	r.clock.advance(5 * time.Second)
	r.server.sweep()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	want := map[string]float64{
		"shoal_tracker_announces_total":            2,
		"shoal_tracker_leases_total first":         3,
		"shoal_tracker_leases_ended_total lost":    3,
		"shoal_tracker_nodes_lost_total":           1,
		"shoal_tracker_swarms":                     1,
		"shoal_tracker_members":                    0,
		"shoal_tracker_requests_refused_total 400": 1,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	if _, err := New(Config{Registerer: reg}); err == nil {
		t.Fatal("a second tracker took the same metric names")
	}
}
