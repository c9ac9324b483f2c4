package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/pullapi"
)

// tokenRegistry gives each repository to the bearers of some tokens, as registries with a token server do.
type tokenRegistry struct {
	t   *testing.T
	url string

	mu     sync.Mutex
	tokens map[string]string // the repositories that each token opens, separated by blanks; "*" is all
	heads  int               // questions for a manifest's header
	basics []string          // passwords that came to the registry itself
}

// insufficient is what the registry adds where its token is good for something else.
const insufficient = `,error="insufficient_scope"`

const gatedManifest = `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","layers":[]}`

func newTokenRegistry(t *testing.T) *tokenRegistry {
	t.Helper()
	r := &tokenRegistry{t: t, tokens: map[string]string{"mirror": "*", "alice": "team/private", "bob": "team/other"}}
	server := httptest.NewServer(r)
	server.Config.SetKeepAlivesEnabled(false) // a connection that is kept would keep synctest's clock from going on
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *tokenRegistry) host() string { return strings.TrimPrefix(r.url, "http://") }

func (r *tokenRegistry) challenge(repository string) string {
	return fmt.Sprintf(`Bearer realm="%s/token",service="reg.test",scope="repository:%s:pull"`, r.url, repository)
}

// ServeHTTP implements http.Handler.
func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.URL.Path == "/token" {
		if user, password, ok := req.BasicAuth(); !ok || user != "mirror" || password != "own" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"token":"mirror"}`)
		return
	}
	repository, _, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	if _, _, basic := req.BasicAuth(); basic {
		r.basics = append(r.basics, req.Header.Get("Authorization"))
	}
	if req.Method == http.MethodHead {
		r.heads++
	}
	opens := r.tokens[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
	if opens != "*" && opens != repository {
		challenge := r.challenge(repository)
		if opens != "" { // a token that it gave out itself
			challenge += insufficient
		}
		w.Header().Set("Www-Authenticate", challenge)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", digest.FromString(gatedManifest).String())
	fmt.Fprint(w, gatedManifest)
}

func (r *tokenRegistry) revoke(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.tokens, token)
}

// A client gets a manifest with the token that upstream accepts for that repository, and else upstream's own
// challenge, with its reason where it gives one, or a 404 that sends it there.
func TestGate(t *testing.T) {
	up := newTokenRegistry(t)
	m, err := New(Config{Dir: t.TempDir(), Retry: testRetry(), Upstreams: []Upstream{{
		Name: "reg.test", Registry: up.host(), PlainHTTP: true,
		Credential: auth.StaticCredential(up.host(), auth.Credential{Username: "mirror", Password: "own"}),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	run(t, m.Run)
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	ask := func(repository, authorization string, client bool) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/v2/"+repository+"/manifests/v1", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if client {
			req.Header.Set(pullapi.ClientHeader, "1")
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for name, c := range map[string]struct {
		repository, authorization string
		status                    int
		reason                    string // in the challenge
	}{
		"no token":                   {"team/private", "", 401, ""},
		"the right token":            {"team/private", "Bearer alice", 200, ""},
		"another repository's token": {"team/private", "Bearer bob", 401, insufficient},
		"a token for elsewhere":      {"team/other", "Bearer alice", 401, insufficient},
		"a made-up token":            {"team/private", "Bearer guess", 404, ""},
		"a password":                 {"team/private", "Basic dXNlcjpwYXNzd29yZA==", 404, ""},
	} {
		for range 2 { // asked once, and remembered
			resp := ask(c.repository, c.authorization, true)
			if resp.StatusCode != c.status {
				t.Errorf("%s: %s, want %d", name, resp.Status, c.status)
			}
			if got := resp.Header.Get("Www-Authenticate"); c.status == 401 && got != up.challenge(c.repository)+c.reason || c.status != 401 && got != "" {
				t.Errorf("%s: challenge %q", name, got)
			}
			if got := resp.Header.Get(pullapi.AccessHeader); (got == pullapi.Granted) != (c.status == 200) {
				t.Errorf("%s: access %q", name, got)
			}
		}
	}
	if len(up.basics) > 0 {
		t.Errorf("a client's password went on to the registry: %d times", len(up.basics))
	}
	// What was accepted is remembered.
	up.mu.Lock()
	heads := up.heads
	up.mu.Unlock()
	if resp := ask("team/private", "Bearer alice", true); resp.StatusCode != 200 || up.heads != heads {
		t.Errorf("asked again: %s, %d more questions", resp.Status, up.heads-heads)
	}
	// A node that preloads is no client: the mirror's own credentials count.
	resp := ask("team/private", "", false)
	if resp.StatusCode != 200 || resp.Header.Get(pullapi.AccessHeader) != "" {
		t.Errorf("a node: %s, access %q", resp.Status, resp.Header.Get(pullapi.AccessHeader))
	}
}

// What upstream accepted is asked again after a minute, and not before: for as long does a token work that was
// revoked.
func TestRevokedToken(t *testing.T) {
	up := newTokenRegistry(t)
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m, err := New(Config{Dir: dir, Retry: testRetry(), Upstreams: []Upstream{{
			Name: "reg.test", Registry: up.host(), PlainHTTP: true,
			Credential: auth.StaticCredential(up.host(), auth.Credential{Username: "mirror", Password: "own"}),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		ask := func() int {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v2/team/private/manifests/v1", http.NoBody)
			req.Header.Set(pullapi.ClientHeader, "1")
			req.Header.Set("Authorization", "Bearer alice")
			w := httptest.NewRecorder()
			m.Handler().ServeHTTP(w, req)
			return w.Code
		}
		if status := ask(); status != http.StatusOK {
			t.Errorf("before it is revoked: %d", status)
		}
		up.revoke("alice")
		time.Sleep(admittedFor - time.Second)
		if status := ask(); status != http.StatusOK {
			t.Errorf("while it is remembered: %d", status)
		}
		time.Sleep(time.Second)
		if status := ask(); status != http.StatusNotFound {
			t.Errorf("a minute after it was accepted: %d", status)
		}
		cancel()
		if err := errors.Join(<-ended, m.Close()); err != nil {
			t.Error(err)
		}
	})
}
