package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/rendezvous"
	"github.com/shoal-project/shoal/swarm"

	orasregistry "oras.land/oras-go/v2/registry"
)

// Origins says where bytes come from that no peer has.
type Origins struct {
	// Mirrors are the HOST:PORT of the region's mirrors. They share the work: all nodes ask the same one
	// for a blob, by rendezvous hash over its digest, and the next one while that does not answer.
	// MirrorTLS is the node's side of mTLS with them; nil means plain text.
	Mirrors   []string
	MirrorTLS *tls.Config
	// Upstreams are the registries that may be read directly when the mirror does not deliver, by
	// the name in references.
	Upstreams map[string]Upstream
}

// Upstream is a registry behind the mirror. It is read without credentials of the node's own.
type Upstream struct {
	Host      string // HOST:PORT
	PlainHTTP bool
}

// open returns the repositories of reference in the order in which they are tried, the mirrors first, and
// its tag or digest.
func (o Origins) open(reference string) (repos []*registry.Repository, tag string, err error) {
	return o.openFor(reference, reference)
}

// openBlob is open for one blob of the image that reference names.
func (o Origins) openBlob(reference string, d digest.Digest) ([]*registry.Repository, error) {
	repos, _, err := o.openFor(reference, d.String())
	return repos, err
}

// openFor is open with the key by which the mirrors share the work.
func (o Origins) openFor(reference, key string) (repos []*registry.Repository, tag string, err error) {
	ref, err := orasregistry.ParseReference(reference)
	if err != nil {
		return nil, "", fmt.Errorf("image reference %q: %w", reference, err)
	}
	if ref.Reference == "" {
		ref.Reference = "latest"
	}
	anonymous := auth.StaticCredential("", auth.EmptyCredential)
	for _, mirror := range rendezvous.Rank(key, o.Mirrors) {
		repo, err := registry.Open(mirror+"/"+ref.Repository, registry.Config{
			PlainHTTP: o.MirrorTLS == nil, TLS: o.MirrorTLS, Namespace: ref.Registry, Credential: anonymous,
			// The mirror repeats by itself what upstream fails, and a dead one must not hold up a node
			// that has another origin.
			Retry: registry.Retry{Tries: 2, Base: 200 * time.Millisecond, Max: 5 * time.Second},
		})
		if err != nil {
			return nil, "", err
		}
		repos = append(repos, repo)
	}
	if up, ok := o.Upstreams[ref.Registry]; ok {
		repo, err := registry.Open(up.Host+"/"+ref.Repository, registry.Config{
			PlainHTTP: up.PlainHTTP, Credential: anonymous,
			Retry: registry.Retry{Tries: 3, Base: 500 * time.Millisecond, Max: 10 * time.Second},
		})
		if err != nil {
			return nil, "", err
		}
		repos = append(repos, repo)
	}
	if len(repos) == 0 {
		return nil, "", fmt.Errorf("image %s: the node has neither a mirror nor an upstream %s", reference, ref.Registry)
	}
	return repos, ref.Reference, nil
}

// rangeOrigin is a repository as the swarm sees it.
type rangeOrigin struct {
	repo   *registry.Repository
	desc   ocispec.Descriptor
	offset int64 // of the swarm's bytes in the blob
}

// Range implements swarm.Origin.
func (o rangeOrigin) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return o.repo.OpenRange(ctx, o.desc, o.offset+off, n)
}

var _ swarm.Origin = rangeOrigin{}

// each calls f with one repository after another until it has no error.
func each[T any](ctx context.Context, repos []*registry.Repository, f func(*registry.Repository) (T, error)) (T, error) {
	var errs []error
	for _, repo := range repos {
		v, err := f(repo)
		if err == nil {
			return v, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	var none T
	return none, errors.Join(errs...)
}

// pause waits about d, and reports whether ctx is still on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(jitter(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// jitter spreads d over [d/2, 3d/2), so that nodes that failed together do not return together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }
