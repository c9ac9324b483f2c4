// Package retry holds how often and how patiently a request is tried again, and which failures are
// worth it. Clients of registries and of model sources use it.
package retry

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

// Policy says how often and how patiently a request is tried again.
type Policy struct {
	// Tries is the most attempts of one request, the first included.
	Tries int
	// Base is the pause before the second attempt; it doubles from one to the next, and each is
	// shortened by a random part of up to a half, so that many clients do not come back at once.
	Base time.Duration
	// Max bounds a pause, one that the server asks for by Retry-After too.
	Max time.Duration
}

// Default bridges a server's restart (about two minutes) without hammering it.
func Default() Policy {
	return Policy{Tries: 8, Base: 500 * time.Millisecond, Max: 60 * time.Second}
}

// Pause is the wait before attempt number attempt+1, counted from 0.
func (p Policy) Pause(attempt int) time.Duration {
	wait := p.Max
	if shift := min(attempt, 30); p.Base<<shift>>shift == p.Base {
		wait = min(p.Base<<shift, p.Max)
	}
	return wait - time.Duration(rand.Int64N(int64(wait/2)+1))
}

// After reads a Retry-After header in its two forms (RFC 9110, section 10.2.3): seconds, or a date.
func After(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.Atoi(value); err == nil && seconds >= 0 {
		return time.Duration(min(seconds, 24*3600)) * time.Second, true
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0), true
	}
	return 0, false
}

// TransientStatus reports whether an HTTP status may be another one the next time.
func TransientStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// Transient reports whether a connection's failure may pass: not a wrong name or certificate, and
// not the end of the caller's own context.
func Transient(err error) bool {
	var timeout net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), // the write of a body whose connection the other side has ended
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	}
	return errors.As(err, &timeout) && timeout.Timeout()
}

// Sleep waits for d or for the end of ctx, whose error it returns.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
