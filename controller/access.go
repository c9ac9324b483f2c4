package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/internal/acr"
	"github.com/shoal-project/shoal/internal/registry"
)

// access opens what objects name, with the credentials that their Secrets hold.
type access struct {
	secret secretReader
	reach  map[string]string // where hosts are reached instead, as http(s)://HOST[:PORT]

	mu     sync.Mutex
	logins map[acr.Host]*acr.Login
}

// secretReader returns the data of a Secret. The error is a *secretError, or that of where it looks.
type secretReader func(ctx context.Context, namespace, name string) (map[string][]byte, error)

// secretsOf reads the Secrets of an API server. It is given no cache: no Secret is held longer than it is used.
func secretsOf(server client.Reader) secretReader {
	return func(ctx context.Context, namespace, name string) (map[string][]byte, error) {
		var s corev1.Secret
		err := server.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &s)
		if apierrors.IsNotFound(err) {
			return nil, &secretError{fmt.Errorf("there is no Secret %s in namespace %s: create it, the rest goes on by itself", name, namespace)}
		}
		if apierrors.IsForbidden(err) {
			return nil, &secretError{fmt.Errorf("the Secret %s in namespace %s may not be read: the right to get secrets there is needed: %w", name, namespace, err)}
		}
		if err != nil {
			return nil, fmt.Errorf("read Secret %s/%s: %w", namespace, name, err)
		}
		return s.Data, nil
	}
}

// reread is how old the data of a Secret may be that is asked for again and again.
const reread = 30 * time.Second

// rereading returns a function that returns the data of a Secret, nil for no name, as it is or was a short while ago.
func (a *access) rereading(namespace, name string) func(context.Context) (map[string][]byte, error) {
	var mu sync.Mutex
	var data map[string][]byte
	var at time.Time
	return func(ctx context.Context) (map[string][]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if name == "" || data != nil && time.Since(at) < reread {
			return data, nil
		}
		fresh, err := a.secret(ctx, namespace, name)
		if err == nil {
			data, at = fresh, time.Now()
		}
		return fresh, err
	}
}

// dockerConfig returns the content of a pull secret.
func (a *access) dockerConfig(ctx context.Context, namespace, name string) ([]byte, error) {
	data, err := a.secret(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	raw, ok := data[corev1.DockerConfigJsonKey]
	if !ok {
		return nil, &secretError{fmt.Errorf("the Secret %s/%s has no key %s: make it with `kubectl create secret docker-registry`", namespace, name, corev1.DockerConfigJsonKey)}
	}
	return raw, nil
}

// credentials finds the ones for a place of an object in namespace.
func (a *access) credentials(ctx context.Context, namespace string, p place) (auth.CredentialFunc, error) {
	switch {
	case p.secret != "":
		raw, err := a.dockerConfig(ctx, namespace, p.secret)
		if err != nil {
			return nil, err
		}
		store, err := credentials.NewMemoryStoreFromDockerConfig(raw)
		if err != nil { // the library's error may quote what it could not read
			return nil, &secretError{fmt.Errorf("the Secret %s/%s: its %s is not of docker's configuration format", namespace, p.secret, corev1.DockerConfigJsonKey)}
		}
		find := credentials.Credential(store)
		found, err := find(ctx, p.host)
		if err == nil && found == auth.EmptyCredential {
			return nil, &secretError{fmt.Errorf("the Secret %s/%s has no credentials for the registry %s: make it with `kubectl create secret docker-registry --docker-server=%s`", namespace, p.secret, p.host, p.host)}
		}
		return func(context.Context, string) (auth.Credential, error) { return found, err }, nil
	case p.instance != "":
		login, err := a.login(p)
		if err != nil {
			return nil, err
		}
		find := login.For(p.host)
		return func(ctx context.Context, _ string) (auth.Credential, error) { return find(ctx, p.host) }, nil
	}
	return auth.StaticCredential("", auth.EmptyCredential), nil
}

// login is the one for the place's ACR instance; all objects share it.
func (a *access) login(p place) (*acr.Login, error) {
	key := acr.Host{Instance: p.instance, Region: p.region}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.logins[key]; l != nil {
		return l, nil
	}
	cfg := acr.Config{InstanceID: p.instance, Region: p.region}
	if u, err := url.Parse(acr.Endpoint(p.region, false)); err == nil {
		cfg.Endpoint = a.reach[u.Host]
	}
	l, err := acr.New(cfg)
	if err != nil {
		return nil, err
	}
	if a.logins == nil {
		a.logins = map[acr.Host]*acr.Login{}
	}
	a.logins[key] = l
	return l, nil
}

func (a *access) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.logins {
		l.Close()
	}
	a.logins = nil
}

// open opens a place of an object in namespace. Who opened it closes it.
func (a *access) open(ctx context.Context, namespace string, p place) (*registry.Repository, error) {
	find, err := a.credentials(ctx, namespace, p)
	if err != nil {
		return nil, err
	}
	// Not for long: the effort itself is tried again, goes on where it was, and another registry may do better.
	cfg := registry.Config{UserAgent: "shoal-controller", Retry: registry.Retry{Tries: 5, Base: 500 * time.Millisecond, Max: 5 * time.Second}}
	host := p.host
	switch at := a.reach[p.host]; {
	case at != "":
		u, err := url.Parse(at)
		if err != nil {
			return nil, err
		}
		host, cfg.PlainHTTP = u.Host, u.Scheme == "http"
	case p.insecure:
		cfg.TLS = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12} //nolint:gosec // the spec's insecure says so
		if cfg.PlainHTTP, err = speaksHTTP(ctx, host); err != nil {
			return nil, err
		}
	}
	cfg.Credential = func(ctx context.Context, asked string) (auth.Credential, error) {
		if asked != host {
			return auth.EmptyCredential, nil
		}
		return find(ctx, asked)
	}
	return registry.Open(host+"/"+p.repository, cfg)
}

// speaksHTTP reports whether a registry of which the spec says that it is insecure has no TLS.
func speaksHTTP(ctx context.Context, host string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, //nolint:gosec // as above
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v2/", http.NoBody)
	if err != nil {
		return false, err
	}
	resp, err := transport.RoundTrip(req)
	if err == nil {
		return false, resp.Body.Close()
	}
	if errors.Is(err, http.ErrSchemeMismatch) || strings.Contains(err.Error(), "server gave HTTP response") || strings.Contains(err.Error(), "first record does not look like a TLS handshake") {
		return true, nil
	}
	return false, &registry.Error{Registry: host, Op: "reach it", Err: err}
}
