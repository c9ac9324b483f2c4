package mirror

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/tracker/client"
)

// wishes is a tracker that says what it is told to; it answers once for each of them.
type wishes chan func() (client.DesiredReply, error)

// Desired implements Tracker.
func (w wishes) Desired(ctx context.Context, node, _ string, wait time.Duration) (client.DesiredReply, error) {
	if node != "" || wait != client.MaxWait {
		return client.DesiredReply{}, errors.New("not the whole set is asked for, or in haste")
	}
	select {
	case say := <-w:
		return say()
	case <-ctx.Done():
		return client.DesiredReply{}, ctx.Err()
	}
}

// say tells the mirror that images are desired, and returns once it asks again: it has done what it was told.
func (w wishes) say(references ...string) {
	var models []client.DesiredModel
	for _, r := range references {
		models = append(models, client.DesiredModel{Name: "m" + r, Reference: r})
	}
	w <- func() (client.DesiredReply, error) { return client.DesiredReply{Models: models}, nil }
	w <- func() (client.DesiredReply, error) { return client.DesiredReply{}, client.ErrNoDesired }
}

// pushImage puts an index with one image of the layers upstream.
func (r *rig) pushImage(tag string, layers ...digest.Digest) {
	r.t.Helper()
	target := r.open(repo)
	config := content.NewDescriptorFromBytes(ocispec.MediaTypeImageConfig, []byte("{}"))
	if err := target.Push(r.t.Context(), config, strings.NewReader("{}")); err != nil {
		r.t.Fatal(err)
	}
	image := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config}
	for _, d := range layers {
		info, err := target.Blobs().Resolve(r.t.Context(), d.String())
		if err != nil {
			r.t.Fatal(err)
		}
		image.Layers = append(image.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: info.Size})
	}
	push := func(kind, reference string, v any) ocispec.Descriptor {
		raw, err := json.Marshal(v)
		if err != nil {
			r.t.Fatal(err)
		}
		desc := content.NewDescriptorFromBytes(kind, raw)
		if reference == "" {
			reference = desc.Digest.String()
		}
		if err := target.PushReference(r.t.Context(), desc, bytes.NewReader(raw), reference); err != nil {
			r.t.Fatal(err)
		}
		return desc
	}
	child := push(ocispec.MediaTypeImageManifest, "", image)
	push(ocispec.MediaTypeImageIndex, tag, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{child},
	})
}

// kept reports whether the mirror has a blob on its disk.
func (r *rig) kept(d digest.Digest) bool {
	for _, b := range r.mirror.store.Blobs() {
		if b.Key.Digest == d {
			return true
		}
	}
	return false
}

// The blobs of desired models stay, however long nobody has asked for them; where nothing else is left to remove, a
// new blob is refused with a sentence that says what to do.
func TestDesiredStays(t *testing.T) {
	tracker := make(wishes)
	r := newRig(t, func(c *Config) { c.Quota, c.Tracker = 10*mib, tracker })
	must := func(d digest.Digest) {
		t.Helper()
		if got := r.get(blobPath(d)); got.status != http.StatusOK || got.err != nil {
			t.Fatalf("%d %.200s %v", got.status, got.body, got.err)
		}
	}
	const name = "reg.example.com/" + repo
	first, _ := r.push(4 * mib)
	second, _ := r.push(4 * mib)
	r.pushImage("v1", first)
	r.pushImage("v2", first, second)
	tracker.say(name+":v1", "elsewhere.example.com/not/ours:v1")
	must(first) // the first of all, and so the first to go
	for range 3 {
		other, _ := r.push(4 * mib)
		must(other)
	}
	if !r.kept(first) {
		t.Error("a desired blob went for others")
	}

	tracker.say(name + ":v2")
	must(second)
	other, _ := r.push(4 * mib)
	got := r.get(blobPath(other))
	if got.status != http.StatusServiceUnavailable || !strings.Contains(string(got.body), "quota") {
		t.Errorf("where only desired blobs could go: %d %s", got.status, got.body)
	}
	if !r.kept(first) || !r.kept(second) {
		t.Error("a desired blob went")
	}

	// Upstream does not say what v3 is: what was pinned for others stays.
	r.setFault(func(req *http.Request) registryserver.Fault {
		if strings.HasSuffix(req.URL.Path, "/manifests/v3") {
			return registryserver.Fault{Status: http.StatusServiceUnavailable}
		}
		return registryserver.Fault{}
	})
	if err := r.mirror.keep(t.Context(), []client.DesiredModel{{Name: "three", Reference: name + ":v3"}}); err == nil || !strings.Contains(err.Error(), "model three") {
		t.Errorf("a model that cannot be read: %v", err)
	}
	if pinned := r.mirror.store.Pinned(pinOwner); !slices.Contains(pinned, first) || !slices.Contains(pinned, second) {
		t.Errorf("while one model cannot be read, pinned are %v", pinned)
	}
	r.setFault(nil)

	tracker.say() // nothing
	other, _ = r.push(4 * mib)
	must(other)
	if len(r.mirror.store.Pinned(pinOwner)) > 0 || r.kept(first) && r.kept(second) {
		t.Error("what is not desired any more stays")
	}
}
