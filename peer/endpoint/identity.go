package endpoint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Identity is how containerd and the endpoint know each other. It is made anew at each start, and the key of
// its authority is forgotten at once: nothing else can ever be signed by it.
type Identity struct {
	// CA, Cert and Key are the files that containerd is told of: whom to believe, and what to show. Key
	// is readable by root only.
	CA, Cert, Key string

	server *tls.Config
	dir    string
}

const (
	// identityPrefix begins the names of the folders of identities.
	identityPrefix = "tls-"
	identityYears  = 10 // a process's life and more
)

// NewIdentity makes an identity for ip, with its files in a new folder below dir.
func NewIdentity(dir string, ip net.IP) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	at, err := os.MkdirTemp(dir, identityPrefix)
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: at, CA: filepath.Join(at, "ca.crt"), Cert: filepath.Join(at, "client.crt"), Key: filepath.Join(at, "client.key")}
	if err := id.issue(ip); err != nil {
		return nil, errors.Join(fmt.Errorf("identity of the endpoint: %w", err), os.RemoveAll(at))
	}
	return id, nil
}

// ServerTLS is the endpoint's side: who connects has to show the client's key.
func (id *Identity) ServerTLS() *tls.Config { return id.server.Clone() }

// Only removes the identities of earlier starts. It is called when containerd is no longer told of them.
func (id *Identity) Only() error {
	dir := filepath.Dir(id.dir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if at := filepath.Join(dir, e.Name()); strings.HasPrefix(e.Name(), identityPrefix) && at != id.dir {
			errs = append(errs, os.RemoveAll(at))
		}
	}
	return errors.Join(errs...)
}

func (id *Identity) issue(ip net.IP) error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := template("shoal endpoint", 1)
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return err
	}
	sign := func(t *x509.Certificate) (der, key []byte, err error) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		if der, err = x509.CreateCertificate(rand.Reader, t, ca, own.Public(), caKey); err != nil {
			return nil, nil, err
		}
		key, err = x509.MarshalECPrivateKey(own)
		return der, key, err
	}
	server := template("shoal endpoint", 2)
	server.IPAddresses, server.ExtKeyUsage = []net.IP{ip}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	serverDER, serverKey, err := sign(server)
	if err != nil {
		return err
	}
	client := template("containerd", 3)
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	clientDER, clientKey, err := sign(client)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{id.CA, "CERTIFICATE", caDER}, {id.Cert, "CERTIFICATE", clientDER}, {id.Key, "EC PRIVATE KEY", clientKey}} {
		if err := writeWhole(f.name, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return err
		}
	}
	key, err := x509.ParseECPrivateKey(serverKey)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	id.server = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverDER}, PrivateKey: key}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: roots,
	}
	return nil
}

func template(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(serial), KeyUsage: x509.KeyUsageDigitalSignature,
		// A machine's clock may be set back after its first boot.
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(identityYears, 0, 0),
	}
}

// writeWhole writes a file that is there whole or not at all, also after a power cut.
func writeWhole(name string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), leftover)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
