package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/peer/store"
)

// Errors that callers branch on.
var (
	// ErrUnknownUpstream means that no upstream of this name is configured.
	ErrUnknownUpstream = errors.New("this mirror does not mirror that registry")
	// ErrStopped means that the mirror shuts down.
	ErrStopped = errors.New("the mirror shuts down; ask again or ask another one")
	// ErrWrongBytes means that upstream sent other bytes than the digest names.
	ErrWrongBytes = errors.New("upstream sent other bytes than the digest names")
	// errDamaged means that the whole is wrong and a part of it was already there when the fill
	// began: that part may be at fault, so that upstream is not blamed and may be asked at once.
	errDamaged = errors.New("what an earlier fill left on the disk was damaged and is dropped; ask again")
)

// UpstreamError is an upstream registry's refusal or failure.
type UpstreamError struct {
	// Upstream is the configured name, Repository the one that was asked for.
	Upstream, Repository string
	// Status is the HTTP status of upstream's last answer, 0 when there was none.
	Status int
	// RetryAfter is when to ask again, 0 when nobody knows.
	RetryAfter time.Duration
	Err        error
}

// Error implements error.
func (e *UpstreamError) Error() string {
	login, noLogin := errors.AsType[loginError](e.Err)
	switch {
	case noLogin:
		return fmt.Sprintf("upstream registry %s, repository %s: %v", e.Upstream, e.Repository, login)
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		return fmt.Sprintf("upstream registry %s refuses the mirror's credentials for %s (%d); give the mirror a pull secret for it: %v", e.Upstream, e.Repository, e.Status, e.Err)
	}
	return fmt.Sprintf("upstream registry %s, repository %s: %v", e.Upstream, e.Repository, e.Err)
}

// Unwrap returns what went wrong.
func (e *UpstreamError) Unwrap() error { return e.Err }

// loginError is the error of a source of credentials (acr.Error): what the request to upstream was says nothing then.
type loginError interface {
	error
	// Refused reports whether asking again is of no use before somebody has changed keys or rights.
	Refused() bool
}

// down reports whether upstream could not answer, as opposed to having refused.
func (e *UpstreamError) down() bool {
	return e.Status == 0 || e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
}

// blame makes an *UpstreamError of what upstream's client returned. Our own end of the request stays
// what it is.
func blame(src Source, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, known := errors.AsType[*UpstreamError](err); known {
		return err
	}
	e := &UpstreamError{Upstream: src.Upstream, Repository: src.Repository, Err: err}
	var answer *errcode.ErrorResponse
	var told *registry.Error
	login, noLogin := errors.AsType[loginError](err)
	switch {
	case noLogin && login.Refused():
		e.Status = http.StatusForbidden
	case errors.As(err, &told):
		e.Status = told.Status
	case errors.As(err, &answer):
		e.Status = answer.StatusCode
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		e.Status = http.StatusUnauthorized
	case errors.Is(err, errdef.ErrNotFound):
		e.Status = http.StatusNotFound
	}
	return e
}

// failures remembers for a short while what upstream refused or failed at, so that many clients which
// ask again do not reach it.
type failures struct {
	mu sync.Mutex
	of map[failureKey]failure
}

// failureKey is one thing asked of one repository: another repository may have the blob.
type failureKey struct {
	source Source
	what   string
}

type failure struct {
	err   error
	count int
	until time.Time
	gone  time.Time // when the count is forgotten
}

// maxFailures bounds the memory that clients can make us use.
const maxFailures = 4096

// check returns the error that is still remembered, with what is left of its wait.
func (f *failures) check(key failureKey, now time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	past, ok := f.of[key]
	if !ok || !now.Before(past.until) {
		return nil
	}
	return recall(past.err, past.until.Sub(now))
}

// note remembers err, where it is upstream's, and returns it with the time to wait.
func (f *failures) note(key failureKey, err error, now time.Time) error {
	pause, ok := pauseAfter(err, f.count(key, now))
	if !ok {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[failureKey]failure{}
	}
	if len(f.of) >= maxFailures {
		for old, past := range f.of {
			if now.After(past.gone) || len(f.of) >= maxFailures {
				delete(f.of, old)
			}
		}
	}
	f.of[key] = failure{err: err, count: f.of[key].count + 1, until: now.Add(pause), gone: now.Add(2*pause + time.Minute)}
	return recall(err, pause)
}

// recall is err with the time to wait.
func recall(err error, wait time.Duration) error {
	e, ok := errors.AsType[*UpstreamError](err)
	if !ok {
		return err
	}
	again := *e
	again.RetryAfter = wait
	return &again
}

// count is how often in a row key failed.
func (f *failures) count(key failureKey, now time.Time) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	past := f.of[key]
	if now.After(past.gone) {
		delete(f.of, key)
		return 0
	}
	return past.count
}

// forget ends a row of failures.
func (f *failures) forget(key failureKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.of, key)
}

// pauseAfter is for how long err is remembered when it came for the count-th time in a row (from 0).
// A part of it is random, so that clients do not come back together. Errors that are not upstream's
// are not remembered.
func pauseAfter(err error, count int) (time.Duration, bool) {
	var pause time.Duration
	e, upstream := errors.AsType[*UpstreamError](err)
	switch {
	case errors.Is(err, ErrWrongBytes):
		pause = doubled(10*time.Second, count)
	case !upstream:
		return 0, false
	case e.down():
		pause = max(doubled(time.Second, count), min(e.RetryAfter, 5*time.Minute))
	case e.Status == http.StatusNotFound:
		pause = 2 * time.Second // it may just be on its way there
	default:
		pause = 5 * time.Second // somebody may just set the credentials right
	}
	return pause + time.Duration(rand.Int64N(int64(pause/2))), true
}

func doubled(base time.Duration, count int) time.Duration {
	return min(base<<min(count, 10), time.Minute)
}

// wrongBytes makes an ErrWrongBytes of the store's verdict.
func wrongBytes(src Source, err error) error {
	if corrupt, ok := errors.AsType[*store.CorruptError](err); ok {
		return &UpstreamError{Upstream: src.Upstream, Repository: src.Repository, Status: http.StatusBadGateway,
			Err: fmt.Errorf("%w: %s came as %s", ErrWrongBytes, corrupt.Key.Digest, corrupt.Actual)}
	}
	return err
}
