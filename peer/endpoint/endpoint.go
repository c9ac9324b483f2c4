// Package endpoint is the registry API that a node's containerd is given as a mirror, on loopback.
//
// Blobs come from the node's store, or from the swarm while they arrive. Who may have them was decided when
// the client got the manifest that names them, and that is for the registry to decide: the region's mirror says
// whether the registry gives it to everyone, or to the bearer of the token that came along. Where it wants a
// token its own challenge is handed on, so that the token comes from there and no password passes here; where it
// refuses one and says why, that is handed on too. For everything else the answer is 404, and containerd asks the registry itself, with the credentials of the
// pull.
//
// What connects has to show a key that only root of this machine can read: digests are no secrets. The other
// way round, the authority that containerd is told to believe is this process's own, so that an impostor on
// the port gets nothing.
//
// Whenever something is missing here, the answer makes containerd go on to the registry: a dead Shoal
// blocks no pull.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/internal/registry"
)

// Node is what the endpoint needs of the node.
type Node interface {
	// OpenBlob opens a blob of a repository for reading while it arrives; source names where it comes
	// from. Who reads it closes it.
	OpenBlob(ctx context.Context, upstream, repository string, d digest.Digest) (blob pullapi.Blob, source string, err error)
	// ClientManifest returns a manifest for a client that sent authorization; ok is false where its registry
	// does not give it to that client, or where nobody can tell. The error may be a
	// *registry.ChallengeError: the registry wants a token.
	ClientManifest(ctx context.Context, upstream, repository, reference, authorization string) (m pullapi.Manifest, ok bool, err error)
}

// Config says what the endpoint serves.
type Config struct {
	Node Node
	// Registries are the names, as in image references, that are answered for; empty means all that the
	// region's mirror knows.
	Registries []string
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
	// Logger may be nil.
	Logger *slog.Logger
}

// Endpoint answers containerd.
type Endpoint struct {
	cfg      Config
	log      *slog.Logger
	paths    pullapi.Parser
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
}

// New checks the configuration.
func New(cfg Config) (*Endpoint, error) {
	if cfg.Node == nil {
		return nil, errors.New("endpoint: there is no node to serve from")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Endpoint{
		cfg: cfg, log: cfg.Logger, paths: pullapi.NewParser(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_endpoint_requests_total", Help: "Requests of container runtimes, by what was asked for and the status of the answer.",
		}, []string{"kind", "status"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_endpoint_sent_bytes_total", Help: "Bytes of blobs that container runtimes got whole, by where they came from.",
		}, []string{"source"}),
	}
	if cfg.Registerer != nil {
		for _, c := range []prometheus.Collector{e.requests, e.bytes} {
			if err := cfg.Registerer.Register(c); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

// kinds are the words for what is asked, in logs and metrics.
var kinds = map[pullapi.Kind]string{
	pullapi.Base: "base", pullapi.Blobs: "blob", pullapi.Manifests: "manifest", pullapi.Referrers: "referrers", pullapi.Tags: "tags", pullapi.Segments: "segments",
}

// refusal is an answer that is no success.
type refusal struct {
	status        int
	code, message string
}

// Error implements error.
func (r *refusal) Error() string { return r.message }

// ServeHTTP implements http.Handler.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	t, err := e.paths.Parse(r.URL.Path)
	if err == nil {
		err = e.serve(w, r, t)
	}
	status := http.StatusOK
	if err != nil {
		if broken, ok := errors.AsType[*pullapi.BrokenError](err); ok {
			e.count(t, "broken")
			if r.Context().Err() == nil {
				e.log.Warn("a blob was broken off", "digest", t.Reference, "err", broken.Err)
			}
			panic(http.ErrAbortHandler)
		}
		if r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // nobody listens
		}
		answer := explain(t, err)
		status = answer.status
		e.log.Debug("request refused", "path", r.URL.Path, "registry", pullapi.Namespace(r), "status", status, "err", err)
		pullapi.WriteError(w, answer.status, answer.code, answer.message)
	}
	e.count(t, fmt.Sprint(status))
}

func (e *Endpoint) count(t pullapi.Target, status string) {
	e.requests.WithLabelValues(kinds[t.Kind], status).Inc()
}

func (e *Endpoint) serve(w http.ResponseWriter, r *http.Request, t pullapi.Target) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return &refusal{http.StatusMethodNotAllowed, "UNSUPPORTED", "a node's endpoint is read-only: push to the registry itself"}
	}
	if t.Kind == pullapi.Base {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}")) // the client is gone where this fails
		return nil
	}
	ns := pullapi.Namespace(r)
	if ns == "" || len(e.cfg.Registries) > 0 && !slices.Contains(e.cfg.Registries, ns) {
		return &refusal{http.StatusNotFound, "NAME_UNKNOWN", fmt.Sprintf("this endpoint does not answer for the registry %q (the parameter ns of the request)", ns)}
	}
	switch t.Kind {
	case pullapi.Blobs:
		return e.serveBlob(w, r, ns, t)
	case pullapi.Manifests:
		return e.serveManifest(w, r, ns, t)
	}
	return &refusal{http.StatusNotFound, "UNSUPPORTED", "a node's endpoint has no lists: ask the registry itself"}
}

func (e *Endpoint) serveManifest(w http.ResponseWriter, r *http.Request, ns string, t pullapi.Target) error {
	m, ok, err := e.manifest(w, r, ns, t)
	if err != nil {
		return err
	}
	if !ok {
		return &refusal{http.StatusNotFound, "MANIFEST_UNKNOWN", "whether you may have this manifest is for the registry itself to say: ask there"}
	}
	pullapi.ServeManifest(w, r, m)
	return nil
}

// manifest asks for a manifest on the client's behalf. Where the registry wants a token, its challenge is in w.
func (e *Endpoint) manifest(w http.ResponseWriter, r *http.Request, ns string, t pullapi.Target) (pullapi.Manifest, bool, error) {
	m, ok, err := e.cfg.Node.ClientManifest(r.Context(), ns, t.Repository, t.Reference, r.Header.Get("Authorization"))
	if wanted, is := errors.AsType[*registry.ChallengeError](err); is {
		w.Header().Set("Www-Authenticate", wanted.Challenge)
		err = &refusal{http.StatusUnauthorized, "UNAUTHORIZED", "the registry " + ns + " wants a token for " + t.Repository}
	}
	return m, ok, err
}

func (e *Endpoint) serveBlob(w http.ResponseWriter, r *http.Request, ns string, t pullapi.Target) error {
	d, _ := t.Digest()
	blob, source, err := e.cfg.Node.OpenBlob(r.Context(), ns, t.Repository, d)
	if err != nil && r.Method == http.MethodHead {
		// containerd asks so for a manifest by digest that it was refused as such. To a 404 it gives more weight
		// than to that refusal, and would say that there is no such image.
		_, _, refused := e.manifest(w, r, ns, t)
		if challenge, is := errors.AsType[*refusal](refused); is {
			return challenge
		}
	}
	if err != nil {
		return err
	}
	defer blob.Close()
	if r.Method == http.MethodHead {
		pullapi.HeadBlob(w, d, blob.Size())
		return nil
	}
	sent, err := pullapi.ServeBlob(w, r, d, blob)
	if err != nil {
		return err
	}
	e.bytes.WithLabelValues(source).Add(float64(sent))
	e.log.Info("blob served", "digest", d, "registry", ns, "repository", t.Repository, "bytes", sent, "source", source)
	return nil
}

// explain chooses the answer for an error. Each lets containerd go on to the registry at once.
func explain(t pullapi.Target, err error) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	unknown := map[pullapi.Kind]string{pullapi.Blobs: "BLOB_UNKNOWN", pullapi.Manifests: "MANIFEST_UNKNOWN"}[t.Kind]
	told, upstream := errors.AsType[*registry.Error](err)
	switch {
	case errors.Is(err, pullapi.ErrNoRoute):
		return &refusal{http.StatusNotFound, "UNSUPPORTED", err.Error()}
	case errors.Is(err, pullapi.ErrName):
		return &refusal{http.StatusBadRequest, "NAME_INVALID", err.Error()}
	case errors.Is(err, pullapi.ErrReference):
		return &refusal{http.StatusBadRequest, "DIGEST_INVALID", err.Error()}
	case errors.Is(err, pullapi.ErrRange):
		return &refusal{http.StatusRequestedRangeNotSatisfiable, "SIZE_INVALID", err.Error()}
	case upstream && told.Status >= 400 && told.Status < 500:
		return &refusal{http.StatusNotFound, unknown, err.Error()}
	}
	return &refusal{http.StatusServiceUnavailable, "UNAVAILABLE", err.Error()}
}
