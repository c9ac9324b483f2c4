package oss

import (
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/model/source"
)

// Error is a refusal or failure of OSS, told so that the reader knows what to do. It has nothing of the
// credentials in it, and of OSS's own text only what is shown.
type Error struct {
	// Object is "oss://bucket/key at endpoint"; the key may be that of a directory.
	Object string
	// Status is the HTTP status, 0 when no answer came. Code and RequestID are OSS's.
	Status          int
	Code, RequestID string
	// Tries is how often it was tried.
	Tries int

	advice string
	err    error // source.ErrChanged, or a connection's failure
}

// Error implements error.
func (e *Error) Error() string {
	var about []string
	if e.Status != 0 {
		about = append(about, strings.TrimSpace(fmt.Sprintf("status %d %s", e.Status, e.Code)))
	}
	if e.RequestID != "" {
		about = append(about, "request "+e.RequestID)
	}
	if e.Tries > 1 {
		about = append(about, fmt.Sprintf("%d tries", e.Tries))
	}
	text := e.Object + ": " + e.advice
	if len(about) > 0 {
		text += " (" + strings.Join(about, ", ") + ")"
	}
	return text
}

// Unwrap returns source.ErrChanged or a connection's failure, if it was one.
func (e *Error) Unwrap() error { return e.err }

var errStalled = errors.New("no byte came for a while")

// mayPass reports whether what failed may succeed the next time.
func mayPass(err error) bool {
	if refused, ok := errors.AsType[*refusal](err); ok {
		return retry.TransientStatus(refused.status)
	}
	return errors.Is(err, errStalled) || retry.Transient(err)
}

// explain makes an *Error of what a call about key ended with.
func (s *Source) explain(key string, tries int, err error) error {
	if wrong, ok := errors.AsType[*CredentialsError](err); ok {
		return wrong
	}
	e := &Error{Object: s.name(key), Tries: tries}
	refused, ok := errors.AsType[*refusal](err)
	switch {
	case ok:
		e.Status, e.Code, e.RequestID = refused.status, refused.code, refused.requestID
		if e.advice = s.advice(key, refused); e.advice == "" {
			e.err = source.ErrChanged
			e.advice = e.err.Error()
		}
	case errors.Is(err, source.ErrChanged):
		e.err = source.ErrChanged
		e.advice = e.err.Error()
	case errors.Is(err, errStalled):
		e.advice = fmt.Sprintf("no byte came for %v: check the network, then try again", s.cfg.Stall)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		e.err = io.ErrUnexpectedEOF
		e.advice = "the answer broke off again and again before its end: check the network and any proxy on the way, then try again"
	default:
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
			e.err = err
			e.advice = fmt.Sprintf("no answer: check the endpoint (internal ones can only be reached from their region's VPC), the network and the certificate: %v", err)
			break
		}
		e.err = err
		e.advice = err.Error()
	}
	return e
}

// advice says in one sentence what OSS refused and what to do; "" for an object that changed.
func (s *Source) advice(key string, r *refusal) string {
	right, directory := "oss:GetObject", key == s.prefix
	if directory {
		right = "oss:ListObjects"
	}
	switch r.code {
	case "NoSuchBucket":
		return "there is no such bucket here: check its name, and that the endpoint is that of its region"
	case "NoSuchKey", "PreconditionFailed", "InvalidRange":
		return "" // every object that is asked for was listed
	case "InvalidAccessKeyId":
		return "OSS does not know this access key ID (or knows it only with its STS token): put one that is valid and enabled into the credentials"
	case "SignatureDoesNotMatch":
		return "the access key secret does not fit the access key ID: check the credentials"
	case "SecurityTokenExpired":
		return "the STS token has expired: renew the credentials"
	case "InvalidSecurityToken", "InvalidSecurityTokenId":
		return "the STS token does not fit the access key ID: take all three of ID, secret and token from one answer of STS"
	case "RequestTimeTooSkewed":
		return "this machine's clock differs from OSS's by more than 15 minutes: set it (NTP)"
	case "InvalidObjectState":
		return "the object is archived: restore it, or keep the model in a bucket of class Standard or IA"
	case "SecondLevelDomainForbidden":
		return "this endpoint wants the bucket in the host's name: check that the endpoint is one of OSS's"
	}
	switch {
	case r.code == "AccessDenied" && r.endpoint != "":
		return fmt.Sprintf("the bucket is of another region: use the endpoint %s", r.endpoint)
	case r.code == "AccessDenied":
		return "these credentials may not read it: grant them " + right + " on the bucket, and check that the bucket is yours"
	case r.code == "InvalidArgument" && strings.Contains(r.message, "signing region"):
		return "the region that was signed is not the bucket's: set region and endpoint to those of the bucket"
	case r.status == http.StatusTooManyRequests:
		return "OSS limits the rate of requests: try again later, or ask for a higher limit"
	case r.status >= 500:
		return "OSS fails or is overloaded: try again later"
	case r.status == http.StatusNotFound && !directory:
		return "" // a HEAD without a document
	case r.status == http.StatusPreconditionFailed:
		return ""
	}
	return "OSS refuses: " + r.message
}

// transport makes an error of every answer that is none of success, so that the SDK, which keeps no
// headers and remembers whole documents (the string to sign with its STS token among them), never sees
// one. It bounds what is read into memory of the others.
type transport struct {
	base      http.RoundTripper
	anonymous bool // requests go unsigned
}

const (
	maxDocument = 64 << 10 // an error
	maxListing  = 16 << 20 // a page: 1000 keys of at most 3 KiB as they are encoded
)

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.anonymous {
		r = r.Clone(r.Context())
		r.Header.Del("Authorization")
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
		if errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, newRefusal(resp.StatusCode, resp.Header, raw)
	}
	if resp.StatusCode != http.StatusPartialContent {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxListing)
	}
	return resp, nil
}

// refusal is an answer of OSS that is none of success.
type refusal struct {
	status                             int
	code, message, endpoint, requestID string
	retryAfter                         string
}

// Error implements error.
func (r *refusal) Error() string { return fmt.Sprintf("status %d %s: %s", r.status, r.code, r.message) }

// newRefusal reads an error document, which HEAD has in the header x-oss-err. One that cannot be read
// leaves the status.
func newRefusal(status int, header http.Header, raw []byte) *refusal {
	if len(raw) == 0 {
		raw, _ = base64.StdEncoding.DecodeString(header.Get("X-Oss-Err")) // as much as there is
	}
	var document struct {
		XMLName  xml.Name `xml:"Error"`
		Code     string
		Message  string
		Endpoint string
	}
	if xml.Unmarshal(raw, &document) != nil {
		document.Code, document.Message = "", http.StatusText(status)
	}
	return &refusal{
		status: status, code: clean(document.Code), message: clean(document.Message), endpoint: clean(document.Endpoint),
		requestID: clean(header.Get("X-Oss-Request-Id")), retryAfter: header.Get("Retry-After"),
	}
}

// clean makes one short line of a text from outside.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(text))
	if runes := []rune(text); len(runes) > 200 {
		text = string(runes[:200]) + "..."
	}
	return text
}
