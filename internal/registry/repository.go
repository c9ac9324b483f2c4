// Package registry opens one repository of an OCI registry, for packing, pulling, the mirror's fills
// and nodes without a mirror. What oras-go does well is oras-go's: manifests, tags, referrers,
// credentials. This package adds bounded retries with back-off, errors that say what to do, blob
// reads that go on after a broken connection, and uploads in chunks that survive the death of the
// process (distribution-spec, "Pushing a blob in chunks").
//
// Credentials go to the registry's own origin only: oras-go's auth client drops them on a redirect
// to another one, and an upload that is sent to another host is refused.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/shoal-project/shoal/internal/pullapi"
)

// Config says how a registry is reached.
type Config struct {
	// PlainHTTP speaks HTTP without TLS.
	PlainHTTP bool
	// TLS is used for https; nil means the system's roots.
	TLS *tls.Config
	// Credential finds credentials for a registry's host; nil means the docker configuration
	// (~/.docker/config.json or $DOCKER_CONFIG, credential helpers included).
	Credential auth.CredentialFunc
	// Retry is DefaultRetry where Tries is 0.
	Retry Retry
	// Stall is how long a blob's body may bring no byte before it is asked for again; 0 means 30 s.
	Stall time.Duration
	// Limiter bounds the bytes of blobs that OpenRange reads, all repositories that share it together; nil means no
	// bound. Its burst is the longest single read.
	Limiter *rate.Limiter
	// UserAgent is "shoal" where empty.
	UserAgent string
	// Namespace, where set, is the registry for which the one in the reference is a mirror. It goes
	// along as the query ?ns=, as containerd does it.
	Namespace string
}

// Repository is one repository of a registry. It is an oras-go target with errors of type *Error.
type Repository struct {
	*remote.Repository
	retry     Retry
	stall     time.Duration
	limiter   *rate.Limiter // nil: none
	transport *http.Transport
	base      http.RoundTripper // transport, with the namespace
}

// Open prepares the repository that reference names ("host[:port]/name", with or without a tag or
// digest, which ends up in Reference). No request is made.
func Open(reference string, cfg Config) (*Repository, error) {
	repo, err := remote.NewRepository(reference)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", reference, err)
	}
	if cfg.Retry.Tries == 0 {
		cfg.Retry = DefaultRetry()
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "shoal"
	}
	if cfg.Credential == nil {
		store, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
		if err != nil {
			return nil, fmt.Errorf("docker configuration: %w", err)
		}
		cfg.Credential = credentials.Credential(store)
	}
	// A transport with its own TLS config speaks HTTP/1.1: several connections carry more than the
	// one flow-controlled connection of HTTP/2.
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       cfg.TLS,
		TLSHandshakeTimeout:   10 * time.Second,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       60 * time.Second,
		ResponseHeaderTimeout: 5 * time.Minute, // registries over object stores move the blob on the last PUT
		DisableCompression:    true,
	}
	var base http.RoundTripper = transport
	if cfg.Namespace != "" {
		base = &mirrorTransport{base: transport, namespace: cfg.Namespace}
	}
	client := &auth.Client{
		Client:     &http.Client{Transport: &retryTransport{base: base, retry: cfg.Retry}, CheckRedirect: checkRedirect},
		Cache:      auth.NewCache(),
		Credential: cfg.Credential,
	}
	client.SetUserAgent(cfg.UserAgent)
	repo.Client = client
	repo.PlainHTTP = cfg.PlainHTTP
	// Old referrers indexes are left to the registry's collector: many registries refuse deletes.
	repo.SkipReferrersGC = true
	repo.ReferrerListMaxPages = maxReferrerPages
	return &Repository{Repository: repo, retry: cfg.Retry, stall: cfg.Stall, limiter: cfg.Limiter, transport: transport, base: base}, nil
}

// checkRedirect bounds a row of redirects, as net/http does by itself: oras-go's own check, which takes the
// credentials off before another host is asked, has no bound.
func checkRedirect(_ *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("stopped after %d redirects: %w", len(via), errLocal)
	}
	return nil
}

// Transport is what carries the requests, without credentials and without retries.
func (r *Repository) Transport() http.RoundTripper { return r.base }

// Close ends idle connections.
func (r *Repository) Close() { r.transport.CloseIdleConnections() }

// Name is "host[:port]/repository".
func (r *Repository) Name() string { return r.Reference.Registry + "/" + r.Reference.Repository }

// mirrorTransport says to a mirror which registry is meant.
type mirrorTransport struct {
	base      http.RoundTripper
	namespace string
}

// RoundTrip implements http.RoundTripper.
func (t *mirrorTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	q := req.URL.Query()
	q.Set("ns", t.namespace)
	req.URL.RawQuery = q.Encode()
	return t.base.RoundTrip(req)
}

// retryTransport tries every request again but a PATCH, which is not idempotent: the upload asks
// the registry first how much of it arrived.
type retryTransport struct {
	base  http.RoundTripper
	retry Retry
}

// RoundTrip implements http.RoundTripper.
func (t *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPatch {
		return t.base.RoundTrip(req)
	}
	again := retry.Transport{Base: t.base, Policy: func() retry.Policy { return retryPolicy{t.retry} }}
	return again.RoundTrip(req)
}

// Resolve implements oras.Target.
func (r *Repository) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	desc, err := r.Repository.Resolve(ctx, reference)
	if _, refused := errors.AsType[*errcode.ErrorResponse](err); refused {
		// The answer to a HEAD has no body; that to a GET says why.
		var body io.ReadCloser
		if desc, body, err = r.FetchReference(ctx, reference); err == nil {
			err = body.Close()
		}
	}
	return desc, r.explain("resolve "+reference, err)
}

// Fetch implements content.Fetcher. A blob's reader goes on by ranges where its connection breaks.
func (r *Repository) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	if !IsManifest(desc.MediaType) {
		return r.OpenRange(ctx, desc, 0, desc.Size)
	}
	rc, err := r.Repository.Fetch(ctx, desc)
	return rc, r.explain("read manifest "+desc.Digest.String(), err)
}

// IsManifest reports whether content of mediaType lies among a registry's manifests, not its blobs. It is
// oras-go's own choice.
func IsManifest(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.oci.artifact.manifest.v1+json":
		return true
	}
	return false
}

// Push implements content.Pusher.
func (r *Repository) Push(ctx context.Context, desc ocispec.Descriptor, content io.Reader) error {
	return r.explain("write "+desc.Digest.String(), r.Repository.Push(ctx, desc, content))
}

// PushReference pushes a manifest under a tag.
func (r *Repository) PushReference(ctx context.Context, desc ocispec.Descriptor, content io.Reader, reference string) error {
	return r.explain("write "+reference, r.Repository.PushReference(ctx, desc, content, reference))
}

// Tag implements content.Tagger.
func (r *Repository) Tag(ctx context.Context, desc ocispec.Descriptor, reference string) error {
	return r.explain("tag "+reference, r.Repository.Tag(ctx, desc, reference))
}

// Exists implements content.ReadOnlyStorage.
func (r *Repository) Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error) {
	ok, err := r.Repository.Exists(ctx, desc)
	return ok, r.explain("look up "+desc.Digest.String(), err)
}

// do sends a request of our own through the same client, hence with the same credentials.
func (r *Repository) do(req *http.Request) (*http.Response, error) {
	resp, err := r.Client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, errorResponse(resp)
	}
	return resp, nil
}

// Extension reads an extension of the registry (distribution-spec, "Extensions": a path below
// /v2/<name>/_<extension>/), of at most limit bytes.
func (r *Repository) Extension(ctx context.Context, path string, query url.Values, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url(path)+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.do(req)
	if err != nil {
		return nil, r.explain("read "+path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, r.explain("read "+path, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("registry %s: %s has more than %d bytes", r.Reference.Registry, path, limit)
	}
	return raw, nil
}

// BlobSize returns the size in bytes of a blob that the repository has.
func (r *Repository) BlobSize(ctx context.Context, d digest.Digest) (int64, error) {
	desc, err := r.Blobs().Resolve(ctx, d.String())
	return desc.Size, r.explain("look up "+d.String(), err)
}

// maxManifest is the longest manifest in bytes; registries must take 4 MiB (distribution-spec).
const maxManifest = 4 << 20

// ChallengeError says that a token is wanted, and from where (RFC 9110, WWW-Authenticate).
type ChallengeError struct{ Challenge string }

// Error implements error.
func (e *ChallengeError) Error() string { return "a token is wanted" }

// ClientManifest asks a mirror of ours for a manifest or an index on behalf of a client, with the client's own
// authorization and with no credentials of this process. It checks what comes against reference where that is
// a digest, and returns the answer's header beside it. The error may be a *ChallengeError.
func (r *Repository) ClientManifest(ctx context.Context, reference, authorization string) (pullapi.Manifest, http.Header, error) {
	op := "read manifest " + reference
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url("manifests/"+reference), http.NoBody)
	if err != nil {
		return pullapi.Manifest{}, nil, err
	}
	req.Header.Set("Accept", "*/*")
	req.Header.Set(pullapi.ClientHeader, "1")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	client := http.Client{
		Transport:     r.base,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return pullapi.Manifest{}, nil, r.explain(op, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized && resp.Header.Get("Www-Authenticate") != "" {
		return pullapi.Manifest{}, nil, &ChallengeError{resp.Header.Get("Www-Authenticate")}
	}
	if resp.StatusCode != http.StatusOK {
		return pullapi.Manifest{}, nil, r.explain(op, errorResponse(resp))
	}
	content, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return pullapi.Manifest{}, nil, r.explain(op, err)
	}
	if len(content) > maxManifest {
		return pullapi.Manifest{}, nil, fmt.Errorf("registry %s: manifest %s has more than %d bytes", r.Reference.Registry, reference, maxManifest)
	}
	m := pullapi.Manifest{MediaType: resp.Header.Get("Content-Type"), Digest: digest.FromBytes(content), Content: content}
	if want, ok := (pullapi.Target{Reference: reference}).Digest(); ok && want != m.Digest {
		return pullapi.Manifest{}, nil, fmt.Errorf("registry %s: manifest %s came as %s", r.Reference.Registry, want, m.Digest)
	}
	return m, resp.Header, nil
}

// url builds an address below the repository's /v2/ root.
func (r *Repository) url(suffix string) string {
	scheme := "https"
	if r.PlainHTTP {
		scheme = "http"
	}
	return fmt.Sprintf("%s://%s/v2/%s/%s", scheme, r.Reference.Host(), r.Reference.Repository, suffix)
}

var errShortBody = errors.New("the registry ended the body too early")
