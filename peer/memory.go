package peer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/shoal-project/shoal/tracker/client"
)

// memory is what the node knows after a restart when nobody answers: what it should hold, and what
// the references that it resolved mean. Everything read from it is checked like input from outside.
type memory struct{ dir string }

const desiredFile = "desired.json"

// saveDesired remembers the desired set.
func (m memory) saveDesired(models []client.DesiredModel) error {
	return m.save(desiredFile, models)
}

// desired returns the last desired set, nil where there is none.
func (m memory) desired() ([]client.DesiredModel, error) {
	var models []client.DesiredModel
	err := m.load(desiredFile, &models)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return models, err
}

// saveImage remembers what reference meant.
func (m memory) saveImage(reference string, image *content) error {
	return m.save(imageFile(reference), image)
}

// image returns what reference meant when it was last resolved.
func (m memory) image(reference string) (*content, error) {
	var image content
	if err := m.load(imageFile(reference), &image); err != nil {
		return nil, err
	}
	return &image, image.validate()
}

func imageFile(reference string) string {
	sum := sha256.Sum256([]byte(reference))
	return filepath.Join("images", hex.EncodeToString(sum[:16])+".json")
}

func (m memory) load(name string, into any) error {
	if m.dir == "" {
		return fs.ErrNotExist
	}
	raw, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(m.dir, name), err)
	}
	return nil
}

// save replaces the file by one rename. It is not synced: after a power failure the node asks again.
func (m memory) save(name string, v any) error {
	if m.dir == "" {
		return nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	at := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(at), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(raw)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), at)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
