package tracker

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// FuzzAnnounce sends bodies to a live handler. Whatever they say, the answer is a reply or a
// refusal, and no lease or peer is out of bounds.
func FuzzAnnounce(f *testing.F) {
	for _, body := range []string{
		`{"node":"a","addr":"127.0.0.1:1","size":8388608,"have":"gAA=","open":[1,2],"stuck":[3],"want":2}`,
		`{"node":"b","addr":"[::1]:1","zone":"z","rack":"r","size":8388608,"complete":true,"epoch":"x"}`,
		`{"node":"a","size":1,"left":true}`,
		`{"node":"a","addr":"1.2.3.4:5","size":1e99}`,
		`[`, ``, `null`,
	} {
		f.Add([]byte(body))
	}
	clock := newClock()
	s, err := New(Config{MaxSwarms: 8, MaxNodes: 8, Now: clock.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	h := s.Handler()
	path := client.SwarmsPath + "/" + keyOf(1, model.Hash{}).String() + "/announce"
	f.Fuzz(func(t *testing.T, body []byte) {
		clock.advance(s.cfg.Lease.Interval)
		s.sweep()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body)))
		switch w.Code {
		case http.StatusOK:
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusServiceUnavailable:
			var doc map[string]string
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc["error"] == "" {
				t.Fatalf("refusal %q", w.Body)
			}
			return
		default:
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
		var sent client.Announce
		var reply client.AnnounceReply
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("a body was taken that is not an announce: %v", err)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &reply); err != nil {
			t.Fatal(err)
		}
		if len(reply.Leases) > max(sent.Want, 0) || len(reply.Peers) > 7 || reply.Holders < 0 || reply.Holders > 7 {
			t.Fatalf("reply %+v to %+v", reply, sent)
		}
		for _, p := range reply.Leases {
			if p < 0 || p >= model.NumPieces(sent.Size) {
				t.Fatalf("lease %d of %d pieces", p, model.NumPieces(sent.Size))
			}
		}
	})
}

// FuzzParseKey checks that a key has one text form.
func FuzzParseKey(f *testing.F) {
	f.Add(keyOf(1, model.Hash{2}).String())
	f.Add("")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := client.ParseKey(s)
		if err == nil && key.String() != s {
			t.Fatalf("key %q comes back as %q", s, key)
		}
	})
}
