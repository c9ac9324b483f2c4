package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/retry"
)

// maxReferrerPages bounds a list of referrers whose pages lead on for ever.
const maxReferrerPages = 128

// ReadManifest reads the manifest or index desc whole and checks its size and digest. A body that
// breaks off is asked for again, Retry.Tries times. Errors are *Error, or say what came instead.
func (r *Repository) ReadManifest(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	op := "read manifest " + desc.Digest.String()
	if desc.Size < 0 || desc.Size > maxManifest {
		return nil, r.reject(op, fmt.Errorf("it has %d bytes, the limit is %d", desc.Size, maxManifest))
	}
	for try := 0; ; try++ {
		raw, err := content.FetchAll(ctx, r.Manifests(), desc)
		switch {
		case err == nil:
			return raw, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case answered(err):
			return nil, r.explain(op, err)
		case !retry.Transient(err):
			return nil, r.reject(op, err)
		case try+1 >= r.retry.Tries:
			return nil, r.explain(op, err)
		}
		if err := retry.Sleep(ctx, r.retry.Pause(try)); err != nil {
			return nil, err
		}
	}
}

// ListReferrers returns the manifests whose subject is desc; more than limit are an error. Of a
// registry without the referrers API the fallback tag is read (distribution-spec, "Referrers Tag
// Schema"). What it returns is the registry's word: the subject of a referrer is still to be checked.
// A repository or a subject that does not exist has none. Errors are *Error, or say what came instead.
func (r *Repository) ListReferrers(ctx context.Context, desc ocispec.Descriptor, limit int) ([]ocispec.Descriptor, error) {
	op := "list the referrers of " + desc.Digest.String()
	all, err := r.listReferrers(ctx, desc, limit)
	if refused, ok := errors.AsType[*errcode.ErrorResponse](err); ok && noSuchAPI(refused.StatusCode) && r.SetReferrersCapability(false) == nil {
		all, err = r.listReferrers(ctx, desc, limit)
	}
	switch refused, ok := errors.AsType[*errcode.ErrorResponse](err); {
	case err == nil || ctx.Err() != nil:
		return all, err
	case ok && refused.StatusCode == http.StatusNotFound:
		return nil, nil
	case answered(err) || retry.Transient(err):
		return nil, r.explain(op, err)
	}
	return nil, r.reject(op, err)
}

func (r *Repository) listReferrers(ctx context.Context, desc ocispec.Descriptor, limit int) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	err := r.Referrers(ctx, desc, "", func(page []ocispec.Descriptor) error {
		if all = append(all, page...); len(all) > limit {
			return fmt.Errorf("there are more than %d", limit)
		}
		return nil
	})
	return all, err
}

// noSuchAPI knows the answers, beside the 404 of the specification, of registries that never heard
// of referrers.
func noSuchAPI(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented
}

// answered reports whether err is about the registry's answer or the lack of one, and not about
// what the answer holds.
func answered(err error) bool {
	var refused *errcode.ErrorResponse
	var unsent *url.Error
	return errors.As(err, &refused) || errors.As(err, &unsent) ||
		errors.Is(err, errdef.ErrNotFound) || errors.Is(err, auth.ErrBasicCredentialNotFound)
}

// reject says what is wrong with content that the registry serves. To ask again does not help.
func (r *Repository) reject(op string, err error) error {
	return fmt.Errorf("registry %s, repository %s: %s: %w: %w", r.Reference.Registry, r.Reference.Repository, op, errLocal, err)
}
