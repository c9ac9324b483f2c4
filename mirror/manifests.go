package mirror

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/internal/pullapi"
)

// Manifest is a manifest or an index, checked against its digest.
type Manifest = pullapi.Manifest

// maxManifest is the longest manifest in bytes; registries must take 4 MiB (distribution-spec).
const maxManifest = 4 << 20

// manifestStore keeps manifests for ever, and the last known digests of tags. They are small: the
// quota does not count them.
//
//	manifests/<sha256>       a line with the media type, then the content
//	tags/<sha256 of name>    a tag's JSON
//	blobs/<sha256 of name>   empty: this repository was seen to have this blob
type manifestStore struct{ manifests, tags, blobs string }

func openManifests(dir string) (manifestStore, error) {
	s := manifestStore{filepath.Join(dir, "manifests"), filepath.Join(dir, "tags"), filepath.Join(dir, "blobs")}
	return s, errors.Join(os.MkdirAll(s.manifests, 0o700), os.MkdirAll(s.tags, 0o700), os.MkdirAll(s.blobs, 0o700))
}

// manifest returns a manifest that is kept and whole. The error is fs.ErrNotExist where there is none.
func (s manifestStore) manifest(d digest.Digest) (Manifest, error) {
	raw, err := os.ReadFile(filepath.Join(s.manifests, d.Encoded()))
	if err != nil {
		return Manifest{}, err
	}
	mediaType, content, ok := bytes.Cut(raw, []byte("\n"))
	if !ok || digest.FromBytes(content) != d {
		return Manifest{}, fmt.Errorf("manifest %s is damaged: %w", d, fs.ErrNotExist) // it is fetched again
	}
	return Manifest{MediaType: string(mediaType), Digest: d, Content: content}, nil
}

func (s manifestStore) save(m Manifest) error {
	return writeFile(filepath.Join(s.manifests, m.Digest.Encoded()), append([]byte(m.MediaType+"\n"), m.Content...))
}

// knownTag is what a tag was when upstream was last asked.
type knownTag struct {
	Source  Source        `json:"source"`
	Tag     string        `json:"tag"`
	Digest  digest.Digest `json:"digest"`
	Checked time.Time     `json:"checked"`
}

func (s manifestStore) tagPath(src Source, tag string) string {
	return filepath.Join(s.tags, hashed(src.Upstream+"/"+src.Repository+":"+tag))
}

func (s manifestStore) blobPath(src Source, d digest.Digest) string {
	return filepath.Join(s.blobs, hashed(src.Upstream+"/"+src.Repository+"@"+d.String()))
}

func hashed(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}

// saveBlob notes that the repository was seen to have a blob, for a time when upstream is down.
func (s manifestStore) saveBlob(src Source, d digest.Digest) error {
	name := s.blobPath(src, d)
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	return writeFile(name, nil)
}

// hadBlob reports whether the repository was ever seen to have the blob, and not since seen to lack it.
func (s manifestStore) hadBlob(src Source, d digest.Digest) bool {
	_, err := os.Stat(s.blobPath(src, d))
	return err == nil
}

func (s manifestStore) dropBlob(src Source, d digest.Digest) error {
	err := os.Remove(s.blobPath(src, d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tag returns what is known of a tag. The error is fs.ErrNotExist where that is nothing.
func (s manifestStore) tag(src Source, tag string) (knownTag, error) {
	raw, err := os.ReadFile(s.tagPath(src, tag))
	if err != nil {
		return knownTag{}, err
	}
	var known knownTag
	if err := json.Unmarshal(raw, &known); err != nil || known.Digest.Validate() != nil {
		return knownTag{}, fmt.Errorf("tag %s is damaged: %w", tag, fs.ErrNotExist)
	}
	return known, nil
}

func (s manifestStore) saveTag(known knownTag) error {
	raw, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return writeFile(s.tagPath(known.Source, known.Tag), raw)
}

func (s manifestStore) dropTag(src Source, tag string) error {
	err := os.Remove(s.tagPath(src, tag))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeFile replaces a file by one rename. A name that is written by several at once gets one of
// their contents.
func writeFile(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
