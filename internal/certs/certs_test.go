package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func issue(t *testing.T, ca string, id string) *Bundle {
	t.Helper()
	parsed, err := ParseIdentity(id)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "leaf")
	if err := Issue(ca, dir, parsed); err != nil {
		t.Fatal(err)
	}
	b, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if b.Identity() != parsed {
		t.Fatalf("loaded %v, issued %v", b.Identity(), parsed)
	}
	return b
}

func newCA(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := CreateCA(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A node whose clock is an hour behind that of the authority must take its certificates all the same.
func TestClockAnHourOff(t *testing.T) {
	ca := newCA(t)
	b := issue(t, ca, "node/a")
	for _, c := range []*x509.Certificate{b.cert.Leaf, readCertificate(t, filepath.Join(ca, "ca.crt"))} {
		if early := time.Since(c.NotBefore); early < time.Hour {
			t.Errorf("%s counts only from %v before it was made", c.Subject, early)
		}
	}
}

func readCertificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		t.Fatalf("%s holds no PEM", file)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMutualTLS(t *testing.T) {
	ca, otherCA := newCA(t), newCA(t)
	tests := []struct {
		name      string
		serverCA  string
		server    string
		client    string
		clientCA  string
		serverFor []Role
		clientFor []Role
		want      string // in the error; empty for success
	}{
		{name: "node to tracker", server: "tracker", client: "node/a", serverFor: []Role{Node}, clientFor: []Role{Tracker}},
		{name: "client role refused by server", server: "tracker", client: "client", serverFor: []Role{Node}, clientFor: []Role{Tracker}, want: "certificate"},
		{name: "server of the wrong role", server: "mirror", client: "node/a", clientFor: []Role{Tracker}, want: "may not do this"},
		{name: "server of another authority", serverCA: otherCA, server: "tracker", client: "node/a", clientFor: []Role{Tracker}, want: "unknown authority"},
		{name: "client of another authority", server: "tracker", client: "node/a", clientCA: otherCA, clientFor: []Role{Tracker}, want: "unknown certificate authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pick := func(dir string) string {
				if dir == "" {
					return ca
				}
				return dir
			}
			server, client := issue(t, pick(tt.serverCA), tt.server), issue(t, pick(tt.clientCA), tt.client)
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				id, ok := From(r)
				if !ok {
					t.Error("no identity in a request over mutual TLS")
				}
				_, _ = io.WriteString(w, id.String())
			}))
			srv.TLS = server.Server(tt.serverFor...)
			srv.StartTLS()
			defer srv.Close()
			config := client.Client(tt.clientFor...)
			if tt.clientCA != "" {
				config.VerifyConnection = nil // the server is to refuse, not this client
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				if tt.want == "" || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want %q", err, tt.want)
				}
				return
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || tt.want != "" || string(body) != tt.client {
				t.Fatalf("body %q, error %v, want error %q", body, err, tt.want)
			}
		})
	}
}

func TestPlainTextHasNoIdentity(t *testing.T) {
	r, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://x/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := From(r); ok {
		t.Fatalf("identity %v without TLS", id)
	}
	r.TLS = &tls.ConnectionState{}
	if id, ok := From(r); ok {
		t.Fatalf("identity %v without a verified chain", id)
	}
}

func TestParseIdentity(t *testing.T) {
	for _, s := range []string{"", "node", "node/", "node/a/b", "mirror/x", "admin", "node/a b"} {
		if id, err := ParseIdentity(s); err == nil {
			t.Errorf("ParseIdentity(%q) = %v, want an error", s, id)
		}
	}
}

func TestCreateCARefusesToReplace(t *testing.T) {
	dir := newCA(t)
	if err := CreateCA(dir); err == nil || !strings.Contains(err.Error(), "already holds") {
		t.Fatalf("error %v", err)
	}
}

// FuzzParseIdentity: a certificate speaks for what its identity's text says, and for nothing else.
func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{"node/n1", "mirror", "tracker", "controller", "client", "node/", "mirror/x", "node/a/b", "node/%2f", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseIdentity(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Errorf("%q comes back as %q", s, id)
		}
		if again, err := url.Parse(id.uri().String()); err != nil || again.Host != trustDomain || again.Path != "/"+s {
			t.Errorf("%q in a certificate reads %v, %v", s, again, err)
		}
	})
}
