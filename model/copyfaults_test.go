package model_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

const forever = 1 << 40

// fails brings f into the first times requests of the method whose path contains part.
func fails(method, part string, times int64, f registryserver.Fault) func(*http.Request) registryserver.Fault {
	var seen atomic.Int64
	return func(r *http.Request) registryserver.Fault {
		if r.Method != method || !strings.Contains(r.URL.Path, part) || seen.Add(1) > times {
			return registryserver.Fault{}
		}
		return f
	}
}

// hangsUp breaks the connection off before an answer.
func hangsUp(method, part string, times int64) func(*http.Request) registryserver.Fault {
	aborted := fails(method, part, times, registryserver.Fault{Status: 1})
	return func(r *http.Request) registryserver.Fault {
		if aborted(r).Status != 0 {
			panic(http.ErrAbortHandler)
		}
		return registryserver.Fault{}
	}
}

func status(code int) registryserver.Fault {
	return registryserver.Fault{Status: code, Header: http.Header{"Retry-After": {"1"}}}
}

func TestCopyOverFaults(t *testing.T) {
	const big = 20 << 20
	tree := map[string][]byte{"big.bin": bytesOf(11, big), "small.json": []byte("{}")}
	east := newServer(t, nil)
	from := east.open("models/faults")
	packed := packTree(t, from, "v1", tree)
	layer, small := "/blobs/"+packed.Image.Layers[0].Digest.String(), "/blobs/"+packed.Image.Layers[1].Digest.String()
	if packed.Image.Layers[0].Size < big {
		layer, small = small, layer
	}
	const get, put, post, patch, head = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodHead
	for name, tc := range map[string]struct {
		east, west func(*http.Request) registryserver.Fault
		want       string // "" means that the copy succeeds
		later      bool   // to try again may help
	}{
		"source: 401":                   {fails(get, "/manifests/", forever, status(401)), nil, "docker login", false},
		"source: 403":                   {fails(get, "/blobs/", forever, status(403)), nil, "ask for the right", false},
		"source: a blob is gone":        {fails(get, layer, forever, status(404)), nil, "not found", false},
		"source: 429 for a while":       {fails(get, "", 3, status(429)), nil, "", false},
		"source: 429 for ever":          {fails(get, layer, forever, status(429)), nil, "limits the rate", true},
		"source: 503 for a while":       {fails(get, "/manifests/", 3, status(503)), nil, "", false},
		"source: 500 for ever":          {fails(get, layer, forever, status(500)), nil, "look at its health", true},
		"source: cut for a while":       {fails(get, layer, 5, registryserver.Fault{At: 3 << 20, Cut: true}), nil, "", false},
		"source: cut for ever":          {fails(get, layer, forever, registryserver.Fault{Cut: true}), nil, "check the address", true},
		"source: cut manifests":         {fails(get, "/manifests/", 3, registryserver.Fault{At: 99, Cut: true}), nil, "", false},
		"source: manifests for ever":    {fails(get, "/manifests/", forever, registryserver.Fault{At: 99, Cut: true}), nil, "check the address", true},
		"source: a wrong byte":          {fails(get, layer, forever, registryserver.Fault{At: 9 << 20, Flip: true}), nil, "it is damaged there", false},
		"source: a wrong byte at first": {fails(get, layer, forever, registryserver.Fault{Flip: true}), nil, "it is damaged there", false},
		"source: a wrong small blob":    {fails(get, small, forever, registryserver.Fault{At: 9, Flip: true}), nil, "it is damaged there", false},
		"source: a wrong manifest":      {fails(get, "/manifests/", forever, registryserver.Fault{At: 99, Flip: true}), nil, "mismatched digest", false},
		"target: 401":                   {nil, fails(head, "/blobs/", forever, status(401)), "docker login", false},
		"target: 403":                   {nil, fails(post, "", forever, status(403)), "ask for the right", false},
		"target: no such repository":    {nil, fails(post, "", forever, status(404)), "want the repository to be created", false},
		"target: full":                  {nil, fails(patch, "", forever, status(507)), "is full", false},
		"target: too large":             {nil, fails(patch, "", forever, status(413)), "no body of this size", false},
		"target: 429 for a while":       {nil, fails(patch, "", 3, status(429)), "", false},
		"target: 429 for ever":          {nil, fails(put, "", forever, status(429)), "limits the rate", true},
		"target: 500 once":              {nil, fails(patch, "", 1, status(500)), "", false},
		"target: 502 for ever":          {nil, fails(patch, "", forever, status(502)), "look at its health", true},
		"target: hangs up":              {nil, hangsUp(patch, "", 3), "", false},
		"target: hangs up for ever":     {nil, hangsUp(post, "", forever), "check the address", true},
		"target: uploads are lost":      {nil, fails(patch, "", 2, status(404)), "", false},
		"target: no manifests":          {nil, fails(put, "/manifests/", forever, status(403)), "ask for the right", false},
		"target: the tag is immutable":  {nil, fails(put, "/manifests/v1", forever, status(409)), "refused with status 409", false},
	} {
		t.Run(name, func(t *testing.T) {
			west := newPrivateServer(t)
			to := west.open("eu/faults")
			cfg := model.CopyConfig{From: from, To: to, Tag: "v1", StateDir: t.TempDir()}
			east.set(tc.east)
			west.set(tc.west)
			_, err := model.Copy(t.Context(), cfg)
			east.set(nil)
			west.set(nil)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				checkPulled(t, to, "v1", tree)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if registry.Unavailable(err) != tc.later {
				t.Errorf("try again later: %v, want %v: %v", !tc.later, tc.later, err)
			}
			guilty := east
			if tc.west != nil {
				guilty = west
			}
			if err != nil && !strings.Contains(err.Error(), guilty.Addr().String()) {
				t.Errorf("error does not name %s: %v", guilty.Addr(), err)
			}
			if refused, ok := errors.AsType[*registry.Error](err); ok && refused.Registry != guilty.Addr().String() {
				t.Errorf("error blames %s: %v", refused.Registry, err)
			}
			checkNoTag(t, to, "v1")
			mustCopy(t, cfg) // the way is free again, whatever the failure left
			checkPulled(t, to, "v1", tree)
		})
	}
}

// Nothing of a source that lies reaches the target: no tag, no blob, no unfinished upload.
func TestCopyFromLiar(t *testing.T) {
	east := newServer(t, nil)
	content := map[string][]byte{"large": bytesOf(1, 9<<20), "small": bytesOf(2, 1000)}
	for name, tc := range map[string]struct {
		blob string
		lie  func(size int64) int64
		flip bool
		want string
	}{
		"wrong bytes of a large blob": {"large", nil, true, "it is damaged there"},
		"wrong bytes of a small blob": {"small", nil, true, "it is damaged there"},
		"large and too short":         {"large", func(n int64) int64 { return n + 1 }, false, "wrong content"},
		"large and too long":          {"large", func(n int64) int64 { return n - 1 }, false, "wrong content"},
		"small and too short":         {"small", func(n int64) int64 { return n + 1 }, false, "wrong content"},
		"small and too long":          {"small", func(n int64) int64 { return n - 1 }, false, "wrong content"},
		"said to be huge":             {"small", func(int64) int64 { return 1 << 50 }, false, "wrong content"},
		"said to be empty":            {"small", func(int64) int64 { return 0 }, false, "it is damaged there"},
	} {
		t.Run(name, func(t *testing.T) {
			west := newServer(t, nil)
			from, to := east.open("liar/"+strings.ReplaceAll(name, " ", "-")), west.open("models/liar")
			desc := pushBlob(t, from, ocispec.MediaTypeImageLayer, content[tc.blob])
			if tc.lie != nil {
				desc.Size = tc.lie(desc.Size)
			}
			root := pushManifest(t, from, ocispec.MediaTypeImageManifest, ociManifest(pushBlob(t, from, ocispec.MediaTypeImageConfig, []byte("{}")), nil, desc))
			if tc.flip {
				east.set(fails(http.MethodGet, desc.Digest.String(), forever, registryserver.Fault{At: 500, Flip: true}))
				defer east.set(nil)
			}
			_, err := model.Copy(t.Context(), model.CopyConfig{From: from, To: to, Tag: root.Digest.String(), ToTag: "v1", StateDir: t.TempDir(), Parallel: 1})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), desc.Digest.String()) || registry.Unavailable(err) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			checkNoTag(t, to, "v1")
			if _, err := to.BlobSize(t.Context(), desc.Digest); !errors.Is(err, errdef.ErrNotFound) {
				t.Errorf("the blob is there: %v", err)
			}
			// distribution leaves the state of the hash of an upload that was cancelled, not its data.
			if left, err := filepath.Glob(filepath.Join(west.dir, "docker/registry/v2/repositories/models/liar/_uploads/*/data")); err != nil || len(left) > 0 {
				t.Errorf("unfinished uploads: %v %v", left, err)
			}
		})
	}
	t.Run("the target has another size", func(t *testing.T) {
		from, to := east.open("liar/size"), newServer(t, nil).open("models/liar")
		desc := pushBlob(t, from, ocispec.MediaTypeImageLayer, content["small"])
		pushBlob(t, to, ocispec.MediaTypeImageLayer, content["small"])
		desc.Size++
		root := pushManifest(t, from, ocispec.MediaTypeImageManifest, ociManifest(pushBlob(t, from, ocispec.MediaTypeImageConfig, []byte("{}")), nil, desc))
		_, err := model.Copy(t.Context(), model.CopyConfig{From: from, To: to, Tag: root.Digest.String(), ToTag: "v1"})
		if err == nil || !strings.Contains(err.Error(), "one of them is damaged") {
			t.Errorf("error %v", err)
		}
	})
}

// pushList puts what it is given under subject's fallback tag, true or not.
func pushList(t *testing.T, repo *registry.Repository, subject ocispec.Descriptor, list []ocispec.Descriptor) {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list}
	desc := pushManifest(t, repo, ocispec.MediaTypeImageIndex, index)
	if err := repo.Tag(t.Context(), desc, "sha256-"+subject.Digest.Encoded()); err != nil {
		t.Fatal(err)
	}
}

func TestCopyBoundsTheGraph(t *testing.T) {
	plain := func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
		t.Helper()
		return pushManifest(t, repo, ocispec.MediaTypeImageManifest, ociManifest(pushBlob(t, repo, ocispec.MediaTypeImageConfig, []byte("{}")), nil))
	}
	for name, tc := range map[string]struct {
		push func(t *testing.T, repo *registry.Repository) ocispec.Descriptor
		want string // "" means that the copy succeeds
		n    int    // manifests, where it does
	}{
		"deep": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			root := plain(t, repo)
			for i, subject := 0, root; i < 20; i++ {
				subject = attach(t, repo, subject, fmt.Sprint("level-", i))
			}
			return root
		}, "more than 16 deep", 0},
		"cyclic": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			root := plain(t, repo)
			referrer := attach(t, repo, root, "signature")
			pushList(t, repo, root, []ocispec.Descriptor{referrer, root})
			pushList(t, repo, referrer, []ocispec.Descriptor{root, referrer})
			return root
		}, "", 2},
		"listed and not there, or another's": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			root := plain(t, repo)
			other := pushManifest(t, repo, ocispec.MediaTypeImageManifest, ociManifest(pushBlob(t, repo, ocispec.MediaTypeImageConfig, []byte("{ }")), nil))
			foreign, gone := attach(t, repo, other, "foreign"), attach(t, repo, root, "gone")
			pushList(t, repo, root, []ocispec.Descriptor{foreign, gone, {MediaType: "text/plain", Digest: other.Digest, Size: other.Size}})
			if err := repo.Delete(t.Context(), gone); err != nil {
				t.Fatal(err)
			}
			return root
		}, "", 1},
		"many": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			root := plain(t, repo)
			// distribution wants the members of an index to be there.
			list := make([]ocispec.Descriptor, 1025)
			for i := range list {
				list[i] = root
				list[i].Annotations = map[string]string{"n": fmt.Sprint(i)}
			}
			pushList(t, repo, root, list)
			return root
		}, "more than 1024", 0},
		"a huge manifest": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			child := plain(t, repo)
			child.Size = 5 << 20
			return pushManifest(t, repo, ocispec.MediaTypeImageIndex, ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{child},
			})
		}, "the limit is", 0},
		"a manifest of another size": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			child := plain(t, repo)
			child.Size++
			return pushManifest(t, repo, ocispec.MediaTypeImageIndex, ocispec.Index{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{child},
			})
		}, "wrong content", 0},
	} {
		t.Run(name, func(t *testing.T) {
			east, west := newServer(t, nil), newServer(t, nil)
			from, to := east.open("graph/image"), west.open("graph/image")
			root := tc.push(t, from)
			result, err := model.Copy(t.Context(), model.CopyConfig{From: from, To: to, Tag: root.Digest.String(), ToTag: "v1"})
			if tc.want == "" {
				if err != nil || result.Manifests != tc.n {
					t.Errorf("%+v, %v", result, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || registry.Unavailable(err) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			checkNoTag(t, to, "v1")
			if n := west.Received(); n > 0 {
				t.Errorf("the target received %d bytes", n)
			}
		})
	}
}

// Manifests that cannot be read as what they are said to be.
func TestCopyHostileManifests(t *testing.T) {
	for name, raw := range map[string]string{
		"not JSON":        "}",
		"no digest":       `{"schemaVersion":2,"mediaType":"M","config":{"digest":"","size":1},"layers":[]}`,
		"a digest's path": `{"schemaVersion":2,"mediaType":"M","config":{"digest":"sha256:../../x","size":1},"layers":[]}`,
		"negative size":   `{"schemaVersion":2,"mediaType":"M","config":{"digest":"` + digest.FromString("").String() + `","size":-1},"layers":[]}`,
		"a subject":       `{"schemaVersion":2,"mediaType":"M","subject":{"digest":"x"},"config":{"digest":"` + digest.FromString("").String() + `","size":0},"layers":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			east, west := newRegistry(t), newServer(t, nil)
			content := []byte(strings.ReplaceAll(raw, `"M"`, `"`+ocispec.MediaTypeImageManifest+`"`))
			east.setFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/manifests/v1") && !strings.HasSuffix(r.URL.Path, digest.FromBytes(content).String()) {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				w.Header().Set("Docker-Content-Digest", digest.FromBytes(content).String())
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
				return true
			})
			to := west.open("models/hostile")
			_, err := model.Copy(t.Context(), model.CopyConfig{From: east.open("models/hostile"), To: to, Tag: "v1"})
			if err == nil || registry.Unavailable(err) || !strings.Contains(err.Error(), "image v1 of") {
				t.Errorf("error %v", err)
			}
			checkNoTag(t, to, "v1")
		})
	}
}
