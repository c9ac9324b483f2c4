package controller

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"oras.land/oras-go/v2/errdef"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
)

// SurveyConfig is by what a Survey asks.
type SurveyConfig struct {
	Sources OpenSource
	// Secrets reads those that the object names.
	Secrets client.Reader
	// Reach is as in HubConfig.
	Reach map[string]string
}

// Survey is what the source and the registries of a ModelDistribution say before anything is moved.
type Survey struct {
	// Rival is the object, as namespace/name, because of which this one is refused, "" for none.
	Rival string
	// Packed says that the image is whole in a registry already: the source is not read any more, and Parts are the
	// image's.
	Packed bool
	// Revision is that of the status: of what would be packed.
	Revision string
	// Unlisted is why the source could not be listed. There are no Parts then.
	Unlisted error
	// SourceHost is the registry that is the source, "" where that is none.
	SourceHost string
	// Parts are the layers that would be packed; of an image, its blobs.
	Parts []SurveyPart
	// Registries are those of the spec, in its order.
	Registries []SurveyRegistry
	// Order has the indexes of Registries in the order in which they are tried for the packing.
	Order []int
}

// SurveyPart is a layer or blob.
type SurveyPart struct {
	// Files is how many files of the source are in it, Bytes how many bytes of the source are read for it.
	Files int
	Bytes int64
	// Size is the bytes that are sent of it.
	Size int64

	digest digest.Digest // "" while only packing would tell
}

// SurveyRegistry is one registry's answers.
type SurveyRegistry struct {
	// Host is the registry, Reference the image in it with its tag. Region may be "".
	Host, Reference, Region string
	// Err is why it could not be asked. Has is empty then.
	Err error
	// Has says of each of the Parts whether it would not be sent there.
	Has []bool
}

// TakeSurvey asks the source and the registries of md what a controller would find that has Secrets and identity of
// whoever asks. all are the ModelDistributions that there are, for the earlier versions among them. It reads
// listings and descriptions, nothing of the model's content, and writes nothing.
func TakeSurvey(ctx context.Context, cfg SurveyConfig, md *v1alpha1.ModelDistribution, all []v1alpha1.ModelDistribution) *Survey {
	if md.CreationTimestamp.IsZero() { // it would be the last
		md = md.DeepCopy()
		md.CreationTimestamp = metav1.NewTime(time.Now())
	}
	t := &surveyor{cfg: cfg, md: md, all: all, access: &access{secret: secretsOf(cfg.Secrets), reach: cfg.Reach}, places: places(&md.Spec)}
	defer t.access.close()
	t.Rival = rivalOf(md, all)
	t.Order = packOrder(observed{places: t.places, sourceRegion: sourceRegion(&md.Spec.ModelSource)})
	t.openRegistries(ctx)
	defer t.closeRegistries()
	t.list(ctx)
	t.askRegistries(ctx)
	return &t.Survey
}

// surveyor is one call of TakeSurvey.
type surveyor struct {
	Survey
	cfg    SurveyConfig
	md     *v1alpha1.ModelDistribution
	all    []v1alpha1.ModelDistribution
	access *access
	places []place
	repos  []*registry.Repository // nil where it could not be opened
	layers *model.LayerPlan       // of files; nil for an image
}

func (t *surveyor) openRegistries(ctx context.Context) {
	t.repos = make([]*registry.Repository, len(t.places))
	t.Registries = make([]SurveyRegistry, len(t.places))
	t.each(func(i int) error {
		p := t.places[i]
		t.Registries[i] = SurveyRegistry{Host: p.host, Reference: p.reference(), Region: p.region}
		repo, err := t.access.open(ctx, t.md.Namespace, p)
		t.repos[i] = repo
		return err
	})
}

func (t *surveyor) closeRegistries() {
	for _, repo := range t.repos {
		if repo != nil {
			repo.Close()
		}
	}
}

// each calls do for every registry at once, and keeps its error.
func (t *surveyor) each(do func(i int) error) {
	var group errgroup.Group
	for i := range t.places {
		group.Go(func() error {
			if err := do(i); err != nil {
				t.Registries[i].Err = err
			}
			return nil
		})
	}
	_ = group.Wait() // the errors are in Registries
}

// list finds out what would be moved.
func (t *surveyor) list(ctx context.Context) {
	if d := digest.Digest(t.md.Status.Digest); d != "" && t.listPacked(ctx, d) {
		return
	}
	if t.md.Spec.ModelSource.Registry != nil {
		t.Unlisted = t.listImage(ctx)
	} else {
		t.Unlisted = t.listFiles(ctx)
	}
}

// listPacked takes the parts of an image that was packed from the first registry that has it.
func (t *surveyor) listPacked(ctx context.Context, d digest.Digest) bool {
	for k, i := range t.Order {
		if t.repos[i] == nil {
			continue
		}
		_, blobs, err := model.ListImage(ctx, t.repos[i], d.String(), t.places[i].tag)
		if err != nil {
			continue // that it does not answer is noticed when it is asked what it has
		}
		t.Packed, t.Revision = true, t.md.Status.Revision
		t.addBlobs(blobs)
		t.Order = append([]int{i}, slices.Delete(t.Order, k, k+1)...)
		return true
	}
	return false
}

func (t *surveyor) listImage(ctx context.Context) error {
	from, reference, err := sourcePlace(t.md.Spec.ModelSource.Registry)
	if err != nil {
		return err
	}
	repo, err := t.access.open(ctx, t.md.Namespace, from)
	if err != nil {
		return err
	}
	defer repo.Close()
	root, blobs, err := model.ListImage(ctx, repo, reference, string(t.md.Spec.ModelVersion))
	if err != nil {
		return err
	}
	t.Revision, t.SourceHost = root.String(), from.host
	t.addBlobs(blobs)
	return nil
}

func (t *surveyor) addBlobs(blobs []ocispec.Descriptor) {
	for _, b := range blobs {
		t.Parts = append(t.Parts, SurveyPart{Files: 1, Bytes: b.Size, Size: b.Size, digest: b.Digest})
	}
}

func (t *surveyor) listFiles(ctx context.Context) error {
	s := &t.md.Spec.ModelSource
	source, err := t.cfg.Sources(ctx, s, t.access.rereading(t.md.Namespace, sourceSecret(s)))
	if err != nil {
		return err
	}
	if closer, ok := source.(interface{ Close() }); ok {
		defer closer.Close()
	}
	files, err := source.List(ctx)
	if err != nil {
		return err
	}
	if t.layers, err = model.PlanLayers(files); err != nil {
		return err
	}
	t.Revision = revisionOf(files)
	for _, l := range t.layers.Layers {
		part := SurveyPart{Files: len(l.Members), Size: l.Size}
		for _, m := range l.Members {
			part.Bytes += m.Size
		}
		t.Parts = append(t.Parts, part)
	}
	return nil
}

// askRegistries finds out what each of them has of the parts. Files are known by earlier images, as when they are
// packed. What is known by its digest is looked for by it, as when it is copied.
func (t *surveyor) askRegistries(ctx context.Context) {
	found := make([][]model.Layer, len(t.places))
	t.each(func(i int) (err error) {
		switch {
		case t.repos[i] == nil:
		case t.layers != nil:
			references := append([]string{t.places[i].tag}, previousTags(t.md, t.all, t.places[i])...)
			found[i], err = t.layers.Reusable(ctx, t.repos[i], references)
		default: // whether it can be asked
			_, err = t.repos[i].Resolve(ctx, t.places[i].tag)
			if errors.Is(err, errdef.ErrNotFound) {
				err = nil
			}
		}
		return err
	})
	for _, layers := range found {
		for k, l := range layers {
			if l.Digest != "" {
				t.Parts[k].digest = l.Digest
			}
		}
	}
	// Only the copies to the others look for digests: the packing of a layer finds out its digest by sending it.
	packs := slices.IndexFunc(t.Order, func(i int) bool { return t.Registries[i].Err == nil })
	t.each(func(i int) error {
		if t.Registries[i].Err != nil {
			return nil
		}
		has := make([]bool, len(t.Parts))
		for k, l := range found[i] {
			has[k] = l.Digest != ""
		}
		if t.layers == nil || packs < 0 || t.Order[packs] != i {
			if err := t.lookUp(ctx, i, has); err != nil {
				return err
			}
		}
		t.Registries[i].Has = has
		return nil
	})
}

// lookUp asks a registry for the parts of which it is not known that it has them.
func (t *surveyor) lookUp(ctx context.Context, i int, has []bool) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for k, part := range t.Parts {
		if has[k] || part.digest == "" {
			continue
		}
		group.Go(func() error {
			_, err := t.repos[i].BlobSize(ctx, part.digest)
			if errors.Is(err, errdef.ErrNotFound) {
				return nil
			}
			has[k] = err == nil
			return err
		})
	}
	return group.Wait()
}
