package mirror

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"

	"oras.land/oras-go/v2/registry/remote/auth"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestRoutes(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(1000)
	r.pushTag("listed", "one")
	for name, tc := range map[string]struct {
		method, path string
		status       int
		want         string
	}{
		"base":               {"GET", "/v2/", 200, "{}"},
		"ns":                 {"GET", blobPath(d) + "?ns=reg.example.com", 200, string(blob)},
		"other ns":           {"GET", blobPath(d) + "?ns=evil.example.com", 404, "NAME_UNKNOWN"},
		"other ns, manifest": {"GET", "/v2/a/manifests/v1?ns=127.0.0.1", 404, "NAME_UNKNOWN"},
		"push":               {"POST", "/v2/" + repo + "/blobs/uploads/", 405, "UNSUPPORTED"},
		"other path":         {"GET", "/metrics", 404, "UNSUPPORTED"},
		"tags":               {"GET", "/v2/" + repo + "/tags/list?n=5", 200, `"tags":["listed"]`},
		"tags of nothing":    {"GET", "/v2/no/such/tags/list", 404, "NAME_UNKNOWN"},
		"bad name":           {"GET", "/v2/A/blobs/" + d.String(), 400, "NAME_INVALID"},
		"bad digest":         {"GET", "/v2/a/blobs/sha256:12", 400, "DIGEST_INVALID"},
		"sha512":             {"GET", "/v2/a/manifests/sha512:" + strings.Repeat("a", 128), 400, "DIGEST_INVALID"},
	} {
		got := r.do(t.Context(), tc.method, tc.path)
		if got.status != tc.status || !strings.Contains(string(got.body), tc.want) {
			t.Errorf("%s: %d %.200q", name, got.status, got.body)
		}
	}
}

func TestRanges(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(1000)
	for _, tc := range []struct {
		header string
		status int
		want   []byte
	}{
		{"", 200, blob},
		{"bytes=0-", 206, blob},
		{"bytes=10-19", 206, blob[10:20]},
		{"bytes=990-2000", 206, blob[990:]},
		{"bytes=-5", 206, blob[995:]},
		{"bytes=-5000", 206, blob},
		{"bytes=1-2,5-6", 200, blob},
		{"bytes=9-1", 200, blob},
		{"lines=1-2", 200, blob},
		{"bytes=1000-", 416, nil},
		{"bytes=-0", 416, nil},
	} {
		got := r.get(blobPath(d), "Range", tc.header)
		if got.status != tc.status || tc.want != nil && !bytes.Equal(got.body, tc.want) {
			t.Errorf("%q: %d, %d bytes", tc.header, got.status, len(got.body))
		}
		if tc.status == 206 && !strings.HasSuffix(got.header.Get("Content-Range"), "/1000") {
			t.Errorf("%q: %q", tc.header, got.header.Get("Content-Range"))
		}
		if tc.status == 416 && got.header.Get("Content-Range") != "bytes */1000" {
			t.Errorf("%q: %q", tc.header, got.header.Get("Content-Range"))
		}
	}
	if got := r.get(blobPath(d), "Range", "bytes=1-2", "If-Range", `"other"`); got.status != 200 {
		t.Errorf("If-Range: %d", got.status)
	}
	head := r.do(t.Context(), http.MethodHead, blobPath(d))
	if head.status != 200 || head.header.Get("Content-Length") != "1000" || head.header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("head: %d %v", head.status, head.header)
	}
}

// TestHeadDoesNotFill shows that looking a blob up reads none of it.
func TestHeadDoesNotFill(t *testing.T) {
	r := newRig(t)
	d, _ := r.push(5000)
	if head := r.do(t.Context(), http.MethodHead, blobPath(d)); head.status != 200 || head.header.Get("Content-Length") != "5000" {
		t.Errorf("%d %v", head.status, head.header)
	}
	if sent := r.upstream.Sent(d); sent != 0 {
		t.Errorf("%d bytes were read", sent)
	}
}

func TestRoles(t *testing.T) {
	var id certs.Identity
	var known bool
	r := newRig(t, func(c *Config) {
		c.Identify = func(*http.Request) (certs.Identity, bool) { return id, known }
	})
	for _, tc := range []struct {
		role  certs.Role
		known bool
		want  int
	}{
		{certs.Node, true, 200},
		{certs.Mirror, true, 200},
		{certs.Client, true, 200},
		{certs.Controller, true, 200},
		{certs.Tracker, true, 403},
		{"", false, 403},
	} {
		id, known = certs.Identity{Role: tc.role}, tc.known
		if got := r.get("/v2/"); got.status != tc.want {
			t.Errorf("%q: %d %s", tc.role, got.status, got.body)
		}
	}
}

func manifestPath(reference string) string { return "/v2/" + repo + "/manifests/" + reference }

func TestManifestByDigest(t *testing.T) {
	r := newRig(t)
	desc := r.pushTag("v1", "one")
	got := r.get(manifestPath(desc.Digest.String()))
	if got.status != 200 || digest.FromBytes(got.body) != desc.Digest || got.header.Get("Content-Type") != desc.MediaType {
		t.Fatalf("%d %v %s", got.status, got.header, got.body)
	}
	// It stays for ever.
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: 500} })
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		got := r.do(t.Context(), method, manifestPath(desc.Digest.String()))
		if got.status != 200 || got.header.Get("Docker-Content-Digest") != desc.Digest.String() || got.header.Get("Content-Length") != itoa(desc.Size) {
			t.Errorf("%s: %d %v", method, got.status, got.header)
		}
	}
	if got := r.get(manifestPath(desc.Digest.String()), "If-None-Match", `"`+desc.Digest.String()+`"`); got.status != http.StatusNotModified {
		t.Errorf("If-None-Match: %d", got.status)
	}
	// Damage on the disk is found.
	r.setFault(nil)
	name := filepath.Join(r.mirror.manifests.manifests, desc.Digest.Encoded())
	if err := os.WriteFile(name, []byte("application/x\n{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.get(manifestPath(desc.Digest.String())); digest.FromBytes(got.body) != desc.Digest {
		t.Errorf("damaged: %d %s", got.status, got.body)
	}
}

func TestWrongManifest(t *testing.T) {
	r := newRig(t)
	desc := r.pushTag("v1", "one")
	r.setFault(func(req *http.Request) registryserver.Fault {
		return registryserver.Fault{Flip: req.Method == http.MethodGet, At: 5}
	})
	for _, reference := range []string{desc.Digest.String(), "v1"} {
		if got := r.get(manifestPath(reference)); got.status != http.StatusBadGateway || !strings.Contains(string(got.body), "DIGEST_INVALID") {
			t.Errorf("%s: %d %s", reference, got.status, got.body)
		}
	}
}

func TestTagTTL(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TagTTL = time.Hour })
	one := r.pushTag("v1", "one")
	for range 3 {
		if got := r.get(manifestPath("v1")); digest.FromBytes(got.body) != one.Digest {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if diff := cmp.Diff([]string{"GET " + manifestPath("v1")}, r.asked()); diff != "" {
		t.Error(diff)
	}
}

func TestTagMoves(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TagTTL = 1 })
	one := r.pushTag("v1", "one")
	for range 2 {
		if got := r.get(manifestPath("v1")); digest.FromBytes(got.body) != one.Digest {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if diff := cmp.Diff([]string{"GET " + manifestPath("v1"), "HEAD " + manifestPath("v1")}, r.asked()); diff != "" {
		t.Error(diff)
	}
	two := r.pushTag("v1", "two")
	if got := r.get(manifestPath("v1")); digest.FromBytes(got.body) != two.Digest {
		t.Errorf("moved: %d %s", got.status, got.body)
	}
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: 503} })
	for range 2 { // the second one does not even ask
		if got := r.get(manifestPath("v1")); got.status != 200 || digest.FromBytes(got.body) != two.Digest {
			t.Errorf("upstream is down: %d %s", got.status, got.body)
		}
	}
	key := failureKey{Source{"reg.example.com", repo}, "manifest v1"}
	r.mirror.failures.forget(key)
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: 403} })
	if got := r.get(manifestPath("v1")); got.status != 403 {
		t.Errorf("no right any more: %d", got.status)
	}
	r.mirror.failures.forget(key)
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: 404} })
	if got := r.get(manifestPath("v1")); got.status != 404 {
		t.Errorf("gone: %d", got.status)
	}
	r.mirror.failures.forget(key)
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: 503} })
	if got := r.get(manifestPath("v1")); got.status != 503 {
		t.Errorf("gone, then down: %d", got.status)
	}
}

// TestReferrers reads referrers through a mirror of a registry that has only the fallback tags.
func TestReferrers(t *testing.T) {
	r := newRig(t)
	subject := r.pushTag("v1", "one")
	index := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[{"mediaType":"` + subject.MediaType +
		`","digest":"` + subject.Digest.String() + `","size":` + itoa(subject.Size) + `,"artifactType":"application/x.hashes"}]}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(index), Size: int64(len(index))}
	if err := r.open(repo).PushReference(t.Context(), desc, bytes.NewReader(index), "sha256-"+subject.Digest.Encoded()); err != nil {
		t.Fatal(err)
	}
	through, err := registry.Open(strings.TrimPrefix(r.url, "http://")+"/"+repo, registry.Config{
		PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential), Retry: testRetry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	var found []ocispec.Descriptor
	if err := through.Referrers(t.Context(), subject, "application/x.hashes", func(page []ocispec.Descriptor) error {
		found = append(found, page...)
		return nil
	}); err != nil || len(found) != 1 {
		t.Errorf("%v, %v", found, err)
	}
}

func TestNextPage(t *testing.T) {
	for link, want := range map[string]string{
		"":   "",
		"no": "",
		`</v2/a/referrers/sha256:1?n=2&last=x>; rel="next"`:          `</p?last=x&n=2&ns=reg>; rel="next"`,
		`<https://up.example.com/v2/a/b?last=x&ns=evil>; rel="next"`: `</p?last=x&ns=reg>; rel="next"`,
	} {
		if got := nextPage(link, "/p", "reg"); got != want {
			t.Errorf("%q: %q", link, got)
		}
	}
}

// A repository is no way to a blob that only another one has, though the mirror keeps it.
func TestHeadAsksForTheRepository(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(1000)
	if got := r.get(blobPath(d)); string(got.body) != string(blob) {
		t.Fatalf("%d", got.status)
	}
	head := func(name string) int {
		return r.do(t.Context(), http.MethodHead, "/v2/"+name+"/blobs/"+d.String()).status
	}
	if got := head(repo); got != http.StatusOK {
		t.Errorf("the repository that has it: %d", got)
	}
	if got := head("other/repository"); got != http.StatusNotFound {
		t.Errorf("a repository that lacks it: %d", got)
	}
	// What was seen holds while upstream is down.
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: http.StatusBadGateway} })
	if got := head(repo); got != http.StatusOK {
		t.Errorf("with upstream down: %d", got)
	}
	if got := head("third/repository"); got != http.StatusServiceUnavailable {
		t.Errorf("a repository that was never seen, with upstream down: %d", got)
	}
	// Also over a restart.
	r.mirror.confirmed.Delete(failureKey{Source{"reg.example.com", repo}, d.String()})
	if got := head(repo); got != http.StatusOK {
		t.Errorf("what was seen before a restart, with upstream down: %d", got)
	}
}

// A repository is no way to a manifest that only another one has, though the mirror keeps it.
func TestManifestOfAnotherRepository(t *testing.T) {
	r := newRig(t)
	desc := r.pushTag("v1", "one")
	path := func(name string) string { return "/v2/" + name + "/manifests/" + desc.Digest.String() }
	if got := r.get(path(repo)); got.status != http.StatusOK {
		t.Fatalf("the repository that has it: %d", got.status)
	}
	if got := r.get(path("other/repository")); got.status != http.StatusNotFound {
		t.Errorf("a repository that lacks it: %d", got.status)
	}
	r.setFault(func(*http.Request) registryserver.Fault { return registryserver.Fault{Status: http.StatusBadGateway} })
	if got := r.get(path(repo)); got.status != http.StatusOK {
		t.Errorf("with upstream down: %d", got.status)
	}
	if got := r.get(path("third/repository")); got.status != http.StatusServiceUnavailable {
		t.Errorf("a repository that was never seen to have it, with upstream down: %d", got.status)
	}
}
