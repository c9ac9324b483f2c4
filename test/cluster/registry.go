package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// RegistryOptions say what a registry is like. The zero value is open, and speaks plain HTTP.
type RegistryOptions struct {
	User, Password string // basic authentication, when User is set
	Auth           string // distribution's section auth in YAML, instead of User; {ip} is the registry's address
	TLS            bool   // with an authority of its own, see Registry.CAFile
}

// Registry is the distribution registry on a host of its own.
type Registry struct {
	*Process

	Host   string // HOST:PORT for references
	CAFile string // of its authority, empty without TLS
	Dir    string // where it keeps its blobs

	Machine *Host // for what is to run beside it

	host *host
}

const registryPort = 5000

// AddRegistry starts a registry and returns when it answers.
func (w *World) AddRegistry(ctx context.Context, name string, o RegistryOptions) (*Registry, error) {
	r, err := w.newRegistry(ctx, name, o)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", name, err)
	}
	w.Registries = append(w.Registries, r)
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := r.Start(ctx); err != nil {
		return nil, err
	}
	w.cfg.Log("%s: the registry answers at %s", name, r.Host)
	return r, nil
}

func (w *World) newRegistry(ctx context.Context, name string, o RegistryOptions) (*Registry, error) {
	h, err := w.newHost(ctx, name)
	if err != nil {
		return nil, err
	}
	ip := fmt.Sprintf("10.99.100.%d", len(w.Registries)+1)
	if err := h.cable(ctx, ip); err != nil {
		return nil, err
	}
	r := &Registry{Host: fmt.Sprintf("%s:%d", ip, registryPort), Dir: h.path("blobs"), Machine: &Host{IP: ip, host: h}, host: h}
	config := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}\nhttp:\n  addr: %q\n", r.Dir, r.Host)
	scheme, client := "http", http.DefaultClient
	if o.TLS {
		ca, err := newAuthority(h.path(), name)
		if err != nil {
			return nil, err
		}
		if err := ca.serve("registry", []string{ip}, name); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("  tls: {certificate: %q, key: %q}\n", ca.path("registry.crt"), ca.path("registry.key"))
		r.CAFile = ca.path("ca.crt")
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		scheme, client = "https", &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	}
	if o.User != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(o.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(h.path("htpasswd"), fmt.Appendf(nil, "%s:%s\n", o.User, hash), 0o600); err != nil {
			return nil, err
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: %q, path: %q}}\n", name, h.path("htpasswd"))
	}
	if o.Auth != "" {
		config += "auth: " + strings.ReplaceAll(o.Auth, "{ip}", ip) + "\n"
	}
	if err := os.WriteFile(h.path("registry.yaml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	r.Process = &Process{
		Name: "registry " + name, Log: h.path("registry.log"), group: h.group(),
		command: func() []string { return h.inside(w.tool("registry"), "serve", h.path("registry.yaml")) },
		ready: func(ctx context.Context) error {
			return answersHTTP(ctx, client, scheme+"://"+r.Host+"/v2/")
		},
	}
	return r, nil
}

// answersHTTP reports whether url is answered, by a refusal too.
func answersHTTP(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		return errors.New(resp.Status)
	}
	return nil
}

// Sent returns how many bytes have left the registry's machine, all headers included.
func (r *Registry) Sent(ctx context.Context) (int64, error) {
	text, err := output(ctx, r.host.inside("cat", "/proc/net/dev")...) // /sys shows another namespace's
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		name, counts, _ := strings.Cut(strings.TrimSpace(line), ":")
		if fields := strings.Fields(counts); name == "eth0" && len(fields) > 8 {
			return strconv.ParseInt(fields[8], 10, 64)
		}
	}
	return 0, errors.New("the registry's machine has no eth0")
}

// Shape lets the registry's link carry rate each way, as tc writes it ("100mbit"); "" lifts the limit.
func (r *Registry) Shape(ctx context.Context, rate string) error { return r.host.shape(ctx, rate) }

// Cut takes the registry off the network; Mend puts it back.
func (r *Registry) Cut(ctx context.Context) error { return r.host.cut(ctx) }

// Mend undoes Cut.
func (r *Registry) Mend(ctx context.Context) error { return r.host.mend(ctx) }
