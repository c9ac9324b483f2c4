package registry

import (
	"net/http"
	"time"

	"github.com/shoal-project/shoal/internal/retry"
)

// Retry says how often and how patiently a request is tried again.
type Retry = retry.Policy

// DefaultRetry bridges a registry's restart (about two minutes) without hammering it.
func DefaultRetry() Retry { return retry.Default() }

// pause is the wait after resp before attempt number attempt+1, counted from 0.
func pause(limits Retry, attempt int, resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		if asked, ok := retry.After(resp.Header.Get("Retry-After"), now); ok {
			return min(asked, limits.Max)
		}
	}
	return limits.Pause(attempt)
}

// retryPolicy makes a Retry into the policy of oras-go's retry.Transport.
type retryPolicy struct{ limits Retry }

// Retry implements oras-go's retry.Policy; a negative duration ends the tries.
func (p retryPolicy) Retry(attempt int, resp *http.Response, err error) (time.Duration, error) {
	if attempt+1 >= p.limits.Tries {
		return -1, nil
	}
	if err != nil {
		if !retry.Transient(err) {
			return -1, nil
		}
		return p.limits.Pause(attempt), nil
	}
	if !retry.TransientStatus(resp.StatusCode) {
		return -1, nil
	}
	return pause(p.limits, attempt, resp, time.Now()), nil
}
