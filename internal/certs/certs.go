// Package certs makes and checks the identities by which Shoal's parts know each other.
//
// One certificate authority a fleet signs one certificate a process. A certificate carries its role
// as a URI name, "spiffe://shoal/node/NAME", "spiffe://shoal/mirror" and so on; addresses are not
// part of it, because nodes move and every connection is checked against the role instead. Both
// ends of a connection always present one (mutual TLS 1.3).
//
// cmd builds the tls.Config values and hands them down; handlers ask From who is calling.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Role is what a process may do.
type Role string

// The roles.
const (
	Node       Role = "node"       // a node agent; speaks only for the node that it names
	Mirror     Role = "mirror"     // a regional registry mirror
	Tracker    Role = "tracker"    // a regional tracker
	Controller Role = "controller" // writes desired sets
	Client     Role = "client"     // a person's command: reads status
)

const trustDomain = "shoal"

// Identity is who a certificate speaks for. Name is set for nodes only.
type Identity struct {
	Role Role
	Name string
}

// ParseIdentity reads "node/NAME" or the bare name of any other role.
func ParseIdentity(s string) (Identity, error) {
	role, name, named := strings.Cut(s, "/")
	id := Identity{Role: Role(role), Name: name}
	switch id.Role {
	case Node:
		if name == "" || strings.ContainsAny(name, "/?#% ") {
			return Identity{}, fmt.Errorf("identity %q: a node's is node/NAME, where NAME has no slash, space or ?#%%", s)
		}
		return id, nil
	case Mirror, Tracker, Controller, Client:
		if named {
			return Identity{}, fmt.Errorf("identity %q: only nodes carry a name", s)
		}
		return id, nil
	}
	return Identity{}, fmt.Errorf("identity %q: want node/NAME, mirror, tracker, controller or client", s)
}

// String is the inverse of ParseIdentity.
func (id Identity) String() string {
	if id.Name == "" {
		return string(id.Role)
	}
	return string(id.Role) + "/" + id.Name
}

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/" + id.String()}
}

// ErrNoIdentity means that a certificate names no role of ours.
var ErrNoIdentity = errors.New("certificate names no Shoal role (want one URI name spiffe://shoal/ROLE)")

// Of returns the identity that cert carries.
func Of(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe" || cert.URIs[0].Host != trustDomain {
		return Identity{}, ErrNoIdentity
	}
	return ParseIdentity(strings.TrimPrefix(cert.URIs[0].Path, "/"))
}

// From returns who sent a request that arrived over mutual TLS. Over plain text it reports false.
func From(r *http.Request) (Identity, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Identity{}, false
	}
	id, err := Of(r.TLS.VerifiedChains[0][0])
	return id, err == nil
}

// Files in a directory that Issue writes and Load reads.
const (
	caCertFile = "ca.crt"
	caKeyFile  = "ca.key"
	certFile   = "tls.crt"
	keyFile    = "tls.key"
)

// Bundle is one process's certificate with the authority that it trusts.
type Bundle struct {
	cert tls.Certificate
	pool *x509.CertPool
	self Identity
}

// Load reads ca.crt, tls.crt and tls.key from dir, the names of a kubernetes.io/tls Secret.
func Load(dir string) (*Bundle, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("certificate in %s: %w (make one with `shoal certs issue`, or pass --plaintext for a trial)", dir, err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if err != nil {
		return nil, fmt.Errorf("certificate authority in %s: %w", dir, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("certificate authority in %s: %s holds no PEM certificate", dir, caCertFile)
	}
	self, err := Of(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("certificate in %s: %w", dir, err)
	}
	return &Bundle{cert: cert, pool: pool, self: self}, nil
}

// Identity is who this process is.
func (b *Bundle) Identity() Identity { return b.self }

// Server returns a configuration that admits peers of the given roles; none means every role.
func (b *Bundle) Server(allow ...Role) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{b.cert},
		ClientAuth:       tls.RequireAndVerifyClientCert,
		ClientCAs:        b.pool,
		VerifyConnection: func(s tls.ConnectionState) error { return checkRole(s.PeerCertificates[0], allow) },
	}
}

// Client returns a configuration that talks to servers of the given roles only.
func (b *Bundle) Client(allow ...Role) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{b.cert},
		// The usual check would compare the host name, which our certificates do not carry.
		// VerifyConnection below verifies the chain and the role in its place.
		InsecureSkipVerify: true, //nolint:gosec // replaced by VerifyConnection
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
		VerifyConnection: func(s tls.ConnectionState) error {
			intermediates := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				intermediates.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots:         b.pool,
				Intermediates: intermediates,
				KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			})
			if err != nil {
				return fmt.Errorf("server certificate: %w", err)
			}
			return checkRole(s.PeerCertificates[0], allow)
		},
	}
}

func checkRole(cert *x509.Certificate, allow []Role) error {
	id, err := Of(cert)
	if err != nil {
		return err
	}
	if len(allow) > 0 && !slices.Contains(allow, id.Role) {
		return fmt.Errorf("certificate of %s: its role may not do this (want one of %v)", id, allow)
	}
	return nil
}
