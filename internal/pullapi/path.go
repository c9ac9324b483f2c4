package mirror

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// kind is what a path of the registry API asks for.
type kind int

const (
	base kind = iota // GET /v2/
	blobs
	manifests
	referrers
	segmentsOf // of ours, under a name that the distribution-spec leaves to extensions: _<extension>/<component>
)

// target is a parsed path.
type target struct {
	kind       kind
	repository string
	reference  string // a digest, or a tag for manifests
}

// digest returns the reference where it is one.
func (t target) digest() (digest.Digest, bool) {
	d := digest.Digest(t.reference)
	return d, strings.Contains(t.reference, ":") && d.Validate() == nil && d.Algorithm() == digest.SHA256
}

// Errors of parsePath, each with its code of the distribution-spec.
var (
	errNoRoute      = errors.New("this mirror answers to GET and HEAD of /v2/, blobs, manifests and referrers")
	errBadName      = errors.New("repository name is not valid")
	errBadReference = errors.New("reference is not a tag or a sha256 digest")
)

// The patterns are the distribution-spec's ("Pulling manifests").
const (
	namePattern = `^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`
	tagPattern  = `^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`
	maxName     = 255 // bytes; most registries' limit, together with the host
)

// parser reads paths.
type parser struct{ name, tag *regexp.Regexp }

func newParser() parser {
	return parser{name: regexp.MustCompile(namePattern), tag: regexp.MustCompile(tagPattern)}
}

// parsePath reads a path of the registry API. A repository's name may itself hold "blobs" or
// "manifests": the last one counts.
func (p parser) parsePath(path string) (target, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		if path == "/v2" {
			return target{}, nil
		}
		return target{}, errNoRoute
	}
	if rest == "" {
		return target{}, nil
	}
	head, reference, ok := cutLast(rest, "/")
	if !ok {
		return target{}, errNoRoute
	}
	name, word, ok := cutLast(head, "/")
	if !ok {
		return target{}, errNoRoute
	}
	t := target{repository: name, reference: reference}
	if ext, ok := strings.CutSuffix(name, "/_shoal"); ok && word == "segments" {
		t.repository, name, word = ext, ext, "_shoal/segments"
	}
	switch word {
	case "blobs":
		t.kind = blobs
	case "manifests":
		t.kind = manifests
	case "referrers":
		t.kind = referrers
	case "_shoal/segments":
		t.kind = segmentsOf
	default:
		return target{}, errNoRoute
	}
	if len(name) > maxName || !p.name.MatchString(name) {
		return target{}, errBadName
	}
	if _, isDigest := t.digest(); !isDigest && (t.kind != manifests || !p.tag.MatchString(reference)) {
		return target{}, errBadReference
	}
	return t, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// errRange means that a range lies outside the blob (RFC 9110, 416).
var errRange = errors.New("range lies outside the blob")

// parseRange reads a Range header for a blob of size bytes. partial is false where the header is to
// be ignored (RFC 9110, section 14.2): absent, malformed, of another unit, or of several ranges.
func parseRange(header string, size int64) (off, n int64, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || strings.Contains(spec, ",") {
		return 0, size, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return 0, size, false, nil
	}
	if first == "" { // the last so many bytes
		suffix, ok := parseOffset(last)
		switch {
		case !ok:
			return 0, size, false, nil
		case suffix == 0 || size == 0:
			return 0, 0, false, errRange
		}
		suffix = min(suffix, size)
		return size - suffix, suffix, true, nil
	}
	off, ok = parseOffset(first)
	if !ok {
		return 0, size, false, nil
	}
	end := size
	if last != "" {
		to, ok := parseOffset(last)
		if !ok || to < off {
			return 0, size, false, nil
		}
		if to < size-1 {
			end = to + 1
		}
	}
	if off >= size {
		return 0, 0, false, errRange
	}
	return off, end - off, true, nil
}

// parseOffset reads digits only: strconv would take a sign.
func parseOffset(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// namespace is the upstream that a request names, "" for none.
func namespace(r *http.Request) string { return r.URL.Query().Get("ns") }
