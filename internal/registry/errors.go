package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Error is a registry's refusal or failure, told so that the reader knows what to do. It unwraps to
// oras-go's error (errdef.ErrNotFound, *errcode.ErrorResponse).
type Error struct {
	// Registry is host[:port], Repository the name in it, Op what was being done.
	Registry, Repository, Op string
	// Status is the HTTP status, 0 when no response came.
	Status int
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("registry %s, repository %s: %s: %s: %v", e.Registry, e.Repository, e.Op, e.advice(), e.Err)
}

// Unwrap returns the error that the registry client gave.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) advice() string {
	switch {
	case e.Status == http.StatusUnauthorized:
		return fmt.Sprintf("the registry wants (other) credentials; log in with `docker login %s` or hand over a pull secret", e.Registry)
	case e.Status == http.StatusForbidden:
		return "these credentials may not do this; ask for the right on this repository"
	case e.Status == http.StatusNotFound:
		return "not found; check the repository's name and the tag, some registries want the repository to be created first"
	case e.Status == http.StatusTooManyRequests:
		return "the registry limits the rate; try again later or ask for a higher quota"
	case e.Status == http.StatusInsufficientStorage:
		return "the registry is full; free space in it or raise its quota"
	case e.Status == http.StatusRequestEntityTooLarge:
		return "the registry, or a proxy before it, takes no body of this size; raise its limit"
	case e.Status >= 500:
		return "the registry fails; look at its health and log, then try again"
	case e.Status == 0:
		return "no answer; check the address, the network and the certificate (plain HTTP needs its flag)"
	default:
		return fmt.Sprintf("refused with status %d", e.Status)
	}
}

// explain makes an *Error of what the client returned, unless it is the caller's own cancellation.
func (r *Repository) explain(op string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, known := errors.AsType[*Error](err); known {
		return err
	}
	e := &Error{Registry: r.Reference.Registry, Repository: r.Reference.Repository, Op: op, Err: err}
	var resp *errcode.ErrorResponse
	switch {
	case errors.As(err, &resp):
		e.Status = resp.StatusCode
	case errors.Is(err, errdef.ErrNotFound):
		e.Status = http.StatusNotFound
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		e.Status = http.StatusUnauthorized
	case errors.Is(err, errLocal):
		return err
	}
	return e
}

// Unavailable reports whether err, or every part of it where it joins several, is a registry that
// does not answer, fails, or limits the rate: asking again later may help, and what was known before
// may still hold. An answer such as 404 is not, nor is a registry that is full: somebody has to act.
func Unavailable(err error) bool {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			if !Unavailable(e) {
				return false
			}
		}
		return len(many.Unwrap()) > 0
	}
	if e, ok := err.(*Error); ok { //nolint:errorlint // each layer of the chain is looked at in turn
		return e.Status == 0 || e.Status == http.StatusTooManyRequests || e.Status >= 500 && e.Status != http.StatusInsufficientStorage
	}
	if next := errors.Unwrap(err); next != nil {
		return Unavailable(next)
	}
	return false
}

// errLocal marks failures that are not the registry's answer, such as wrong bytes.
var errLocal = errors.New("wrong content")
