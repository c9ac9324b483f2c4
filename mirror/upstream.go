package mirror

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/pullapi"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/peer/store"
)

// Upstream is a registry that is mirrored.
type Upstream struct {
	// Name is the ns parameter by which clients choose it: the host[:port] that images are named by.
	Name string
	// Registry is the host[:port] that is asked, with a path before the repositories' names where
	// there is one; Name where it is empty.
	Registry string
	// PlainHTTP speaks HTTP without TLS.
	PlainHTTP bool
	// TLS is used for https; nil means the system's roots.
	TLS *tls.Config
	// Credential finds the mirror's own credentials; nil means the docker configuration.
	Credential auth.CredentialFunc
	// BytesPerSecond bounds what is read of blobs from this upstream, all fills together; 0 means no bound.
	BytesPerSecond int64
}

// limiter bounds the bytes of blobs; nil where there is no bound.
func (u Upstream) limiter() *rate.Limiter {
	if u.BytesPerSecond <= 0 {
		return nil
	}
	// One buffer at least, so that reads are not cut up; at high rates 20 ms may be made up for, because timers wake late.
	return rate.NewLimiter(rate.Limit(u.BytesPerSecond), int(max(bufferSize, u.BytesPerSecond/50)))
}

// Source is a repository of an upstream.
type Source struct{ Upstream, Repository string }

// upstream opens an upstream's repositories.
type upstream struct {
	cfg   Upstream
	retry registry.Retry
	stall time.Duration
	limit *rate.Limiter // of blobs; nil: none
	slots chan struct{} // held by running ranges

	streams *streams

	mu    sync.Mutex
	repos map[string]*registry.Repository
}

// maxRepos bounds what clients can make us keep open; the connections are opened again.
const maxRepos = 256

// repository returns the repository of this name.
func (u *upstream) repository(name string) (*registry.Repository, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if repo := u.repos[name]; repo != nil {
		return repo, nil
	}
	repo, err := registry.Open(u.cfg.Registry+"/"+name, registry.Config{
		PlainHTTP: u.cfg.PlainHTTP, TLS: u.cfg.TLS, Credential: u.cfg.Credential,
		Retry: u.retry, Stall: u.stall, Limiter: u.limit, UserAgent: "shoal-mirror",
	})
	if err != nil {
		return nil, err
	}
	if len(u.repos) >= maxRepos {
		for old, other := range u.repos {
			other.Close() // idle connections only; whoever reads goes on
			delete(u.repos, old)
			break
		}
	}
	u.repos[name] = repo
	return repo, nil
}

// anonymous reports whether the upstream is read without credentials, so that whatever it lets the mirror
// read, it lets everyone read.
func (u *upstream) anonymous(ctx context.Context) bool {
	repo, err := u.repository(anyRepository)
	if err != nil {
		return false
	}
	client, ok := repo.Client.(*auth.Client)
	if !ok || client.Credential == nil {
		return false
	}
	found, err := client.Credential(ctx, repo.Reference.Host())
	return err == nil && found == auth.EmptyCredential
}

// anyRepository stands for all of an upstream's repositories where only the upstream matters.
const anyRepository = "check"

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, repo := range u.repos {
		repo.Close()
	}
}

// request sends one request below a repository's root. The answer's status is below 400; other
// answers are an *UpstreamError. The caller closes the body.
func (u *upstream) request(ctx context.Context, src Source, method, suffix string, header http.Header) (*http.Response, error) {
	repo, err := u.repository(src.Repository)
	if err != nil {
		return nil, err
	}
	scheme := "https"
	if u.cfg.PlainHTTP {
		scheme = "http"
	}
	url := fmt.Sprintf("%s://%s/v2/%s/%s", scheme, repo.Reference.Host(), repo.Reference.Repository, suffix)
	req, err := http.NewRequestWithContext(auth.AppendRepositoryScope(ctx, repo.Reference, auth.ActionPull), method, url, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	resp, err := repo.Client.Do(req)
	if err != nil {
		return nil, blame(src, err)
	}
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	wait, _ := retry.After(resp.Header.Get("Retry-After"), time.Now())
	return nil, &UpstreamError{
		Upstream: src.Upstream, Repository: src.Repository, Status: resp.StatusCode,
		RetryAfter: wait, Err: answerError(resp),
	}
}

// answerError reads an error document (distribution-spec, "Error codes").
func answerError(resp *http.Response) error {
	e := &errcode.ErrorResponse{Method: resp.Request.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	var document struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, 8<<10)).Decode(&document) == nil {
		e.Errors = document.Errors
	}
	return e
}

// blobInfo is what upstream says of a blob.
type blobInfo struct {
	size   int64
	ranges bool // parts of it can be asked for
}

// stat asks upstream for a blob's size. A registry that does not say that it takes ranges is read as
// one stream: one that ignores them would send the blob from its start for each.
func (u *upstream) stat(ctx context.Context, src Source, d digest.Digest) (blobInfo, error) {
	resp, err := u.request(ctx, src, http.MethodHead, "blobs/"+d.String(), nil)
	refused, _ := errors.AsType[*UpstreamError](err)
	if err == nil && resp.ContentLength < 0 || refused != nil && refused.Status == http.StatusMethodNotAllowed {
		// One byte tells the size of the rest (Content-Range).
		if err == nil {
			resp.Body.Close()
		}
		resp, err = u.request(ctx, src, http.MethodGet, "blobs/"+d.String(), http.Header{"Range": {"bytes=0-0"}})
	}
	if err != nil {
		return blobInfo{}, err
	}
	defer resp.Body.Close()
	info := blobInfo{size: resp.ContentLength, ranges: strings.EqualFold(resp.Header.Get("Accept-Ranges"), "bytes")}
	if resp.StatusCode == http.StatusPartialContent {
		_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
		size, ok := pullapi.ParseOffset(total)
		if !ok {
			size = -1
		}
		info = blobInfo{size: size, ranges: true}
	}
	switch {
	case info.size < 0:
		return blobInfo{}, blame(src, fmt.Errorf("blob %s: upstream does not tell its size", d))
	case info.size > store.MaxSize:
		return blobInfo{}, blame(src, fmt.Errorf("blob %s: upstream says that it has %d bytes; %d are the most", d, info.size, int64(store.MaxSize)))
	}
	return info, nil
}
