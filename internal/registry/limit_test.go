package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"

	"golang.org/x/time/rate"
)

// never is a rate at which nothing is refilled during a test: what is gone from the burst was read.
const never = rate.Limit(1e-9)

func TestLimiterCountsBlobs(t *testing.T) {
	blob, desc := blobOf(10_000)
	limiter := rate.NewLimiter(never, 25_000)
	repo := serve(t, newApp(t), func(c *Config) { c.Limiter = limiter })
	if err := repo.Push(t.Context(), desc, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	other := *repo // shares the limiter
	for _, tc := range []struct {
		repo         *Repository
		off, n, left int64
	}{
		{repo, 0, 10_000, 15_000},
		{repo, 4_000, 1_000, 14_000},
		{&other, 0, 10_000, 4_000},
	} {
		body, err := tc.repo.OpenRange(t.Context(), desc, tc.off, tc.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		body.Close()
		if err != nil || !bytes.Equal(got, blob[tc.off:tc.off+tc.n]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if left := int64(limiter.Tokens()); left != tc.left {
			t.Errorf("%d bytes are left, want %d", left, tc.left)
		}
	}
}

// A read that waits for the limiter ends with its context, and the watchdog does not take the wait for a stall.
func TestLimiterHoldsUp(t *testing.T) {
	blob, desc := blobOf(10_000)
	var asked int
	app := newApp(t)
	limiter := rate.NewLimiter(never, 4_000)
	repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			asked++
		}
		app.ServeHTTP(w, r)
	}), func(c *Config) { c.Limiter = limiter })
	if err := repo.Push(t.Context(), desc, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	body, err := repo.OpenRange(ctx, desc, 100, 9_000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if n, err := io.ReadFull(body, make([]byte, 4_000)); n != 4_000 || err != nil {
		t.Fatalf("the burst: %d bytes, %v", n, err)
	}
	done := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, body)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}
