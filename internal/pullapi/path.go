// Package pullapi is the read side of the OCI distribution API as a server sees it: paths, ranges, answers
// and errors. The mirror and a node's endpoint serve it; what they serve is theirs.
package pullapi

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Kind is what a path of the registry API asks for.
type Kind int

// The kinds.
const (
	Base      Kind = iota // GET /v2/
	Blobs                 // a blob, by digest
	Manifests             // a manifest, by digest or tag
	Referrers             // what refers to a digest
	Tags                  // the list of a repository's tags
	Segments              // of ours, under a name that the distribution-spec leaves to extensions: _<extension>/<component>
)

// Target is a parsed path.
type Target struct {
	Kind       Kind
	Repository string
	Reference  string // a digest, or a tag for Manifests
}

// Digest returns the reference where it is one.
func (t Target) Digest() (digest.Digest, bool) {
	d := digest.Digest(t.Reference)
	return d, strings.Contains(t.Reference, ":") && d.Validate() == nil && d.Algorithm() == digest.SHA256
}

// Errors of Parse, each with its code of the distribution-spec.
var (
	ErrNoRoute   = errors.New("only GET and HEAD of /v2/, blobs, manifests, tags and referrers are answered")
	ErrName      = errors.New("repository name is not valid")
	ErrReference = errors.New("reference is not a tag or a sha256 digest")
)

// The patterns are the distribution-spec's ("Pulling manifests").
const (
	namePattern = `^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`
	tagPattern  = `^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`
	maxName     = 255 // bytes; most registries' limit, together with the host
)

// Parser reads paths.
type Parser struct{ name, tag *regexp.Regexp }

// NewParser returns a Parser.
func NewParser() Parser {
	return Parser{name: regexp.MustCompile(namePattern), tag: regexp.MustCompile(tagPattern)}
}

// Parse reads a path of the registry API. A repository's name may itself hold "blobs" or
// "manifests": the last one counts.
func (p Parser) Parse(path string) (Target, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return Target{}, nil
		}
		return Target{}, ErrNoRoute
	}
	if rest == "" {
		return Target{}, nil
	}
	head, reference, ok := cutLast(rest, "/")
	if !ok {
		return Target{}, ErrNoRoute
	}
	name, word, ok := cutLast(head, "/")
	if !ok {
		return Target{}, ErrNoRoute
	}
	t := Target{Repository: name, Reference: reference}
	if ext, ok := strings.CutSuffix(name, "/_shoal"); ok && word == "segments" {
		t.Repository, name, word = ext, ext, "_shoal/segments"
	}
	switch word {
	case "blobs":
		t.Kind = Blobs
	case "manifests":
		t.Kind = Manifests
	case "referrers":
		t.Kind = Referrers
	case "tags":
		if reference != "list" {
			return Target{}, ErrNoRoute
		}
		t.Kind, t.Reference = Tags, ""
	case "_shoal/segments":
		t.Kind = Segments
	default:
		return Target{}, ErrNoRoute
	}
	if len(name) > maxName || !p.name.MatchString(name) {
		return Target{}, ErrName
	}
	if t.Kind == Tags {
		return t, nil
	}
	if _, isDigest := t.Digest(); !isDigest && (t.Kind != Manifests || !p.tag.MatchString(reference)) {
		return Target{}, ErrReference
	}
	return t, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// ErrRange means that a range lies outside the blob (RFC 9110, 416).
var ErrRange = errors.New("range lies outside the blob")

// ParseRange reads a Range header for a blob of size bytes. partial is false where the header is to
// be ignored (RFC 9110, section 14.2): absent, malformed, of another unit, or of several ranges.
func ParseRange(header string, size int64) (off, n int64, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, size, false, nil
	}
	if first == "" { // the last so many bytes
		suffix, ok := ParseOffset(last)
		switch {
		case !ok:
			return 0, size, false, nil
		case suffix == 0 || size == 0:
			return 0, 0, false, ErrRange
		}
		suffix = min(suffix, size)
		return size - suffix, suffix, true, nil
	}
	off, ok = ParseOffset(first)
	if !ok {
		return 0, size, false, nil
	}
	end := size
	if last != "" {
		to, ok := ParseOffset(last)
		if !ok || to < off {
			return 0, size, false, nil
		}
		if to < size-1 {
			end = to + 1
		}
	}
	if off >= size {
		return 0, 0, false, ErrRange
	}
	return off, end - off, true, nil
}

// ParseOffset reads digits only: strconv would take a sign.
func ParseOffset(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// Namespace is the upstream that a request names, "" for none.
func Namespace(r *http.Request) string { return r.URL.Query().Get("ns") }
