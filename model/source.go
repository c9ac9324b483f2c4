package model

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Source is where a model's files come from. One that is a fmt.Stringer is named by it in errors
// about its files' content.
type Source interface {
	// List returns all files. The paths are checked by the caller.
	List(ctx context.Context) ([]File, error)
	// Open reads a file of the list from offset to its end. A file that is no longer the one that
	// was listed is an error, of Open or of a Read.
	Open(ctx context.Context, path string, offset int64) (io.ReadCloser, error)
}

// Learner is a Source that keeps checksums which Pack computed while it read a file, so that it can
// list them the next time.
type Learner interface {
	// Learn is told the sha256 of files, by path, as they were listed. A failure costs only time, so
	// none is returned.
	Learn(sums map[string]digest.Digest)
}

// ChecksumError means that a file's bytes are not those that its source has a checksum of: they were
// damaged on the way, or lie damaged in the source.
type ChecksumError struct {
	// Source names where the file is, empty where that has no name; Path is the file in it.
	Source, Path string
	// Scheme is the kind of checksum, Want what the source promised, Got what the bytes have.
	Scheme, Want, Got string
}

// Error implements error.
func (e *ChecksumError) Error() string {
	from := ""
	if e.Source != "" {
		from = " of " + e.Source
	}
	return fmt.Sprintf("file %q%s: its %s is %s, the source promised %s: pack it again, and if this comes back, the file is damaged at its source", e.Path, from, e.Scheme, e.Got, e.Want)
}

// contentHash verifies a file against its source's checksum while it passes by. The sha256 is
// always computed, because the member table needs it.
type contentHash struct {
	sha256 hash.Hash
	other  hash.Hash // nil unless the source's checksum is of another kind that we know
	scheme string
	want   string
}

func newContentHash(checksum string) *contentHash {
	c := &contentHash{sha256: sha256.New()}
	c.scheme, c.want, _ = strings.Cut(checksum, ":")
	switch c.scheme {
	case "crc64-ecma":
		c.other = crc64.New(crc64.MakeTable(crc64.ECMA))
	case "md5":
		c.other = md5.New()
	}
	return c
}

func (c *contentHash) Write(p []byte) (int, error) {
	c.sha256.Write(p)
	if c.other != nil {
		c.other.Write(p)
	}
	return len(p), nil
}

// sum returns the content's digest. Where it is not what the source promised, the error is a
// *ChecksumError that lacks source and path.
func (c *contentHash) sum() (digest.Digest, error) {
	sum := digest.NewDigest(digest.SHA256, c.sha256)
	got := ""
	switch h := c.other.(type) {
	case hash.Hash64:
		got = fmt.Sprint(h.Sum64())
	case nil:
		if c.scheme != "sha256" {
			return sum, nil
		}
		got = sum.Encoded()
	default:
		got = hex.EncodeToString(h.Sum(nil))
	}
	if !strings.EqualFold(got, c.want) {
		return sum, &ChecksumError{Scheme: c.scheme, Want: c.want, Got: got}
	}
	return sum, nil
}

// sameContent reports whether a file of the source is the member of an image packed before.
func sameContent(f File, m Member) bool {
	if f.Path != m.Path || f.Size != m.Size || f.Checksum == "" {
		return false
	}
	return f.Checksum == m.SHA256.String() || f.Checksum == m.Source
}
