package test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/ref"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/certs"

	orasremote "oras.land/oras-go/v2/registry/remote"
)

// TestClients pulls through the mirror with the libraries of crane, oras and regctl, each into an OCI image
// layout: a model, and an index of two images with gzip layers, by tag and by digest.
func TestClients(t *testing.T) {
	r := newBareRegion(t)
	dir, _ := makeModel(t)
	r.push(dir, "v1")
	index, err := random.Index(1<<20, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(r.upstream.host+"/team/app:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(to, index, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	dirs := r.issue("client")
	bundle, err := certs.Load(dirs)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: bundle.Client(certs.Mirror)}
	t.Cleanup(transport.CloseIdleConnections)

	pulls := map[string]func(reference, layoutDir string) error{
		"crane": func(reference, layoutDir string) error { return cranePull(t, transport, reference, layoutDir) },
		"oras":  func(reference, layoutDir string) error { return orasPull(t, transport, reference, layoutDir) },
		"regctl": func(reference, layoutDir string) error {
			return regctlPull(t, r.mirror.addr, dirs, reference, layoutDir)
		},
	}
	for _, repository := range []string{"models/m", "team/app"} {
		root, want, size := reachable(t, r.upstream.host+"/"+repository+":v1")
		before := r.upstream.SentTotal()
		for client, pull := range pulls {
			for _, reference := range []string{":v1", "@" + root.String()} {
				layoutDir := t.TempDir()
				if err := pull(r.mirror.addr+"/"+repository+reference, layoutDir); err != nil {
					t.Errorf("%s pulls %s%s: %v", client, repository, reference, err)
					continue
				}
				if got := blobsIn(t, layoutDir); !slices.Equal(got, want) {
					t.Errorf("%s pulls %s%s: %d blobs, want %d", client, repository, reference, len(got), len(want))
				}
			}
		}
		// Each blob once, some for the manifests and questions.
		if sent, once := r.upstream.SentTotal()-before, size+256<<10; sent > once {
			t.Errorf("%s: the registry sent %d bytes, of %d", repository, sent, once)
		}
	}
}

func cranePull(t *testing.T, transport http.RoundTripper, reference, dir string) error {
	from, err := name.ParseReference(reference)
	if err != nil {
		return err
	}
	got, err := remote.Get(from, remote.WithContext(t.Context()), remote.WithTransport(transport))
	if err != nil {
		return err
	}
	to, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if got.MediaType.IsIndex() {
		index, err := got.ImageIndex()
		if err != nil {
			return err
		}
		return to.AppendIndex(index)
	}
	image, err := got.Image()
	if err != nil {
		return err
	}
	return to.AppendImage(image)
}

func orasPull(t *testing.T, transport http.RoundTripper, reference, dir string) error {
	from, err := orasremote.NewRepository(reference)
	if err != nil {
		return err
	}
	from.Client = &auth.Client{Client: &http.Client{Transport: transport}}
	to, err := oci.New(dir)
	if err != nil {
		return err
	}
	_, err = oras.Copy(t.Context(), from, from.Reference.Reference, to, "", oras.DefaultCopyOptions)
	return err
}

func regctlPull(t *testing.T, host, dir, reference, layoutDir string) error {
	pem := map[string]string{}
	for _, file := range []string{"tls.crt", "tls.key"} {
		raw, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		pem[file] = string(raw)
	}
	// Shoal's certificates name roles, not hosts, which regctl cannot be told. What it pulls it checks by digest.
	client := regclient.New(regclient.WithRegOpts(reg.WithDelay(10*time.Millisecond, time.Second)), regclient.WithConfigHost(config.Host{
		Name: host, Hostname: host, ClientCert: pem["tls.crt"], ClientKey: pem["tls.key"], TLS: config.TLSInsecure,
	}))
	from, err := ref.New(reference)
	if err != nil {
		return err
	}
	to, err := ref.New("ocidir://" + layoutDir + ":v1")
	if err != nil {
		return err
	}
	return client.ImageCopy(t.Context(), from, to)
}

// reachable returns the digest of what reference names at the registry, of all that it is made of, and
// how many bytes that is.
func reachable(t *testing.T, reference string) (root digest.Digest, all []digest.Digest, size int64) {
	t.Helper()
	dir := t.TempDir()
	from, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Get(from, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if err := cranePull(t, http.DefaultTransport, reference, dir); err != nil {
		t.Fatal(err)
	}
	all = blobsIn(t, dir)
	for _, d := range all {
		info, err := os.Stat(filepath.Join(dir, "blobs", "sha256", d.Encoded()))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	return digest.Digest(got.Digest.String()), all, size
}

// blobsIn returns the blobs of an OCI image layout in order, each checked against its name.
func blobsIn(t *testing.T, dir string) []digest.Digest {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []digest.Digest
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		d, err := digest.FromReader(f)
		f.Close()
		if err != nil || d.Encoded() != filepath.Base(file) {
			t.Fatalf("%s has the digest %s, %v", file, d, err)
		}
		all = append(all, d)
	}
	slices.Sort(all)
	return all
}
