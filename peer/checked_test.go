package peer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/peer/store"
	"github.com/shoal-project/shoal/tracker/client"
)

// TestContradiction shows what becomes of a manifest whose pieces root is that of other bytes than its digest,
// where a registry has the bytes for it: the model is withdrawn, with the reason, and nobody gets the blob.
func TestContradiction(t *testing.T) {
	r := newRegion(t)
	image := r.push("v1", modelFiles(1))
	layer := slices.MaxFunc(image.Layers, func(a, b model.Layer) int { return cmp.Compare(a.Size, b.Size) })
	lie := r.contradict("v1", layer)
	r.newNode().checkContradicted(layer, lie) // found at once

	n := r.newNode() // found before a crash
	n.stop()
	n.publishUnchecked("lie", layer.Digest)
	if _, err := os.Stat(n.tree("lie") + "/"); err != nil {
		t.Fatal(err)
	}
	n.start()
	n.checkContradicted(layer, lie)
}

// publishUnchecked leaves in the stopped node's store what a node leaves that is killed between the moment at
// which it notes that a layer contradicts its manifest and that at which it withdraws the model.
func (n *node) publishUnchecked(tag string, layer digest.Digest) {
	n.t.Helper()
	ctx, s := n.t.Context(), newStore(n.t, n.dir)
	repo := n.region.open(tag)
	image, err := resolveContent(ctx, repo, tag)
	if err != nil {
		n.t.Fatal(err)
	}
	reader := newTask(n.Peer, n.region.desired(tag))
	var lying *store.Blob
	for _, spec := range image.specs() {
		if spec.Hashes, err = reader.hashes(ctx, []*registry.Repository{repo}, *spec.Layer); err != nil {
			n.t.Fatal(err)
		}
		blob, err := s.Create(ctx, spec)
		if err != nil {
			n.t.Fatal(err)
		}
		content := n.region.read(tag, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: spec.Digest, Size: spec.Size})
		writeWhole(n.t, blob, content)
		if spec.Digest == layer {
			lying = blob
			continue
		}
		if err := blob.Close(); err != nil {
			n.t.Fatal(err)
		}
	}
	if _, err := image.publish(ctx, s, tag); err != nil {
		n.t.Fatal(err)
	}
	if _, ok := errors.AsType[*store.CorruptError](lying.Finish(ctx)); !ok {
		n.t.Fatal("the layer does not contradict its manifest")
	}
	if err := errors.Join(lying.Close(), s.Close()); err != nil {
		n.t.Fatal(err)
	}
}

func writeWhole(t *testing.T, blob *store.Blob, content []byte) {
	t.Helper()
	if _, err := blob.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	for i := range blob.NumPieces() {
		if err := blob.MarkPiece(i); err != nil {
			t.Fatal(err)
		}
	}
}

func (n *node) checkContradicted(layer model.Layer, lie model.Hash) {
	t := n.t
	t.Helper()
	n.region.desire("lie")
	m := n.reach("lie", StateFailed)
	want := fmt.Sprintf("blob %s: the pieces root %s that its manifest gives is that of", layer.Digest, lie)
	if !strings.Contains(m.Error, want) || !strings.Contains(m.Error, "pack the model again") {
		t.Errorf("got %q, want %q", m.Error, want)
	}
	until(t, func() string {
		if _, err := os.Stat(n.tree("lie") + "/"); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Sprintf("the model is there: %v", err)
		}
		return ""
	})
	if b, err := n.store.OpenVerified(t.Context(), layer.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the blob is given under its digest: %v, %v", b, err)
	}
	layer.Root = lie
	blob, err := n.store.OpenBlob(t.Context(), store.KeyOf(layer))
	if err != nil {
		t.Fatal(err)
	}
	n.checkFinish(blob, true)
}

// TestWrongRawBlob shows that a blob without a root is not ready while its sha256 is unknown.
func TestWrongRawBlob(t *testing.T) {
	n := newRegion(t).idle()
	content := modelFiles(1)["weights/a.safetensors"]
	blob, err := n.store.Create(t.Context(), store.Spec{Digest: digest.FromString("other bytes"), Size: int64(len(content))})
	if err != nil {
		t.Fatal(err)
	}
	writeWhole(t, blob, content)
	n.checkFinish(blob, false)
}

// checkFinish finishes a seed of a whole blob that does not have its digest, and closes the blob.
func (n *node) checkFinish(blob *store.Blob, ready bool) {
	n.t.Helper()
	sd := &seed{all: n.seeds, key: blob.Key(), blob: blob, ready: make(chan struct{}), checked: make(chan struct{})}
	err := sd.finish(n.t.Context())
	if _, ok := errors.AsType[*store.CorruptError](err); !ok {
		n.t.Errorf("got %v, want a CorruptError", err)
	}
	if sd.isReady() != ready || sd.isChecked() {
		n.t.Errorf("ready: %t, want %t; checked: %t, want false", sd.isReady(), ready, sd.isChecked())
	}
	if err := blob.Close(); err != nil {
		n.t.Error(err)
	}
}

// contradict tags as "lie" the image of tag with another pieces root for layer, and has the registry give the
// bytes of that root.
func (r *region) contradict(tag string, layer model.Layer) (root model.Hash) {
	r.t.Helper()
	ctx, repo := r.t.Context(), r.open(tag)
	content := r.read(tag, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: layer.Digest, Size: layer.Size})
	at := layer.Size / 2
	content[at] ^= 0xff
	var hasher model.PieceHasher
	_, _ = hasher.Write(content)
	hashes, root := hasher.Sum()
	if err := r.control.PutHashes(ctx, client.Key{Digest: layer.Digest, Root: root}, layer.Size, hashes); err != nil {
		r.t.Fatal(err)
	}
	var index ocispec.Index
	top, err := repo.Resolve(ctx, tag)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := json.Unmarshal(r.read(tag, top), &index); err != nil {
		r.t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(r.read(tag, index.Manifests[0]), &m); err != nil {
		r.t.Fatal(err)
	}
	// The root stands in the member table and in the manifest, which names the table.
	old, table := m.Annotations[model.AnnotationMembers], ocispec.Descriptor{MediaType: model.MediaTypeMembers}
	table.Digest = digest.Digest(old)
	if _, err := fmt.Sscan(m.Annotations[model.AnnotationMembersSize], &table.Size); err != nil {
		r.t.Fatal(err)
	}
	members := strings.ReplaceAll(string(r.read(tag, table)), layer.Root.String(), root.String())
	table.Digest = digest.FromString(members)
	if err := repo.Push(ctx, table, strings.NewReader(members)); err != nil {
		r.t.Fatal(err)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	raw = []byte(strings.NewReplacer(layer.Root.String(), root.String(), old, table.Digest.String()).Replace(string(raw)))
	desc := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := repo.PushReference(ctx, desc, bytes.NewReader(raw), "lie"); err != nil {
		r.t.Fatal(err)
	}
	r.setFault(func(req *http.Request) registryserver.Fault {
		if blobOf(req) != layer.Digest.String() {
			return registryserver.Fault{}
		}
		from, to := int64(0), layer.Size-1
		if s := req.Header.Get("Range"); s != "" {
			if _, err := fmt.Sscanf(s, "bytes=%d-%d", &from, &to); err != nil {
				r.t.Errorf("range %q: %v", s, err)
			}
		}
		if at < from || at > to {
			return registryserver.Fault{}
		}
		return registryserver.Fault{At: at - from, Flip: true}
	})
	return root
}
