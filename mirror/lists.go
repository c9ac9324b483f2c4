package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tags asks upstream for a repository's tags; query is handed on (n, last). It returns the answer's body
// and header. Its errors are those of Manifest.
func (m *Mirror) Tags(ctx context.Context, src Source, query string) ([]byte, http.Header, error) {
	return m.list(ctx, src, "tags/list", query, "application/json")
}

// Referrers asks upstream for the referrers of a digest; query is handed on (artifactType, n, last). Of a
// registry without that API the fallback tag is read (distribution-spec, "Referrers Tag Schema"), so
// that a client need not know. It returns the answer's body and header.
func (m *Mirror) Referrers(ctx context.Context, src Source, d digest.Digest, query string) ([]byte, http.Header, error) {
	content, header, err := m.list(ctx, src, "referrers/"+d.String(), query, ocispec.MediaTypeImageIndex)
	if !refusedAs(err, http.StatusNotFound) {
		return content, header, err
	}
	header = http.Header{"Content-Type": {ocispec.MediaTypeImageIndex}}
	fallback, err := m.Manifest(ctx, src, d.Algorithm().String()+"-"+d.Encoded())
	switch {
	case err == nil && fallback.MediaType == ocispec.MediaTypeImageIndex:
		return fallback.Content, header, nil
	case err != nil && !refusedAs(err, http.StatusNotFound):
		return nil, nil, err
	}
	none, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	})
	return none, header, err
}

func refusedAs(err error, status int) bool {
	e, ok := errors.AsType[*UpstreamError](err)
	return ok && e.Status == status
}

// list asks upstream for a list. Lists change, and are not kept.
func (m *Mirror) list(ctx context.Context, src Source, path, query, accept string) ([]byte, http.Header, error) {
	up := m.quick[src.Upstream]
	if up == nil {
		return nil, nil, fmt.Errorf("upstream %q: %w", src.Upstream, ErrUnknownUpstream)
	}
	key := failureKey{src, path}
	if err := m.failures.check(key, time.Now()); err != nil {
		return nil, nil, err
	}
	if query != "" {
		path += "?" + query
	}
	resp, err := up.request(ctx, src, http.MethodGet, path, http.Header{"Accept": {accept}})
	if err != nil {
		return nil, nil, m.failures.note(key, err, time.Now())
	}
	defer resp.Body.Close()
	content, err := readLimited(resp.Body)
	if err != nil {
		return nil, nil, blame(src, fmt.Errorf("%s: %w", path, err))
	}
	return content, resp.Header, nil
}
