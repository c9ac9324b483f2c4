package mirror

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/shoal-project/shoal/internal/pullapi"
)

// admission is a token that upstream accepted for a manifest of a repository. What it accepted for one says nothing
// of another, which the mirror may have from elsewhere.
type admission struct {
	source    Source
	reference string
	token     [sha256.Size]byte
}

const (
	// admittedFor is for how long a token that upstream accepted is not shown to it again: a token that is
	// revoked, or runs out, works here for as long.
	admittedFor = time.Minute
	// maxAdmitted bounds the memory that clients can make us use.
	maxAdmitted = 1 << 14
)

// verdict is what a client is answered.
type verdict struct {
	granted bool
	// challenge, where it is set, is upstream's own: the client is to come back with a token from there, or
	// reads in it why the one that it had is refused.
	challenge string
}

const bearer = "Bearer "

// decide says whether a client that sent authorization may have a manifest that upstream does not give to everyone:
// whoever upstream itself gives it to. A bearer token is shown to upstream, for that repository, and of one that
// was accepted only a hash is remembered. Passwords are never taken: a registry that asks for one is asked by the
// client itself. Where it cannot be told, the client may not have it.
func (m *Mirror) decide(ctx context.Context, src Source, reference, authorization string) (verdict, error) {
	if authorization != "" && !strings.HasPrefix(authorization, bearer) {
		return verdict{}, nil
	}
	key := admission{src, reference, sha256.Sum256([]byte(authorization))}
	now := time.Now()
	if _, _, fresh := m.admitted.Get(key, now); fresh {
		return verdict{granted: true}, nil
	}
	status, challenge, err := m.quick[src.Upstream].judge(ctx, src, reference, authorization)
	switch {
	case err != nil:
		return verdict{}, err
	case status == http.StatusOK:
		if authorization != "" {
			m.admitted.Put(key, struct{}{}, now)
		}
		return verdict{granted: true}, nil
	case status == http.StatusUnauthorized && strings.HasPrefix(challenge, bearer) && (authorization == "" || givesReason(challenge)):
		return verdict{challenge: challenge}, nil
	}
	return verdict{}, nil
}

// givesReason reports whether a challenge says why a token was refused (RFC 6750, 3.1). containerd shows its user that
// reason and goes on to the registry; a 404 would make it say that there is no such image, whatever the registry says
// afterwards, and a second challenge without a reason would make it try five times.
func givesReason(challenge string) bool {
	return strings.Contains(challenge, `error="`)
}

// judgeTime bounds a question on a client's behalf.
const judgeTime = 10 * time.Second

// judge asks upstream for a manifest's header with a client's authorization, or without any, and with nothing of
// ours. It follows no redirect: the token is for this host.
func (u *upstream) judge(ctx context.Context, src Source, reference, authorization string) (status int, challenge string, err error) {
	repo, err := u.repository(src.Repository)
	if err != nil {
		return 0, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, judgeTime)
	defer cancel()
	scheme := "https"
	if u.cfg.PlainHTTP {
		scheme = "http"
	}
	address := fmt.Sprintf("%s://%s/v2/%s/manifests/%s", scheme, repo.Reference.Host(), repo.Reference.Repository, reference)
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, address, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	req.Header = accepted()
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	client := http.Client{
		Transport:     repo.Transport(),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", blame(src, err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Www-Authenticate"), nil
}

// serveGated answers a request for a manifest that a node sends on behalf of a client.
func (m *Mirror) serveGated(w http.ResponseWriter, r *http.Request, src Source, t pullapi.Target) error {
	v, err := m.decide(r.Context(), src, t.Reference, r.Header.Get("Authorization"))
	switch {
	case err != nil:
		return err
	case v.challenge != "":
		w.Header().Set("Www-Authenticate", v.challenge)
		pullapi.WriteError(w, http.StatusUnauthorized, "UNAUTHORIZED", "the registry "+src.Upstream+" wants a token for "+src.Repository)
		return nil
	case !v.granted:
		pullapi.WriteError(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "whether you may have this manifest is for the registry "+src.Upstream+" itself to say: ask there")
		return nil
	}
	manifest, err := m.Manifest(r.Context(), src, t.Reference)
	if err != nil {
		return err
	}
	w.Header().Set(pullapi.AccessHeader, pullapi.Granted)
	pullapi.ServeManifest(w, r, manifest)
	return nil
}
