package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

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
	Upstreams []struct {
		// Name is the registry as image references name it.
		Name string `json:"name"`
		// Address is where it is, http(s)://HOST[:PORT], with a path that comes before the repositories'
		// names where there is one; https://NAME where it is empty.
		Address string `json:"address"`
		// CA is a file of certificates that are believed beside the system's.
		CA string `json:"ca"`
		// Insecure believes any certificate.
		Insecure bool `json:"insecure"`
		// Credentials is a file of docker's configuration format, such as a mounted pull secret. Without it,
		// the docker configuration of the mirror's user.
		Credentials string `json:"credentials"`
	} `json:"upstreams"`
}

const upstreamFileHelp = `YAML file of registries that may be read:
  upstreams:
  - name: reg.example.com                          # as in image references
    address: https://reg.internal:5000/prefix      # default: https:// and the name
    ca: /etc/shoal/reg-ca.crt                      # believed beside the system's
    credentials: /etc/shoal/pull/.dockerconfigjson # read again when it changes`

// readUpstreams reads the file of --upstreams.
func readUpstreams(file string) ([]mirror.Upstream, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--upstreams: %w", err)
	}
	var list upstreamFile
	if err := yaml.UnmarshalStrict(raw, &list); err != nil {
		return nil, fmt.Errorf("--upstreams %s: %w", file, err)
	}
	var out []mirror.Upstream
	for i, u := range list.Upstreams {
		if u.Name == "" {
			return nil, fmt.Errorf("--upstreams %s: number %d has no name", file, i+1)
		}
		up := mirror.Upstream{Name: u.Name}
		if u.Address != "" {
			if up.Registry, up.PlainHTTP, err = parseAddress(u.Address); err != nil {
				return nil, fmt.Errorf("--upstreams %s: %s: %w", file, u.Name, err)
			}
		}
		if up.TLS, err = upstreamTLS(u.CA, u.Insecure); err != nil {
			return nil, fmt.Errorf("--upstreams %s: %s: %w", file, u.Name, err)
		}
		if up.PlainHTTP && up.TLS != nil {
			return nil, fmt.Errorf("--upstreams %s: %s: ca and insecure mean nothing to an http address", file, u.Name)
		}
		if u.Credentials != "" {
			up.Credential = registry.SecretFile(u.Credentials)
		}
		out = append(out, up)
	}
	return out, nil
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
