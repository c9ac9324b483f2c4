package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/peer/store"
)

// Handler serves the read side of the OCI distribution API: /v2/, blobs, manifests, referrers; and,
// for nodes, the segments of blobs without a pieces root.
func (m *Mirror) Handler() http.Handler { return http.HandlerFunc(m.serve) }

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if m.cfg.Identify != nil {
		if id, ok := m.cfg.Identify(r); !ok || !mayRead(id.Role) {
			pullapi.WriteError(w, http.StatusForbidden, "DENIED", "this mirror serves nodes, mirrors, controllers and clients of its fleet: show such a certificate")
			return
		}
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		pullapi.WriteError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this mirror is read-only: push to the registry itself")
		return
	}
	t, err := m.paths.Parse(r.URL.Path)
	if err != nil {
		m.refuse(w, r, t, err)
		return
	}
	if t.Kind == pullapi.Base {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
		return
	}
	name, err := m.pick(pullapi.Namespace(r))
	if err != nil {
		m.refuse(w, r, t, err)
		return
	}
	src := Source{Upstream: name, Repository: t.Repository}
	switch t.Kind {
	case pullapi.Blobs:
		err = m.serveBlob(w, r, src, t)
	case pullapi.Manifests:
		err = m.serveManifest(w, r, src, t)
	case pullapi.Tags:
		err = m.serveTags(w, r, src)
	case pullapi.Referrers:
		err = m.serveReferrers(w, r, src, t)
	case pullapi.Segments:
		err = m.serveSegments(w, r, src, t)
	}
	if err != nil {
		m.refuse(w, r, t, err)
	}
}

func mayRead(role certs.Role) bool {
	switch role {
	case certs.Node, certs.Mirror, certs.Client, certs.Controller:
		return true
	}
	return false
}

// serveBlob answers with a blob or a part of it. An error means that nothing was sent yet.
func (m *Mirror) serveBlob(w http.ResponseWriter, r *http.Request, src Source, t pullapi.Target) error {
	d, _ := t.Digest()
	if r.Method == http.MethodHead {
		size, err := m.Stat(r.Context(), src, d)
		if err != nil {
			return err
		}
		pullapi.HeadBlob(w, d, size)
		return nil
	}
	blob, err := m.Blob(r.Context(), src, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	_, err = pullapi.ServeBlob(w, r, d, blob)
	if broken, ok := errors.AsType[*pullapi.BrokenError](err); ok {
		if r.Context().Err() == nil {
			m.log.DebugContext(r.Context(), "blob is broken off", slog.String("digest", d.String()), slog.Any("error", broken.Err))
		}
		panic(http.ErrAbortHandler)
	}
	return err
}

func (m *Mirror) serveManifest(w http.ResponseWriter, r *http.Request, src Source, t pullapi.Target) error {
	public := m.upstreams[src.Upstream].anonymous(r.Context())
	if !public && r.Header.Get(pullapi.ClientHeader) != "" {
		return m.serveGated(w, r, src, t)
	}
	manifest, err := m.Manifest(r.Context(), src, t.Reference)
	if err != nil {
		return err
	}
	if public {
		w.Header().Set(pullapi.AccessHeader, pullapi.Public)
	}
	pullapi.ServeManifest(w, r, manifest)
	return nil
}

func (m *Mirror) serveReferrers(w http.ResponseWriter, r *http.Request, src Source, t pullapi.Target) error {
	d, _ := t.Digest()
	content, answer, err := m.Referrers(r.Context(), src, d, listQuery(r))
	if err != nil {
		return err
	}
	serveList(w, r, content, answer)
	return nil
}

func (m *Mirror) serveTags(w http.ResponseWriter, r *http.Request, src Source) error {
	content, answer, err := m.Tags(r.Context(), src, listQuery(r))
	if err != nil {
		return err
	}
	serveList(w, r, content, answer)
	return nil
}

// listQuery is the query without what is for us.
func listQuery(r *http.Request) string {
	query := r.URL.Query()
	query.Del("ns")
	return query.Encode()
}

// serveList hands upstream's answer on.
func serveList(w http.ResponseWriter, r *http.Request, content []byte, answer http.Header) {
	for _, name := range []string{"Content-Type", "Oci-Filters-Applied"} {
		if value := answer.Get(name); value != "" {
			w.Header().Set(name, value)
		}
	}
	if next := nextPage(answer.Get("Link"), r.URL.Path, pullapi.Namespace(r)); next != "" {
		w.Header().Set("Link", next)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(content) // the client is gone where this fails
	}
}

// nextPage makes upstream's link to the next page (RFC 8288, <url>; rel="next") one to this mirror.
func nextPage(link, path, ns string) string {
	target, _, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.HasPrefix(link, "<") {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns")
	if ns != "" {
		query.Set("ns", ns)
	}
	return fmt.Sprintf(`<%s?%s>; rel="next"`, path, query.Encode())
}

// refuse answers an error with its status and its code of the distribution-spec.
func (m *Mirror) refuse(w http.ResponseWriter, r *http.Request, t pullapi.Target, err error) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // nobody listens
	}
	status, code := classify(t.Kind, err)
	if status == http.StatusServiceUnavailable {
		after := 1.0
		if e, ok := errors.AsType[*UpstreamError](err); ok {
			after = max(after, math.Ceil(e.RetryAfter.Seconds()))
		}
		w.Header().Set("Retry-After", strconv.Itoa(int(after)))
	}
	m.log.DebugContext(r.Context(), "request refused", slog.String("path", r.URL.Path), slog.Int("status", status), slog.Any("error", err))
	pullapi.WriteError(w, status, code, err.Error())
}

// classify returns the status and the code for err.
func classify(k pullapi.Kind, err error) (status int, code string) {
	unknown := map[pullapi.Kind]string{pullapi.Blobs: "BLOB_UNKNOWN", pullapi.Manifests: "MANIFEST_UNKNOWN", pullapi.Segments: "BLOB_UNKNOWN", pullapi.Tags: "NAME_UNKNOWN"}[k]
	if unknown == "" {
		unknown = "UNSUPPORTED" // referrers: oras-go takes the fallback tag, but not after NAME_UNKNOWN
	}
	e, upstream := errors.AsType[*UpstreamError](err)
	switch {
	case errors.Is(err, ErrUnknownUpstream):
		return http.StatusNotFound, "NAME_UNKNOWN"
	case errors.Is(err, pullapi.ErrNoRoute):
		return http.StatusNotFound, "UNSUPPORTED"
	case errors.Is(err, pullapi.ErrName):
		return http.StatusBadRequest, "NAME_INVALID"
	case errors.Is(err, pullapi.ErrReference):
		return http.StatusBadRequest, "DIGEST_INVALID"
	case errors.Is(err, pullapi.ErrRange):
		return http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID"
	case errors.Is(err, ErrWrongBytes):
		return http.StatusBadGateway, "DIGEST_INVALID"
	case errors.Is(err, ErrStopped), errors.Is(err, errDamaged), errors.Is(err, store.ErrNoSpace), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable, "UNAVAILABLE"
	case !upstream:
		return http.StatusInternalServerError, "UNKNOWN"
	case e.Status == http.StatusNotFound:
		return http.StatusNotFound, unknown
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		return http.StatusForbidden, "DENIED"
	case e.Status == http.StatusTooManyRequests:
		return http.StatusServiceUnavailable, "TOOMANYREQUESTS"
	case e.down():
		return http.StatusServiceUnavailable, "UNAVAILABLE"
	}
	return http.StatusBadGateway, "UNKNOWN"
}
