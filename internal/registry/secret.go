package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// maxSecret is the longest pull secret in bytes; Kubernetes takes 1 MiB.
const maxSecret = 1 << 20

// SecretFile finds credentials in a file of docker's configuration format, which is also what a Kubernetes pull
// secret of the type kubernetes.io/dockerconfigjson holds. The file is read again when it has changed, so that
// a mounted secret can be rotated. Credential helpers in it are not run.
func SecretFile(path string) auth.CredentialFunc {
	s := &secretFile{path: path}
	return s.credential
}

type secretFile struct {
	path string

	mu   sync.Mutex
	info os.FileInfo // of what was read; nil before that
	find auth.CredentialFunc
}

func (s *secretFile) credential(ctx context.Context, host string) (auth.Credential, error) {
	find, err := s.load()
	if err != nil {
		return auth.EmptyCredential, fmt.Errorf("pull secret %s: %w", s.path, err)
	}
	return find(ctx, host)
}

// load reads the file unless it is the one that was read last.
func (s *secretFile) load() (auth.CredentialFunc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if s.info != nil && os.SameFile(info, s.info) && info.ModTime().Equal(s.info.ModTime()) && info.Size() == s.info.Size() {
		return s.find, nil
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxSecret {
		return nil, fmt.Errorf("has more than %d bytes", maxSecret)
	}
	store, err := credentials.NewMemoryStoreFromDockerConfig(raw)
	if err != nil {
		// The library's error may quote what it could not read.
		return nil, errors.New(`is not of docker's configuration format, {"auths": {"HOST": {"auth": ...}}}`)
	}
	s.info, s.find = info, credentials.Credential(store)
	return s.find, nil
}
