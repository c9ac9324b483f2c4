package model_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// server is a registry that counts; its faults can be changed while it runs.
type server struct {
	*registryserver.Server
	t   *testing.T
	dir string

	mu     sync.Mutex
	faults func(*http.Request) registryserver.Fault
}

// The private registries' only user.
const (
	user     = "ann"
	password = "secret"
)

func newServer(t *testing.T, users map[string]string) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir()}
	var err error
	s.Server, err = registryserver.New(registryserver.Config{Dir: s.dir, Users: users, Faults: s.ask})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func newPrivateServer(t *testing.T) *server {
	t.Helper()
	return newServer(t, map[string]string{user: password})
}

func (s *server) ask(r *http.Request) registryserver.Fault {
	s.mu.Lock()
	faults := s.faults
	s.mu.Unlock()
	if faults == nil {
		return registryserver.Fault{}
	}
	return faults(r)
}

func (s *server) set(faults func(*http.Request) registryserver.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = faults
}

func (s *server) open(name string) *registry.Repository {
	s.t.Helper()
	host := s.Addr().String()
	repo, err := registry.Open(host+"/"+name, registry.Config{
		PlainHTTP:  true,
		Credential: auth.StaticCredential(host, auth.Credential{Username: user, Password: password}),
		Retry:      registry.Retry{Tries: 4, Base: time.Millisecond, Max: 10 * time.Millisecond},
		Stall:      5 * time.Second,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(repo.Close)
	return repo
}

// blobBytes are the bytes sent of all blobs.
func (s *server) blobBytes() int64 {
	var sum int64
	for _, n := range s.SentBlobs() {
		sum += n
	}
	return sum
}

func packTree(t *testing.T, repo *registry.Repository, tag string, tree map[string][]byte, previous ...string) *model.PackResult {
	t.Helper()
	packed, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, writeTree(t, tree), ""), Target: repo, Tag: tag, Previous: previous})
	if err != nil {
		t.Fatal(err)
	}
	return packed
}

func mustCopy(t *testing.T, cfg model.CopyConfig) *model.CopyResult {
	t.Helper()
	result, err := model.Copy(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if sum := result.BytesSent + result.BytesMounted + result.BytesPresent; sum != result.Bytes {
		t.Errorf("%d bytes sent, mounted or present of %d: %+v", sum, result.Bytes, result)
	}
	return result
}

// checkPulled compares the image in repo with tree, bit by bit.
func checkPulled(t *testing.T, repo *registry.Repository, tag string, tree map[string][]byte) *model.Image {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	image, err := model.Pull(t.Context(), repo, tag, out, model.PullConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if !maps.EqualFunc(tree, readTree(t, out), bytes.Equal) {
		t.Error("the pulled tree is not the packed one")
	}
	return image
}

func checkNoTag(t *testing.T, repo *registry.Repository, tags ...string) {
	t.Helper()
	for _, tag := range tags {
		if _, err := repo.Resolve(t.Context(), tag); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("tag %s: %v", tag, err)
		}
	}
}

func TestCopy(t *testing.T) {
	east, west := newServer(t, nil), newPrivateServer(t)
	from, to := east.open("models/golden"), west.open("eu/golden")
	tree := goldenTree()
	packed := packTree(t, from, "v1", tree)

	var mu sync.Mutex
	done := map[int]model.Progress{}
	cfg := model.CopyConfig{From: from, To: to, Tag: "v1", StateDir: t.TempDir(), Progress: func(p model.Progress) {
		mu.Lock()
		defer mu.Unlock()
		done[p.Layer] = p
	}}
	first := mustCopy(t, cfg)
	if first.Root.Digest != packed.Image.Index.Digest || first.ModelPack.Digest != packed.ModelPack.Digest {
		t.Errorf("copied %s and %s, packed %s and %s", first.Root.Digest, first.ModelPack.Digest, packed.Image.Index.Digest, packed.ModelPack.Digest)
	}
	image := checkPulled(t, to, "v1", tree)
	if diff := cmp.Diff(packed.Image, image); diff != "" {
		t.Errorf("packed and copied image differ: %s", diff)
	}
	for _, l := range image.Layers {
		if _, err := model.FetchHashLayer(t.Context(), to, l); err != nil {
			t.Error(err)
		}
	}
	if list, err := to.ListReferrers(t.Context(), image.Index, 10); err != nil || len(list) != 1 || list[0].ArtifactType != model.ArtifactTypePieces {
		t.Errorf("referrers %v, %v", list, err)
	}
	if desc, err := to.Resolve(t.Context(), "v1"+model.ModelPackSuffix); err != nil || desc.Digest != packed.ModelPack.Digest {
		t.Errorf("ModelPack tag: %v, %v", desc, err)
	}
	if first.BytesSent != first.Bytes || west.Received() < first.Bytes || west.Received() > first.Bytes+64<<10 {
		t.Errorf("%d of %d bytes sent, the target received %d", first.BytesSent, first.Bytes, west.Received())
	}
	var shown, total int64
	for _, p := range done {
		shown, total = shown+p.Done, p.Total
	}
	if len(done) != first.Blobs || shown != total {
		t.Errorf("progress ended at %d of %d bytes, %d of %d blobs", shown, total, len(done), first.Blobs)
	}

	t.Run("again", func(t *testing.T) {
		received, read := west.Received(), east.blobBytes()
		again := mustCopy(t, cfg)
		if again.BytesPresent != again.Bytes || west.Received() != received || east.blobBytes() != read {
			t.Errorf("second copy: %+v; %d bytes received, %d read of blobs", again, west.Received()-received, east.blobBytes()-read)
		}
	})
	t.Run("version two", func(t *testing.T) {
		tree := goldenTree()
		tree["model-00001.safetensors"] = bytesOf(9, 16<<20)
		second := packTree(t, from, "v2", tree, "v1")
		read := east.SentBlobs()
		result := mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v2"})
		old := map[digest.Digest]bool{}
		for _, l := range packed.Image.Layers {
			old[l.Digest] = true
		}
		for d, n := range east.SentBlobs() {
			if old[d] && n != read[d] {
				t.Errorf("layer %s of version one was read again", d)
			}
		}
		if extra := result.BytesSent - 16<<20; extra < 0 || extra > 100<<10 {
			t.Errorf("%d bytes sent beyond the changed file", extra)
		}
		if image := checkPulled(t, to, "v2", tree); image.Index.Digest != second.Image.Index.Digest {
			t.Error("another image")
		}
	})
	t.Run("by digest", func(t *testing.T) {
		root := packed.Image.Index.Digest.String()
		if _, err := model.Copy(t.Context(), model.CopyConfig{From: from, To: to, Tag: root}); err == nil || !strings.Contains(err.Error(), "needs a tag") {
			t.Errorf("copy without a tag: %v", err)
		}
		// The ModelPack manifest is found by the copy's tag, and is left where it is another version's.
		result := mustCopy(t, model.CopyConfig{From: from, To: west.open("eu/digest"), Tag: root, ToTag: "v1"})
		if result.ModelPack.Digest != packed.ModelPack.Digest {
			t.Errorf("ModelPack %s", result.ModelPack.Digest)
		}
		other := west.open("eu/other")
		result = mustCopy(t, model.CopyConfig{From: from, To: other, Tag: root, ToTag: "v2"})
		if result.ModelPack.Digest != "" {
			t.Errorf("ModelPack of another version: %s", result.ModelPack.Digest)
		}
		checkNoTag(t, other, "v2"+model.ModelPackSuffix)
	})
}

// The tag names another image as soon as it was resolved.
func TestCopyWhileTagMoves(t *testing.T) {
	east, west := newServer(t, nil), newServer(t, nil)
	from, to := east.open("models/moving"), west.open("models/moving")
	tree := map[string][]byte{"a.txt": []byte("first")}
	first := packTree(t, from, "latest", tree)
	other := east.open("models/moving")
	var moved atomic.Bool
	east.set(func(r *http.Request) registryserver.Fault {
		if strings.HasSuffix(r.URL.Path, first.Image.Index.Digest.String()) && moved.CompareAndSwap(false, true) {
			packTree(t, other, "latest", map[string][]byte{"a.txt": []byte("second")})
		}
		return registryserver.Fault{}
	})
	result := mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "latest"})
	if result.Root.Digest != first.Image.Index.Digest || result.ModelPack.Digest != "" {
		t.Errorf("copied %+v", result)
	}
	checkPulled(t, to, "latest", tree)
}

func TestCopyMounts(t *testing.T) {
	east, west := newServer(t, nil), newPrivateServer(t)
	tree := map[string][]byte{"big.bin": bytesOf(1, 20<<20), "small.json": []byte("{}")}
	packTree(t, east.open("models/a"), "v1", tree)
	// oras-go sends a manifest once more for its tag; blobs are what is looked for here.
	const manifests = 32 << 10
	check := func(t *testing.T, result *model.CopyResult, read, received int64) {
		t.Helper()
		if read != 0 || received > manifests || result.BytesMounted < 20<<20 || result.BytesSent > manifests {
			t.Errorf("%+v; %d bytes of blobs read, %d received", result, read, received)
		}
	}
	t.Run("one registry", func(t *testing.T) {
		to := east.open("models/b")
		read, received := east.blobBytes(), east.Received()
		result := mustCopy(t, model.CopyConfig{From: east.open("models/a"), To: to, Tag: "v1", ToTag: "v2"})
		check(t, result, east.blobBytes()-read, east.Received()-received)
		checkPulled(t, to, "v2", tree)
	})
	t.Run("another repository of the target", func(t *testing.T) {
		mustCopy(t, model.CopyConfig{From: east.open("models/a"), To: west.open("eu/a"), Tag: "v1"})
		to := west.open("eu/b")
		read, received := east.blobBytes(), west.Received()
		result := mustCopy(t, model.CopyConfig{From: east.open("models/a"), To: to, Tag: "v1", MountFrom: []string{"eu/none", "eu/b", "eu/a"}})
		check(t, result, east.blobBytes()-read, west.Received()-received)
		checkPulled(t, to, "v1", tree)
	})
	t.Run("a new tag in place", func(t *testing.T) {
		repo := east.open("models/a")
		result := mustCopy(t, model.CopyConfig{From: repo, To: repo, Tag: "v1", ToTag: "stable"})
		if result.BytesPresent != result.Bytes {
			t.Errorf("%+v", result)
		}
		checkPulled(t, repo, "stable", tree)
	})
	t.Run("mounts are refused", func(t *testing.T) {
		west.set(func(r *http.Request) registryserver.Fault {
			if r.URL.Query().Has("mount") {
				return registryserver.Fault{Status: http.StatusForbidden}
			}
			return registryserver.Fault{}
		})
		defer west.set(nil)
		to := west.open("eu/c")
		result := mustCopy(t, model.CopyConfig{From: east.open("models/a"), To: to, Tag: "v1", MountFrom: []string{"eu/a"}})
		if result.BytesMounted != 0 {
			t.Errorf("%+v", result)
		}
		checkPulled(t, to, "v1", tree)
	})
}

// TestCopyResumes stops a copy in the middle of a blob, as a kill does: nothing of the first call's
// memory is used by the second.
func TestCopyResumes(t *testing.T) {
	// The registry forgets an upload whose commit is cut off: that the other blob may be sent whole again must
	// not cost more than a chunk does.
	const size, chunk, other = 64 << 20, 8 << 20, 7 << 20
	east := newServer(t, nil)
	from := east.open("models/resume")
	tree := map[string][]byte{"big.safetensors": bytesOf(5, size), "other.safetensors": bytesOf(6, other)}
	packTree(t, from, "v1", tree)
	for name, tc := range map[string]struct {
		keep   bool                                     // the state folder
		faults func(*http.Request) registryserver.Fault // of the target, for the second call
		damage func(t *testing.T, state string)
		most   int64 // bytes of blobs that the second call reads
	}{
		"goes on": {keep: true, most: size/2 + 2*chunk + other},
		"the registry forgot": {keep: true, most: size + other + 1<<20, faults: func(r *http.Request) registryserver.Fault {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/uploads/") {
				return registryserver.Fault{Status: http.StatusNotFound}
			}
			return registryserver.Fault{}
		}},
		"no state":        {most: size + other + 1<<20},
		"a damaged state": {keep: true, most: 2*size + other + 1<<20, damage: damageSums},
	} {
		t.Run(name, func(t *testing.T) {
			west := newPrivateServer(t)
			to := west.open("eu/resume")
			cfg := model.CopyConfig{From: from, To: to, Tag: "v1", Parallel: 2}
			state := t.TempDir()
			if tc.keep {
				cfg.StateDir = state
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stopped := cfg
			stopped.Progress = func(p model.Progress) {
				if p.Name == "big.safetensors" && p.Done >= size/2 {
					cancel()
				}
			}
			if _, err := model.Copy(ctx, stopped); !errors.Is(err, context.Canceled) {
				t.Fatalf("canceled copy: %v", err)
			}
			checkNoTag(t, to, "v1", "v1"+model.ModelPackSuffix)
			if tc.damage != nil {
				tc.damage(t, state)
			}
			west.set(tc.faults)
			read := east.blobBytes()
			result := mustCopy(t, cfg)
			west.set(nil)
			if got := east.blobBytes() - read; got > tc.most {
				t.Errorf("the second copy read %d bytes", got)
			}
			if resumed := result.BytesPresent >= size/2; resumed != (tc.keep && tc.faults == nil && tc.damage == nil) {
				t.Errorf("%d bytes were there", result.BytesPresent)
			}
			if tc.keep && tc.faults == nil && tc.damage == nil && west.Received() > result.Bytes+2*chunk+64<<10 {
				t.Errorf("%d bytes received for %d", west.Received(), result.Bytes)
			}
			checkPulled(t, to, "v1", tree)
			if left, err := filepath.Glob(filepath.Join(state, "copy", "*", "*")); err != nil || len(left) > 0 {
				t.Errorf("state left behind: %v %v", left, err)
			}
		})
	}
}

// damageSums makes every saved hash that of other bytes.
func damageSums(t *testing.T, state string) {
	files, err := filepath.Glob(filepath.Join(state, "copy", "*", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files of state, %v", len(files), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var saved map[string]any
		if err := json.Unmarshal(raw, &saved); err != nil {
			t.Fatal(err)
		}
		sum := []byte(saved["sum"].(string))
		sum[20] ^= 1 // base64 of the marshaled hash: another letter is another state
		saved["sum"] = string(sum)
		if raw, err = json.Marshal(saved); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCopyTwiceAtOnce(t *testing.T) {
	east, west := newServer(t, nil), newServer(t, nil)
	from, to := east.open("models/twice"), west.open("models/twice")
	packTree(t, from, "v1", map[string][]byte{"a.txt": []byte("a")})
	cfg := model.CopyConfig{From: from, To: to, Tag: "v1", StateDir: t.TempDir()}
	first := cfg
	first.Progress = func(model.Progress) {
		if _, err := model.Copy(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "wait for it") {
			t.Errorf("second copy: %v", err)
		}
	}
	mustCopy(t, first)
}

func pushManifest(t *testing.T, repo *registry.Repository, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.Push(t.Context(), desc, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func pushBlob(t *testing.T, repo *registry.Repository, mediaType string, content []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if err := repo.Push(t.Context(), desc, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func ociManifest(config ocispec.Descriptor, subject *ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: layers, Subject: subject,
	}
}

// attach pushes a referrer of subject.
func attach(t *testing.T, repo *registry.Repository, subject ocispec.Descriptor, what string) ocispec.Descriptor {
	t.Helper()
	pushBlob(t, repo, ocispec.MediaTypeEmptyJSON, []byte("{}"))
	m := ociManifest(ocispec.DescriptorEmptyJSON, &subject, pushBlob(t, repo, "application/vnd.test", []byte(what)))
	m.ArtifactType = "application/vnd.test." + what
	return pushManifest(t, repo, ocispec.MediaTypeImageManifest, m)
}

func TestCopyForeignImages(t *testing.T) {
	const (
		dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
		dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
		dockerConfig   = "application/vnd.docker.container.image.v1+json"
		dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	)
	east, west := newServer(t, nil), newPrivateServer(t)
	for name, tc := range map[string]struct {
		push             func(t *testing.T, repo *registry.Repository) ocispec.Descriptor
		manifests, blobs int
	}{
		"docker list": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			var list ocispec.Index
			list.SchemaVersion, list.MediaType = 2, dockerList
			for i, arch := range []string{"amd64", "arm64"} {
				m := ociManifest(pushBlob(t, repo, dockerConfig, fmt.Appendf(nil, `{"architecture":%q}`, arch)), nil,
					pushBlob(t, repo, dockerLayer, bytesOf(uint64(i), 9<<20)), pushBlob(t, repo, dockerLayer, []byte("shared")))
				m.MediaType = dockerManifest
				child := pushManifest(t, repo, dockerManifest, m)
				child.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
				list.Manifests = append(list.Manifests, child)
			}
			return pushManifest(t, repo, dockerList, list)
		}, 3, 5},
		"one OCI manifest": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			return pushManifest(t, repo, ocispec.MediaTypeImageManifest, ociManifest(
				pushBlob(t, repo, ocispec.MediaTypeImageConfig, []byte(`{}`)), nil,
				pushBlob(t, repo, ocispec.MediaTypeImageLayerGzip, bytesOf(7, 1<<20)), pushBlob(t, repo, ocispec.MediaTypeImageLayerGzip, nil)))
		}, 1, 3},
		"index of an index": {func(t *testing.T, repo *registry.Repository) ocispec.Descriptor {
			inner := pushManifest(t, repo, ocispec.MediaTypeImageManifest, ociManifest(pushBlob(t, repo, ocispec.MediaTypeImageConfig, []byte(`{}`)), nil))
			for range 2 {
				inner = pushManifest(t, repo, ocispec.MediaTypeImageIndex, ocispec.Index{
					Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{inner},
				})
			}
			return inner
		}, 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := "foreign/" + strings.ReplaceAll(strings.ToLower(name), " ", "-")
			from, to := east.open(path), west.open(path)
			root := tc.push(t, from)
			if err := from.Tag(t.Context(), root, "v1"); err != nil {
				t.Fatal(err)
			}
			result := mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1"})
			if result.Manifests != tc.manifests || result.Blobs != tc.blobs || result.ModelPack.Digest != "" {
				t.Errorf("%+v", result)
			}
			if desc, err := to.Resolve(t.Context(), "v1"); err != nil || desc.Digest != root.Digest || desc.MediaType != root.MediaType {
				t.Errorf("%+v, %v", desc, err)
			}
			if again := mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1"}); again.BytesSent != 0 {
				t.Errorf("second copy: %+v", again)
			}
		})
	}
}

// referrersAPI puts the API, which distribution lacks, before a registry.
func referrersAPI(reg *testRegistry) {
	var mu sync.Mutex
	bySubject := map[string][]ocispec.Descriptor{}
	reg.setFault(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if _, subject, ok := strings.Cut(r.URL.Path, "/referrers/"); ok {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: bySubject[subject]}
			return json.NewEncoder(w).Encode(index) == nil
		}
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		var raw bytes.Buffer
		var m ocispec.Manifest
		if _, err := raw.ReadFrom(r.Body); err != nil || json.Unmarshal(raw.Bytes(), &m) != nil {
			return false
		}
		r.Body = http.NoBody
		if raw.Len() > 0 {
			r.Body = readCloser{bytes.NewReader(raw.Bytes())}
		}
		if m.Subject != nil {
			subject := m.Subject.Digest.String()
			w.Header().Set("OCI-Subject", subject)
			desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw.Bytes()), Size: int64(raw.Len()), ArtifactType: m.ArtifactType}
			if !slices.ContainsFunc(bySubject[subject], func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
				bySubject[subject] = append(bySubject[subject], desc)
			}
		}
		return false
	})
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

func TestCopyReferrers(t *testing.T) {
	for name, api := range map[string][2]bool{
		"neither has the API": {}, "the source has": {true, false}, "the target has": {false, true}, "both have": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			east, west := newRegistry(t), newRegistry(t)
			for i, reg := range []*testRegistry{east, west} {
				if api[i] {
					referrersAPI(reg)
				}
			}
			from, to := east.open("models/signed"), west.open("models/signed")
			packed := packTree(t, from, "v1", map[string][]byte{"a.txt": []byte("a")})
			pairs := map[digest.Digest]ocispec.Descriptor{} // referrer -> subject
			add := func(subject ocispec.Descriptor, what string) ocispec.Descriptor {
				r := attach(t, from, subject, what)
				pairs[r.Digest] = subject
				return r
			}
			sbom := add(packed.Image.Manifest, "sbom")
			add(sbom, "signature-of-sbom")
			add(packed.Image.Index, "signature")
			add(packed.ModelPack, "signature-of-modelpack")
			mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1"})
			listed := func(repo *registry.Repository, subject ocispec.Descriptor) []digest.Digest {
				list, err := repo.ListReferrers(t.Context(), subject, 10)
				if err != nil {
					t.Fatal(err)
				}
				var digests []digest.Digest
				for _, r := range list {
					digests = append(digests, r.Digest)
				}
				slices.Sort(digests)
				return digests
			}
			for r, subject := range pairs {
				got := listed(to, subject)
				if !slices.Contains(got, r) || !slices.Equal(got, listed(from, subject)) {
					t.Errorf("%s has the referrers %v, want %s among them", subject.Digest, got, r)
				}
			}
			// One that is signed later comes with the next copy, alone.
			add(packed.Image.Index, "late")
			if again := mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1"}); again.BytesSent > 2<<10 {
				t.Errorf("second copy: %+v", again)
			}
			if got := listed(to, packed.Image.Index); len(got) != 3 {
				t.Errorf("referrers after the second copy: %v", got)
			}
		})
	}
}

// A copy that was killed between a referrer and its fallback tag is mended by the next one.
func TestCopyMendsFallbackTag(t *testing.T) {
	east, west := newServer(t, nil), newServer(t, nil)
	from, to := east.open("models/mend"), west.open("models/mend")
	packed := packTree(t, from, "v1", map[string][]byte{"a.txt": []byte("a")})
	fallback := "sha256-" + packed.Image.Index.Digest.Encoded()
	west.set(func(r *http.Request) registryserver.Fault {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, fallback) {
			return registryserver.Fault{Status: http.StatusForbidden}
		}
		return registryserver.Fault{}
	})
	if _, err := model.Copy(t.Context(), model.CopyConfig{From: from, To: to, Tag: "v1"}); err == nil {
		t.Fatal("no error")
	}
	west.set(nil)
	checkNoTag(t, to, "v1")
	mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1"})
	if list, err := to.ListReferrers(t.Context(), packed.Image.Index, 10); err != nil || len(list) != 1 {
		t.Errorf("referrers %v, %v", list, err)
	}
}

// Without its hash layers an image is of no use to nodes, however it lost them.
func TestCopyMissesHashLayers(t *testing.T) {
	east, west := newServer(t, nil), newServer(t, nil)
	from, to := east.open("models/torn"), west.open("models/torn")
	tree := map[string][]byte{"a.txt": []byte("a")}
	packed := packTree(t, from, "v1", tree)
	list, err := from.Resolve(t.Context(), "sha256-"+packed.Image.Index.Digest.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Delete(t.Context(), list); err != nil {
		t.Fatal(err)
	}
	cfg := model.CopyConfig{From: from, To: to, Tag: "v1"}
	if _, err := model.Copy(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "push it there again") {
		t.Errorf("error %v", err)
	}
	checkNoTag(t, to, "v1")
	packTree(t, from, "v1", tree)
	mustCopy(t, cfg)
	checkPulled(t, to, "v1", tree)
}

// TestCopyMemory looks at the live heap on the way: it must not grow with the blob.
func TestCopyMemory(t *testing.T) {
	const size = 128 << 20
	east, west := newServer(t, nil), newServer(t, nil)
	from, to := east.open("models/zero"), west.open("models/zero")
	if _, err := model.Pack(t.Context(), model.PackConfig{Source: &zeroSource{size: size}, Target: from, Tag: "v1"}); err != nil {
		t.Fatal(err)
	}
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	mustCopy(t, model.CopyConfig{From: from, To: to, Tag: "v1", StateDir: t.TempDir(), Progress: func(model.Progress) {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak.Store(max(peak.Load(), now.HeapInuse))
	}})
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("heap grew by %d MiB", grown>>20)
	}
}
