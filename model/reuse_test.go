package model_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
)

// TestPlanIsWhatPackDoes: what is said of a second version before it is packed is what packing it does.
func TestPlanIsWhatPackDoes(t *testing.T) {
	reg := newRegistry(t)
	repo := reg.open("models/planned")
	state, root := t.TempDir(), writeTree(t, goldenTree())
	reusable := func(references ...string) (*model.LayerPlan, []model.Layer) {
		t.Helper()
		dir := newDir(t, root, state)
		files, err := dir.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		plan, err := model.PlanLayers(files)
		if err != nil {
			t.Fatal(err)
		}
		found, err := plan.Reusable(t.Context(), repo, references)
		if err != nil {
			t.Fatal(err)
		}
		if dir.BytesRead() != 0 {
			t.Errorf("%d bytes of the files were read", dir.BytesRead())
		}
		return plan, found
	}
	_, found := reusable("v1") // there is not even a repository
	for i, l := range found {
		if l.Digest != "" {
			t.Errorf("layer %d of an empty registry is %s", i, l.Digest)
		}
	}
	if _, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, root, state), Target: repo, Tag: "v1"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "model-00001.safetensors"), bytesOf(9, 16<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	plan, found := reusable("none", "v1")
	packed, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, root, state), Target: repo, Tag: "v2", Previous: []string{"v1"}})
	if err != nil {
		t.Fatal(err)
	}
	reused := 0
	for i, l := range packed.Image.Layers {
		if plan.Layers[i].Size != l.Size {
			t.Errorf("layer %d has %d bytes, planned were %d", i, l.Size, plan.Layers[i].Size)
		}
		if found[i].Digest == "" {
			continue
		}
		if reused++; found[i].Digest != l.Digest {
			t.Errorf("layer %d is %s, planned was %s", i, l.Digest, found[i].Digest)
		}
	}
	if reused != packed.LayersReused || reused != len(found)-1 {
		t.Errorf("%d layers of %d are reusable, %d were reused", reused, len(found), packed.LayersReused)
	}

	root0, blobs, err := model.ListImage(t.Context(), repo, "v2", "v2")
	if err != nil {
		t.Fatal(err)
	}
	copied := mustCopy(t, model.CopyConfig{From: repo, To: newRegistry(t).open("models/copied"), Tag: "v2"})
	if root0 != copied.Root.Digest || len(blobs) != copied.Blobs {
		t.Errorf("listed %s with %d blobs, copied %s with %d", root0, len(blobs), copied.Root.Digest, copied.Blobs)
	}
}

// TestPlanOfASilentRegistry: that a registry does not answer is not that it has nothing.
func TestPlanOfASilentRegistry(t *testing.T) {
	reg := newRegistry(t)
	reg.setFault(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	plan, err := model.PlanLayers([]model.File{{Path: "a", Size: 1}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = plan.Reusable(t.Context(), reg.open("models/silent"), []string{"v1"})
	if told, ok := errors.AsType[*registry.Error](err); !ok || told.Status != http.StatusForbidden {
		t.Errorf("it says %v", err)
	}
}
