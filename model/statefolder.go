package model

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"
)

// stateFolder keeps what an unfinished pack or copy needs to go on after its process was killed. It
// is removed when the work is complete.
type stateFolder struct {
	dir  string // empty: nothing is kept
	lock *os.File
}

// openStateFolder takes the folder for what is brought into name (repository and tag); kind is a
// directory for folders of one sort. A second process on the same name is an error.
func openStateFolder(stateDir, kind, name string) (*stateFolder, error) {
	if stateDir == "" {
		return &stateFolder{}, nil
	}
	dir := filepath.Join(stateDir, kind, digest.FromString(name).Encoded())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("state of the %s: %w", kind, err)
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("state of the %s: %w", kind, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another %s writes %s: wait for it or stop it", kind, name)
	}
	return &stateFolder{dir: dir, lock: lock}, nil
}

// close lets go of the folder, and removes it when the work is done.
func (s *stateFolder) close(done bool) error {
	if s.dir == "" {
		return nil
	}
	var err error
	if done {
		err = os.RemoveAll(s.dir)
	}
	return errors.Join(err, s.lock.Close())
}

// replaceFile writes the file name so that a reader sees the old content or the new one.
func replaceFile(name string, content []byte) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
