package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dial returns a Client of a server that answers with h; what the tracker itself answers is tested
// in package tracker.
func dial(t *testing.T, h http.HandlerFunc, timeout time.Duration) *Client {
	t.Helper()
	web := httptest.NewServer(h)
	t.Cleanup(web.Close)
	c, err := New(Config{URL: web.URL + "/", Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestNew(t *testing.T) {
	tests := []struct {
		url  string
		tls  *tls.Config
		want string // in the error; empty for success
	}{
		{"http://tracker:7070", nil, ""},
		{"https://tracker:7070/base/", &tls.Config{MinVersion: tls.VersionTLS13}, ""},
		{"https://tracker:7070", nil, "http without"},
		{"http://tracker:7070", &tls.Config{MinVersion: tls.VersionTLS13}, "https with certificates"},
		{"tracker:7070", nil, "want http://HOST:PORT"},
		{"", nil, "want http://HOST:PORT"},
		{"http://%", nil, "tracker address"},
	}
	for _, tt := range tests {
		_, err := New(Config{URL: tt.url, TLS: tt.tls})
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%q): error %v, want %q", tt.url, err, tt.want)
		}
	}
}

func TestOddAnswers(t *testing.T) {
	key := Key{Digest: "sha256:0000000000000000000000000000000000000000000000000000000000000000"}
	tests := []struct {
		name   string
		answer http.HandlerFunc
		call   func(context.Context, *Client) error
		want   string
	}{
		{
			"a refusal of ours", func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusForbidden)
				_, _ = io.WriteString(w, `{"error":"not you"}`)
			}, announce(key), "tracker answers 403: not you",
		},
		{
			"a proxy's refusal", func(w http.ResponseWriter, _ *http.Request) {
				http.Error(w, "bad gateway", http.StatusBadGateway)
			}, announce(key), "tracker answers 502: bad gateway",
		},
		{
			"a page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
			announce(key), "answer:",
		},
		{
			"no content", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
			announce(key), "without content",
		},
		{
			"endless hashes", func(w http.ResponseWriter, _ *http.Request) {
				chunk := make([]byte, 1<<20)
				for range MaxHashLayer>>20 + 1 {
					if _, err := w.Write(chunk); err != nil {
						return
					}
				}
			}, hashes(key), "longer than",
		},
		{
			"hashes of something else", func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(make([]byte, 32))
			}, hashes(Key{Digest: key.Digest, Root: model.Hash{1}}), "does not match",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.call(t.Context(), dial(t, tt.answer, 0))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func announce(key Key) func(context.Context, *Client) error {
	return func(ctx context.Context, c *Client) error {
		_, err := c.Announce(ctx, key, Announce{})
		return err
	}
}

func hashes(key Key) func(context.Context, *Client) error {
	return func(ctx context.Context, c *Client) error {
		_, err := c.Hashes(ctx, key, 1)
		return err
	}
}

// TestClosedConnection: a tracker that restarts closes connections. Reads are tried again, an
// announce is not, since it may have been taken.
func TestClosedConnection(t *testing.T) {
	var calls atomic.Int32
	hangUpOnce := func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "[]")
	}
	if _, err := dial(t, hangUpOnce, 0).Swarms(t.Context()); err != nil || calls.Load() != 2 {
		t.Fatalf("error %v after %d calls, want success with the second", err, calls.Load())
	}
	calls.Store(0)
	if err := announce(Key{})(t.Context(), dial(t, hangUpOnce, 0)); err == nil || calls.Load() != 1 {
		t.Fatalf("error %v after %d calls, want one call that fails", err, calls.Load())
	}
}

func TestTimeout(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	_, err := dial(t, hang, 10*time.Millisecond).Progress(t.Context())
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want the deadline", err)
	}
}

// TestEpoch: a Client tells each tracker which one it heard last.
func TestEpoch(t *testing.T) {
	var told []string
	answers := []string{`{"epoch":"one"}`, `{"epoch":"two"}`, `{}`, `{"epoch":"two"}`}
	c := dial(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, epoch, _ := strings.Cut(string(body), `"epoch":`)
		told = append(told, strings.Trim(epoch, `"}`))
		_, _ = io.WriteString(w, answers[len(told)-1])
	}, 0)
	for range answers {
		if err := announce(Key{})(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Join(told, ","); got != ",one,two,two" || c.Epoch() != "two" {
		t.Fatalf("told %q, then %q", got, c.Epoch())
	}
}
