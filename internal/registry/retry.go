package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// Retry says how often and how patiently a request is tried again.
type Retry struct {
	// Tries is the most attempts of one request, the first included.
	Tries int
	// Base is the pause before the second attempt; it doubles from one to the next, and each is
	// shortened by a random part of up to a half, so that many clients do not come back at once.
	Base time.Duration
	// Max bounds a pause, one that the registry asks for by Retry-After too.
	Max time.Duration
}

// DefaultRetry bridges a registry's restart (about two minutes) without hammering it.
func DefaultRetry() Retry {
	return Retry{Tries: 8, Base: 500 * time.Millisecond, Max: 60 * time.Second}
}

// pause is the wait before attempt number attempt+1, counted from 0.
func (r Retry) pause(attempt int, resp *http.Response, now time.Time) time.Duration {
	if resp != nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		if asked, ok := retryAfter(resp.Header.Get("Retry-After"), now); ok {
			return min(asked, r.Max)
		}
	}
	wait := r.Max
	if shift := min(attempt, 30); r.Base<<shift>>shift == r.Base {
		wait = min(r.Base<<shift, r.Max)
	}
	return wait - time.Duration(rand.Int64N(int64(wait/2)+1))
}

// retryAfter reads the header's two forms (RFC 9110, section 10.2.3): seconds, or a date.
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 {
		return time.Duration(min(seconds, 24*3600)) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// retryPolicy makes a Retry into the policy of oras-go's retry.Transport.
type retryPolicy struct{ limits Retry }

// Retry implements oras-go's retry.Policy; a negative duration ends the tries.
func (p retryPolicy) Retry(attempt int, resp *http.Response, err error) (time.Duration, error) {
	if attempt+1 >= p.limits.Tries {
		return -1, nil
	}
	if err != nil {
		if !transient(err) {
			return -1, nil
		}
		return p.limits.pause(attempt, nil, time.Now()), nil
	}
	if !transientStatus(resp.StatusCode) {
		return -1, nil
	}
	return p.limits.pause(attempt, resp, time.Now()), nil
}

func transientStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// transient reports whether a connection's failure may pass: not a wrong name or certificate, and
// not the end of the caller's own context.
func transient(err error) bool {
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.As(err, &timeout) && timeout.Timeout()
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
