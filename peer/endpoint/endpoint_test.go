package endpoint_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/peer/endpoint"
)

// node has one blob, one public manifest and one private one.
type node struct {
	content  []byte
	breaks   bool // the blob ends half-way
	fails    error
	manifest pullapi.Manifest
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{content: make([]byte, 1000)}
	_, _ = rand.Read(n.content) // never fails
	raw := []byte(`{"schemaVersion":2}`)
	n.manifest = pullapi.Manifest{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest.FromBytes(raw), Content: raw}
	return n
}

func (n *node) digest() digest.Digest { return digest.FromBytes(n.content) }

// OpenBlob implements endpoint.Node.
func (n *node) OpenBlob(_ context.Context, _, _ string, d digest.Digest) (pullapi.Blob, string, error) {
	switch {
	case n.fails != nil:
		return nil, "swarm", n.fails
	case d != n.digest():
		return nil, "swarm", &registry.Error{Status: http.StatusNotFound, Err: errors.New("no such blob")}
	}
	return &blob{n}, "store", nil
}

// ClientManifest implements endpoint.Node.
func (n *node) ClientManifest(_ context.Context, _, repository, _, authorization string) (pullapi.Manifest, bool, error) {
	switch repository {
	case "public/app":
		return n.manifest, true, nil
	case "token/app":
		switch authorization {
		case "":
			return n.manifest, false, &registry.ChallengeError{Challenge: challenge}
		case "Bearer other":
			return n.manifest, false, &registry.ChallengeError{Challenge: challenge + reason}
		}
		return n.manifest, authorization == "Bearer good", nil
	}
	return n.manifest, false, nil
}

const challenge = `Bearer realm="https://auth.reg.test/token",service="reg.test",scope="repository:token/app:pull"`

// reason is what the registry adds where a token is good for something else.
const reason = `,error="insufficient_scope"`

type blob struct{ *node }

func (b *blob) Size() int64                       { return int64(len(b.content)) }
func (b *blob) Wait(context.Context, int64) error { return nil }
func (b *blob) Close()                            {}
func (b *blob) CopyRange(_ context.Context, w io.Writer, off, n int64) error {
	if b.breaks {
		_, _ = w.Write(b.content[off : off+n/2])
		return errors.New("the disk is gone")
	}
	_, err := w.Write(b.content[off : off+n])
	return err
}

// serve runs an endpoint over n on loopback and returns its address and its identity.
func serve(t *testing.T, n endpoint.Node, registries ...string) (string, *endpoint.Identity) {
	t.Helper()
	e, err := endpoint.New(endpoint.Config{Node: n, Registries: registries})
	if err != nil {
		t.Fatal(err)
	}
	id := newIdentity(t)
	server := httptest.NewUnstartedServer(e)
	server.TLS = id.ServerTLS()
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, id
}

// containerd is a client that was told what hosts.toml tells.
func containerd(t *testing.T, id *endpoint.Identity) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(id.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	cert, err := tls.LoadX509KeyPair(id.Cert, id.Key)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func get(t *testing.T, client *http.Client, method, url, header string) (int, string, http.Header, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if header != "" {
		req.Header.Set("Range", header)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), resp.Header, err
}

func TestAnswers(t *testing.T) {
	n := newNode(t)
	url, id := serve(t, n, "reg.test")
	client := containerd(t, id)
	d := n.digest().String()
	none := digest.FromString("none").String()
	for name, c := range map[string]struct {
		method, path, header string
		status               int
		want                 string
	}{
		"base":               {"GET", "/v2/", "", 200, "{}"},
		"blob":               {"GET", "/v2/private/app/blobs/" + d + "?ns=reg.test", "", 200, string(n.content)},
		"range":              {"GET", "/v2/private/app/blobs/" + d + "?ns=reg.test", "bytes=10-19", 206, string(n.content[10:20])},
		"range outside":      {"GET", "/v2/private/app/blobs/" + d + "?ns=reg.test", "bytes=5000-", 416, "SIZE_INVALID"},
		"unknown blob":       {"GET", "/v2/private/app/blobs/" + none + "?ns=reg.test", "", 404, "BLOB_UNKNOWN"},
		"public manifest":    {"GET", "/v2/public/app/manifests/v1?ns=reg.test", "", 200, `{"schemaVersion":2}`},
		"private manifest":   {"GET", "/v2/private/app/manifests/v1?ns=reg.test", "", 404, "MANIFEST_UNKNOWN"},
		"private, by digest": {"GET", "/v2/private/app/manifests/" + n.manifest.Digest.String() + "?ns=reg.test", "", 404, "MANIFEST_UNKNOWN"},
		"another registry":   {"GET", "/v2/public/app/manifests/v1?ns=other.test", "", 404, "NAME_UNKNOWN"},
		"no registry":        {"GET", "/v2/public/app/manifests/v1", "", 404, "NAME_UNKNOWN"},
		"tags":               {"GET", "/v2/public/app/tags/list?ns=reg.test", "", 404, "UNSUPPORTED"},
		"push":               {"POST", "/v2/public/app/blobs/uploads/", "", 404, "UNSUPPORTED"},
		"delete":             {"DELETE", "/v2/public/app/manifests/v1?ns=reg.test", "", 405, "UNSUPPORTED"},
		"bad name":           {"GET", "/v2/A/blobs/" + d + "?ns=reg.test", "", 400, "NAME_INVALID"},
		"bad digest":         {"GET", "/v2/a/blobs/sha256:1?ns=reg.test", "", 400, "DIGEST_INVALID"},
	} {
		status, body, header, err := get(t, client, c.method, url+c.path, c.header)
		if err != nil || status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %.100q, %v", name, status, body, err)
		}
		if header.Get("Www-Authenticate") != "" {
			t.Errorf("%s: it asks for credentials", name)
		}
	}
	status, _, header, err := get(t, client, http.MethodHead, url+"/v2/a/blobs/"+d+"?ns=reg.test", "")
	if err != nil || status != 200 || header.Get("Content-Length") != "1000" || header.Get("Docker-Content-Digest") != d {
		t.Errorf("HEAD: %d %v, %v", status, header, err)
	}
}

// What cannot be had makes containerd go on to the registry.
func TestUnavailable(t *testing.T) {
	n := newNode(t)
	n.fails = errors.New("neither the mirror nor the swarm answers")
	url, id := serve(t, n)
	status, body, _, err := get(t, containerd(t, id), http.MethodGet, url+"/v2/a/blobs/"+n.digest().String()+"?ns=reg.test", "")
	if err != nil || status != http.StatusServiceUnavailable || !strings.Contains(body, "neither the mirror") {
		t.Errorf("%d %s, %v", status, body, err)
	}
}

// A blob that breaks off is seen to be broken.
func TestBroken(t *testing.T) {
	n := newNode(t)
	n.breaks = true
	url, id := serve(t, n)
	status, body, _, err := get(t, containerd(t, id), http.MethodGet, url+"/v2/a/blobs/"+n.digest().String()+"?ns=reg.test", "")
	if err == nil {
		t.Errorf("%d, %d bytes and no error", status, len(body))
	}
}

// Where the registry wants a token, or says why it refuses one, its own challenge is handed on: also where containerd
// looks for the manifest among the blobs.
func TestTokens(t *testing.T) {
	n := newNode(t)
	url, id := serve(t, n)
	client := containerd(t, id)
	blobs := "blobs/" + n.manifest.Digest.String()
	for _, c := range []struct {
		method, path, authorization string
		status                      int
		challenge                   string
	}{
		{"GET", "manifests/v1", "", 401, challenge},
		{"GET", "manifests/v1", "Bearer good", 200, ""},
		{"GET", "manifests/v1", "Bearer other", 401, challenge + reason},
		{"GET", "manifests/v1", "Bearer bad", 404, ""},
		{"GET", "manifests/v1", "Basic dTpw", 404, ""},
		{"HEAD", blobs, "", 401, challenge},
		{"HEAD", blobs, "Bearer other", 401, challenge + reason},
		{"HEAD", blobs, "Bearer good", 404, ""},
		{"GET", blobs, "", 404, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, url+"/v2/token/app/"+c.path+"?ns=reg.test", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if c.authorization != "" {
			req.Header.Set("Authorization", c.authorization)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Www-Authenticate"); resp.StatusCode != c.status || got != c.challenge {
			t.Errorf("%s %s %q: %s, challenge %q", c.method, c.path, c.authorization, resp.Status, got)
		}
	}
}

// Only who can read root's files is served.
func TestWhoIsServed(t *testing.T) {
	url, id := serve(t, newNode(t))
	for name, client := range map[string]*http.Client{
		"without a certificate":   {Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}, //nolint:gosec // the server's part is tested
		"with another's identity": containerd(t, newIdentity(t)),
	} {
		if status, _, _, err := get(t, client, http.MethodGet, url+"/v2/", ""); err == nil {
			t.Errorf("%s: answered with %d", name, status)
		}
		client.CloseIdleConnections()
	}
	for name, mode := range map[string]os.FileMode{id.Key: 0o600, filepath.Dir(id.Key): os.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v: %v", name, info.Mode(), mode, err)
		}
	}
}

// An impostor on the port gets no request.
func TestImpostor(t *testing.T) {
	var asked atomic.Bool
	impostor := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer impostor.Close()
	if _, _, _, err := get(t, containerd(t, newIdentity(t)), http.MethodGet, impostor.URL+"/v2/", ""); err == nil || asked.Load() {
		t.Errorf("an impostor is believed: %v", err)
	}
}

// Each start has an identity of its own, and ends those before it.
func TestOnlyOneIdentity(t *testing.T) {
	dir := t.TempDir()
	var last *endpoint.Identity
	for range 3 {
		id, err := endpoint.NewIdentity(dir, net.IPv6loopback)
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Only(); err != nil {
			t.Fatal(err)
		}
		if last != nil {
			if _, err := os.Stat(last.Key); err == nil {
				t.Error("the identity before is still there")
			}
		}
		last = id
	}
}
