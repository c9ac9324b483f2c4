package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/acr/acrtest"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/mirror"
)

// region is an ACR instance and a mirror that reads it as --upstreams says.
type region struct {
	acr      *acrtest.Server
	registry *registryserver.Server
	refused  atomic.Int64 // requests to the registry
	mirror   string       // host:port
}

const acrName = "models-registry.cn-hangzhou.cr.aliyuncs.com"

func newRegion(t *testing.T) *region {
	t.Helper()
	r := &region{acr: acrtest.New(acrtest.Config{
		InstanceID: "cri-1", Keys: map[string]string{"AKID": "topsecret"},
		Life: time.Millisecond, // each time that credentials are needed, new ones are got
	})}
	alibaba := httptest.NewServer(r.acr)
	t.Cleanup(alibaba.Close)
	var guarded atomic.Bool
	var err error
	r.registry, err = registryserver.New(registryserver.Config{Faults: func(req *http.Request) registryserver.Fault {
		challenge, ok := r.acr.Admits(req, alibaba.URL+"/auth")
		if ok || !guarded.Load() {
			return registryserver.Fault{}
		}
		r.refused.Add(1)
		return registryserver.Fault{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	background(t, r.registry.Run)
	for _, tag := range []string{"v1", "v2", "v3"} {
		r.push(t, tag)
	}
	guarded.Store(true)

	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "AKID")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "topsecret")
	file := filepath.Join(t.TempDir(), "upstreams.yaml")
	text := fmt.Sprintf("upstreams: [{name: %s, address: 'http://%s', rate: 1GiB, acr: {instanceId: cri-1, region: cn-hangzhou, endpoint: '%s'}}]",
		acrName, r.registry.Addr(), alibaba.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ups, logins, err := readUpstreams(file, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(logins[0].Close)
	m, err := mirror.New(mirror.Config{Dir: t.TempDir(), Upstreams: ups, Retry: registry.Retry{Tries: 2, Base: time.Millisecond, Max: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	background(t, m.Run)
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	r.mirror = strings.TrimPrefix(server.URL, "http://")
	return r
}

// background runs a server until the test ends.
func background(t *testing.T, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// open opens a repository of the registry, or of the mirror before it.
func (r *region) open(t *testing.T, host, namespace string) *registry.Repository {
	t.Helper()
	repo, err := registry.Open(host+"/ns/model", registry.Config{
		PlainHTTP: true, Namespace: namespace, Credential: auth.StaticCredential("", auth.EmptyCredential),
		Retry: registry.Retry{Tries: 1, Base: time.Millisecond, Max: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(repo.Close)
	return repo
}

func layerOf(tag string) []byte { return bytes.Repeat([]byte(tag), 300_000) }

func (r *region) push(t *testing.T, tag string) {
	t.Helper()
	repo := r.open(t, r.registry.Addr().String(), "")
	layer, err := oras.PushBytes(t.Context(), repo, ocispec.MediaTypeImageLayer, layerOf(tag))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/vnd.test", oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.Tag(t.Context(), manifest, tag); err != nil {
		t.Fatal(err)
	}
}

// pull brings an image through the mirror, verified.
func (r *region) pull(t *testing.T, tag string) error {
	t.Helper()
	_, err := oras.Copy(t.Context(), r.open(t, r.mirror, acrName), tag, memory.New(), "", oras.DefaultCopyOptions)
	return err
}

// A registry that takes only the current temporary credentials is mirrored over their end, until the right to get new
// ones is taken away.
func TestMirrorOfACR(t *testing.T) {
	r := newRegion(t)
	if err := r.pull(t, "v1"); err != nil {
		t.Fatal(err)
	}
	if r.acr.Issued() == 0 || r.refused.Load() == 0 {
		t.Fatalf("%d passwords, %d refused requests: the registry is open", r.acr.Issued(), r.refused.Load())
	}

	r.acr.Revoke() // what the mirror has is over
	issued, refused := r.acr.Issued(), r.refused.Load()
	if err := r.pull(t, "v2"); err != nil {
		t.Fatalf("after the first credentials' end: %v", err)
	}
	if r.acr.Issued() == issued || r.refused.Load() == refused {
		t.Errorf("%d passwords, %d refused requests: nothing was renewed", r.acr.Issued(), r.refused.Load())
	}

	r.acr.Deny("AKID")
	r.acr.Revoke()
	err := r.pull(t, "v3")
	var answer *errcode.ErrorResponse
	if !errors.As(err, &answer) || answer.StatusCode != http.StatusForbidden || len(answer.Errors) != 1 {
		t.Fatalf("without the right: %v", err)
	}
	const want = "upstream registry " + acrName + ", repository ns/model: ACR instance cri-1 in cn-hangzhou gives no temporary credentials: " +
		"the keys from env may not do that; allow the action cr:GetAuthorizationToken in a RAM policy (NoPermission, request E069EB86-E6AD-4A98-ADDE-0E993390239A)"
	if got := answer.Errors[0].Message; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := r.pull(t, "v1"); err != nil { // its tag is still believed, its blobs are there
		t.Errorf("what the mirror has: %v", err)
	}
}
