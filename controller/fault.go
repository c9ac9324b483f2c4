package controller

import (
	"errors"

	"github.com/shoal-project/shoal/internal/registry"
)

// sourceError is what went wrong at the source.
type sourceError struct{ err error }

// Error implements error.
func (e *sourceError) Error() string { return e.err.Error() }

// Unwrap returns what went wrong.
func (e *sourceError) Unwrap() error { return e.err }

// reason is a condition's reason.
func (e *sourceError) reason() string {
	if _, missing := errors.AsType[*secretError](e.err); missing {
		return "SecretUnusable"
	}
	return "SourceFailed"
}

// secretError says that a Secret is not there, or has not what it should have.
type secretError struct{ err error }

// Error implements error.
func (e *secretError) Error() string { return e.err.Error() }

// Unwrap returns what is wrong.
func (e *secretError) Unwrap() error { return e.err }

// registryAtFault reports whether another registry may do better.
func registryAtFault(err error) bool {
	var source *sourceError
	if err == nil || errors.As(err, &source) {
		return false
	}
	var told *registry.Error
	var secret *secretError
	return errors.As(err, &told) || errors.As(err, &secret)
}
