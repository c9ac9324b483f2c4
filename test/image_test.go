package test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/shoal-project/shoal/model"
)

// TestRootOfOtherBytes pushes an image that names the layers of another one, with the pieces root
// of other bytes: whoever writes a manifest must not change what the other image reads.
func TestRootOfOtherBytes(t *testing.T) {
	for name, tags := range map[string][]string{
		"the lie comes first": {"evil", "v1"},
		"the lie comes later": {"v1", "evil"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 2)
			dir, files := makeModel(t)
			honest := r.push(dir, "v1")
			pushLie(t, openRepository(t, r.upstream.host+"/models/m"), honest, "evil")
			r.desire(tags[0])
			for _, n := range r.nodes {
				r.until("the node says how far it is", func() bool {
					m := r.report(n, tags[0])
					return m.State == "Ready" || m.Error != ""
				})
			}
			r.desire("v1", "evil")
			r.ready(honest, files, r.nodes...)
			for _, n := range r.nodes {
				var said string
				r.until("the lie is found", func() bool {
					m := r.report(n, "evil")
					if m.State == "Ready" {
						t.Fatal("the lie was published")
					}
					said = m.Error
					return m.State == "Failed"
				})
				t.Log(said)
			}
			r.ready(honest, files, r.nodes...)
			if m := r.settled(r.nodes[0], "v1"); m.Bytes != m.Total {
				t.Errorf("%+v", m)
			}
		})
	}
}

// pushLie pushes a copy of image as tag, whose largest layer has the root and the hash layer of
// other bytes.
func pushLie(t *testing.T, repo *remote.Repository, image *model.Image, tag string) {
	t.Helper()
	layers := append([]model.Layer(nil), image.Layers...)
	big := 0
	for i := range layers {
		if layers[i].Size > layers[big].Size {
			big = i
		}
	}
	other := make([]byte, layers[big].Size)
	_, _ = rand.NewChaCha8([32]byte{99}).Read(other) // never fails
	var hasher model.PieceHasher
	_, _ = hasher.Write(other) // never fails
	hashes, root := hasher.Sum()
	wire, err := hashes.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	layers[big].Root = root
	layers[big].Hashes = push(t, repo, model.MediaTypeHashLayer, wire).Digest
	table, err := json.Marshal(layers)
	if err != nil {
		t.Fatal(err)
	}
	tableDesc := push(t, repo, model.MediaTypeMembers, table)

	var index ocispec.Index
	fetchJSON(t, repo, image.Index, &index)
	lie := func(annotations map[string]string) {
		annotations[model.AnnotationMembers] = tableDesc.Digest.String()
		annotations[model.AnnotationMembersSize] = strconv.FormatInt(tableDesc.Size, 10)
	}
	lie(index.Annotations)
	for i, desc := range index.Manifests {
		var manifest ocispec.Manifest
		fetchJSON(t, repo, desc, &manifest)
		lie(manifest.Annotations)
		manifest.Layers[big].Annotations[model.AnnotationRoot] = root.String()
		text, err := json.Marshal(manifest)
		if err != nil {
			t.Fatal(err)
		}
		pushed := push(t, repo, desc.MediaType, text)
		index.Manifests[i].Digest, index.Manifests[i].Size = pushed.Digest, pushed.Size
	}
	text, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	desc := content.NewDescriptorFromBytes(ocispec.MediaTypeImageIndex, text)
	if err := repo.PushReference(t.Context(), desc, bytes.NewReader(text), tag); err != nil {
		t.Fatal(err)
	}
}

func push(t *testing.T, repo *remote.Repository, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := repo.Push(t.Context(), desc, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return desc
}

func fetchJSON(t *testing.T, repo *remote.Repository, desc ocispec.Descriptor, v any) {
	t.Helper()
	rc, err := repo.Fetch(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	text, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatal(err)
	}
}
