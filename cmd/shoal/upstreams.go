package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/prometheus/client_golang/prometheus"
	"oras.land/oras-go/v2/registry/remote/auth"
	"sigs.k8s.io/yaml"

	"github.com/shoal-project/shoal/internal/acr"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/mirror"
)

// upstream is one value of --upstream: a registry by its name in references, and where it is.
type upstream struct {
	name, host string
	plainHTTP  bool
}

const upstreamHelp = "registry that may be read, as NAME or NAME=http(s)://HOST[:PORT] (may be repeated)"

func parseUpstream(s string) (upstream, error) {
	name, where, ok := strings.Cut(s, "=")
	if name == "" {
		return upstream{}, fmt.Errorf("--upstream %q: want NAME or NAME=https://HOST", s)
	}
	if !ok {
		return upstream{name: name, host: name}, nil
	}
	host, plain, err := parseAddress(where)
	if err == nil && strings.Contains(host, "/") {
		err = fmt.Errorf("%q has a path", where)
	}
	if err != nil {
		return upstream{}, fmt.Errorf("--upstream %s: %w: want http(s)://HOST[:PORT]", name, err)
	}
	return upstream{name: name, host: host, plainHTTP: plain}, nil
}

func parseUpstreams(values []string) ([]upstream, error) {
	var out []upstream
	for _, v := range values {
		u, err := parseUpstream(v)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// parseAddress reads http(s)://HOST[:PORT][/PATH]. What it returns has no slash at its end.
func parseAddress(s string) (where string, plainHTTP bool, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", false, errors.New("the address cannot be read") // the error may quote a password
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", false, fmt.Errorf("%q is no address of a registry", u.Redacted())
	}
	return u.Host + strings.TrimRight(u.Path, "/"), u.Scheme == "http", nil
}

// upstreamFile is the file of --upstreams.
type upstreamFile struct {
	Upstreams []upstreamEntry `json:"upstreams"`
}

type upstreamEntry struct {
	// Name is the registry as image references name it.
	Name string `json:"name"`
	// Address is where it is, http(s)://HOST[:PORT], with a path that comes before the repositories' names where there
	// is one; https://NAME where it is empty.
	Address string `json:"address"`
	// CA is a file of certificates that are believed beside the system's.
	CA string `json:"ca"`
	// Insecure believes any certificate.
	Insecure bool `json:"insecure"`
	// Credentials is a file of docker's configuration format, such as a mounted pull secret. Without it and ACR, the
	// docker configuration of the mirror's user.
	Credentials string `json:"credentials"`
	// ACR gets temporary credentials for an instance of Alibaba Cloud Container Registry.
	ACR *acrEntry `json:"acr"`
	// Rate is how many bytes of blobs a second are read from it, such as 200MiB; no bound where it is empty.
	Rate string `json:"rate"`
}

type acrEntry struct {
	// InstanceID is the instance's id, cri-....
	InstanceID string `json:"instanceId"`
	// Region is the instance's; where it is empty, what the registry's host name says.
	Region string `json:"region"`
	// Endpoint is the OpenAPI, http(s)://HOST[:PORT]; where it is empty, the region's own, inside the VPC for a registry
	// that is reached there.
	Endpoint string `json:"endpoint"`
}

// byNameToo finds the credentials for a registry's address, else those for its name: a pull secret is usually made for
// the name in image references.
func byNameToo(find auth.CredentialFunc, host, name string) auth.CredentialFunc {
	return func(ctx context.Context, asked string) (auth.Credential, error) {
		found, err := find(ctx, asked)
		if err == nil && found == auth.EmptyCredential && asked == host {
			return find(ctx, name)
		}
		return found, err
	}
}

const upstreamFileHelp = `YAML file of registries that may be read:
  upstreams:
  - name: reg.example.com                          # as in image references
    address: https://reg.internal:5000/prefix      # default: https:// and the name
    ca: /etc/shoal/reg-ca.crt                      # believed beside the system's
    credentials: /etc/shoal/pull/.dockerconfigjson # read again when it changes
    rate: 200MiB                                   # bytes of blobs a second at most
  - name: models-registry-vpc.cn-hangzhou.cr.aliyuncs.com
    acr: {instanceId: cri-kmsiwlxxdcvaduwb}        # temporary credentials (docs/mirror.md)`

// readUpstreams reads the file of --upstreams. The logins are to be closed when the mirror has ended; their metrics go to
// reg.
func readUpstreams(file string, reg prometheus.Registerer) (ups []mirror.Upstream, logins []*acr.Login, err error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("--upstreams: %w", err)
	}
	var list upstreamFile
	if err := yaml.UnmarshalStrict(raw, &list); err != nil {
		return nil, nil, fmt.Errorf("--upstreams %s: %w", file, err)
	}
	for i, entry := range list.Upstreams {
		if entry.Name == "" {
			return nil, nil, fmt.Errorf("--upstreams %s: number %d has no name", file, i+1)
		}
		if slices.ContainsFunc(ups, func(u mirror.Upstream) bool { return u.Name == entry.Name }) {
			return nil, nil, fmt.Errorf("--upstreams %s: %s is there twice", file, entry.Name)
		}
		up, login, err := entry.open(reg)
		if err != nil {
			return nil, nil, fmt.Errorf("--upstreams %s: %s: %w", file, entry.Name, err)
		}
		ups = append(ups, up)
		if login != nil {
			logins = append(logins, login)
		}
	}
	return ups, logins, nil
}

// open checks the entry. The login is nil where it has none.
func (e upstreamEntry) open(reg prometheus.Registerer) (up mirror.Upstream, login *acr.Login, err error) {
	up = mirror.Upstream{Name: e.Name, Registry: e.Name}
	if e.Address != "" {
		if up.Registry, up.PlainHTTP, err = parseAddress(e.Address); err != nil {
			return up, nil, err
		}
	}
	if up.TLS, err = upstreamTLS(e.CA, e.Insecure); err != nil {
		return up, nil, err
	}
	if up.PlainHTTP && up.TLS != nil {
		return up, nil, errors.New("ca and insecure mean nothing to an http address")
	}
	if e.Rate != "" {
		if up.BytesPerSecond, err = units.RAMInBytes(e.Rate); err != nil || up.BytesPerSecond <= 0 {
			return up, nil, fmt.Errorf("rate %q: want bytes a second, such as 200MiB", e.Rate)
		}
	}
	host, _, _ := strings.Cut(up.Registry, "/")
	switch {
	case e.Credentials != "" && e.ACR != nil:
		return up, nil, errors.New("credentials and acr exclude each other: give one")
	case e.Credentials != "":
		up.Credential = byNameToo(registry.SecretFile(e.Credentials), host, e.Name)
	case e.ACR != nil:
		if login, err = e.ACR.open(host, prometheus.WrapRegistererWith(prometheus.Labels{"upstream": e.Name}, reg)); err != nil {
			return up, nil, fmt.Errorf("acr: %w", err)
		}
		up.Credential = login.For(host)
	}
	return up, login, nil
}

// open prepares the login for the registry at host[:port].
func (e acrEntry) open(host string, reg prometheus.Registerer) (*acr.Login, error) {
	cfg := acr.Config{InstanceID: e.InstanceID, Region: e.Region, Endpoint: e.Endpoint, Registerer: reg}
	name, _, _ := strings.Cut(host, ":")
	if known, ok := acr.ParseHost(name); ok {
		if known.Instance == "" {
			return nil, fmt.Errorf("%s is a personal instance: only enterprise ones give temporary credentials here, use a credentials file", name)
		}
		if cfg.Region == "" {
			cfg.Region = known.Region
		}
		if cfg.Region != known.Region {
			return nil, fmt.Errorf("%s is in %s, not in %s", name, known.Region, cfg.Region)
		}
		if cfg.Endpoint == "" {
			cfg.Endpoint = acr.Endpoint(cfg.Region, known.Network != "")
		}
	}
	return acr.New(cfg)
}

// upstreamTLS is nil where the system's roots do.
func upstreamTLS(ca string, insecure bool) (*tls.Config, error) {
	if ca == "" && !insecure {
		return nil, nil //nolint:nilnil // what mirror.Upstream takes for the system's roots
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure} //nolint:gosec // asked for
	if ca == "" {
		return cfg, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
		cfg.RootCAs = x509.NewCertPool()
	}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", ca)
	}
	return cfg, nil
}
