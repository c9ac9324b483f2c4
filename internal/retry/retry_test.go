package retry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"
)

func TestPause(t *testing.T) {
	p := Policy{Tries: 5, Base: time.Second, Max: 30 * time.Second}
	for name, tc := range map[string]struct {
		attempt  int
		min, max time.Duration
	}{
		"first":   {0, time.Second / 2, time.Second},
		"fourth":  {3, 4 * time.Second, 8 * time.Second},
		"bounded": {100, 15 * time.Second, 30 * time.Second},
	} {
		for range 100 {
			if got := p.Pause(tc.attempt); got < tc.min || got > tc.max {
				t.Fatalf("%s: %v is not in %v to %v", name, got, tc.min, tc.max)
			}
		}
	}
}

func TestAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"7": 7 * time.Second,
		now.Add(9 * time.Second).Format(http.TimeFormat): 9 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):      0,
		"soon": -1, "": -1, "-5": -1,
	} {
		got, ok := After(value, now)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestTransient(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ECONNREFUSED: true, io.ErrUnexpectedEOF: true, context.Canceled: false,
		x509.UnknownAuthorityError{}: false, errors.New("other"): false,
	} {
		if Transient(fmt.Errorf("get: %w", err)) != want {
			t.Errorf("%v: want %v", err, want)
		}
	}
}
