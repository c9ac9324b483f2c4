package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/pullapi"
)

// accepted are the kinds of manifests that upstream may answer with.
func accepted() http.Header {
	return http.Header{"Accept": {strings.Join([]string{
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
		"application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.oci.artifact.manifest.v1+json",
	}, ", ")}}
}

// Manifest returns the manifest that reference, a sha256 digest or a tag, names in src. A tag is
// believed for Config.TagTTL; while upstream is down, the last known one is. The error may be
// ErrUnknownUpstream, ErrWrongBytes, ErrStopped or an *UpstreamError.
func (m *Mirror) Manifest(ctx context.Context, src Source, reference string) (Manifest, error) {
	if m.upstreams[src.Upstream] == nil {
		return Manifest{}, fmt.Errorf("upstream %q: %w", src.Upstream, ErrUnknownUpstream)
	}
	if d, ok := (pullapi.Target{Reference: reference}).Digest(); ok {
		return m.manifestByDigest(ctx, src, d)
	}
	known, err := m.manifests.tag(src, reference)
	if err == nil && time.Since(known.Checked) < m.cfg.TagTTL {
		if manifest, err := m.manifests.manifest(known.Digest); err == nil {
			return manifest, nil
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, err
	}
	manifest, err := m.askManifest(ctx, src, reference, func(ctx context.Context) (Manifest, error) {
		return m.refreshTag(ctx, src, reference, known.Digest)
	})
	refused, isUpstream := errors.AsType[*UpstreamError](err)
	if !isUpstream || known.Digest == "" {
		return manifest, err
	}
	if refused.Status == http.StatusNotFound {
		return Manifest{}, errors.Join(err, m.manifests.dropTag(src, reference))
	}
	if !refused.down() || errors.Is(err, ErrWrongBytes) {
		return Manifest{}, err
	}
	last, lastErr := m.manifests.manifest(known.Digest)
	if lastErr != nil {
		return Manifest{}, err
	}
	m.metrics.staleTags.Inc()
	m.log.WarnContext(ctx, "upstream is down, the last known digest answers", slog.String("upstream", src.Upstream),
		slog.String("repository", src.Repository), slog.String("tag", reference), slog.String("digest", last.Digest.String()), slog.Any("error", err))
	return last, nil
}

func (m *Mirror) manifestByDigest(ctx context.Context, src Source, d digest.Digest) (Manifest, error) {
	manifest, err := m.manifests.manifest(d)
	if err == nil && m.manifests.hadBlob(src, d) {
		return manifest, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, err
	}
	// What came from another repository is asked for here: whoever may read one must not reach the other.
	return m.askManifest(ctx, src, d.String(), func(ctx context.Context) (Manifest, error) {
		return m.fetchManifest(ctx, src, d.String())
	})
}

// askManifest asks upstream once for all who want to know, unless it has just failed.
func (m *Mirror) askManifest(ctx context.Context, src Source, reference string, ask func(context.Context) (Manifest, error)) (Manifest, error) {
	key := failureKey{src, "manifest " + reference}
	if err := m.failures.check(key, time.Now()); err != nil {
		return Manifest{}, err
	}
	value, err := m.do(ctx, "manifest "+src.Upstream+"/"+src.Repository+" "+reference, func(ctx context.Context) (any, error) {
		manifest, err := ask(ctx)
		result := "ok"
		if err == nil {
			m.failures.forget(key)
		} else {
			err = m.failures.note(key, err, time.Now())
			result = "refused"
			if e, ok := errors.AsType[*UpstreamError](err); ok && e.down() {
				result = "down"
			}
		}
		m.metrics.upstreamRequests.WithLabelValues(result).Inc()
		return manifest, err
	})
	manifest, _ := value.(Manifest)
	return manifest, err
}

// refreshTag asks upstream what a tag names now; known may be "". A HEAD does where it still names
// what we have: registries count pulls by GET.
func (m *Mirror) refreshTag(ctx context.Context, src Source, tag string, known digest.Digest) (Manifest, error) {
	manifest, err := m.unchanged(ctx, src, tag, known)
	if err != nil {
		return Manifest{}, err
	}
	if manifest.Digest == "" {
		if manifest, err = m.fetchManifest(ctx, src, tag); err != nil {
			return Manifest{}, err
		}
	}
	return manifest, m.manifests.saveTag(knownTag{Source: src, Tag: tag, Digest: manifest.Digest, Checked: time.Now()})
}

// unchanged returns the known manifest where the tag still names it, else none.
func (m *Mirror) unchanged(ctx context.Context, src Source, tag string, known digest.Digest) (Manifest, error) {
	if known == "" {
		return Manifest{}, nil
	}
	manifest, err := m.manifests.manifest(known)
	if err != nil {
		return Manifest{}, nil //nolint:nilerr // it is fetched then
	}
	resp, err := m.quick[src.Upstream].request(ctx, src, http.MethodHead, "manifests/"+tag, accepted())
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Docker-Content-Digest") != known.String() {
		return Manifest{}, nil
	}
	return manifest, nil
}

// fetchManifest reads a manifest from upstream, checks and keeps it.
func (m *Mirror) fetchManifest(ctx context.Context, src Source, reference string) (Manifest, error) {
	resp, err := m.quick[src.Upstream].request(ctx, src, http.MethodGet, "manifests/"+reference, accepted())
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	content, err := readLimited(resp.Body)
	if err != nil {
		return Manifest{}, blame(src, fmt.Errorf("manifest %s: %w", reference, err))
	}
	manifest := Manifest{MediaType: mediaType(resp.Header.Get("Content-Type"), content), Digest: digest.FromBytes(content), Content: content}
	want, byDigest := (pullapi.Target{Reference: reference}).Digest()
	if !byDigest { // a registry that says a digest at all must say the right one
		want = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
	}
	if want.Validate() == nil && want.Algorithm() == digest.SHA256 && want != manifest.Digest {
		return Manifest{}, &UpstreamError{Upstream: src.Upstream, Repository: src.Repository, Status: http.StatusBadGateway,
			Err: fmt.Errorf("%w: manifest %s came as %s", ErrWrongBytes, want, manifest.Digest)}
	}
	if !json.Valid(content) {
		return Manifest{}, blame(src, fmt.Errorf("manifest %s: upstream's answer is no JSON", reference))
	}
	if err := m.manifests.save(manifest); err != nil {
		return Manifest{}, err
	}
	m.saw(src, manifest.Digest)
	return manifest, nil
}

// mediaType is the answer's own, else what the manifest says of itself.
func mediaType(header string, content []byte) string {
	if t, _, err := mime.ParseMediaType(header); err == nil && t != "application/json" && t != "text/plain" && t != "application/octet-stream" {
		return t
	}
	var own struct {
		MediaType string `json:"mediaType"`
	}
	if json.Unmarshal(content, &own) == nil {
		if t, _, err := mime.ParseMediaType(own.MediaType); err == nil {
			return t
		}
	}
	return ocispec.MediaTypeImageManifest
}

func readLimited(r io.Reader) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxManifest {
		return nil, fmt.Errorf("has more than %d bytes", maxManifest)
	}
	return content, nil
}
