package tracker

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// FuzzAnnounce sends bodies to a live handler. Whatever they say, the answer is a reply or a
// refusal, and no lease or peer is out of bounds.
func FuzzAnnounce(f *testing.F) {
	for _, body := range []string{
		`{"node":"a","addr":"127.0.0.1:1","size":8388608,"have":"gAA=","open":[1,2],"stuck":[3],"doubts":["b"],"want":2,"wantImports":1}`,
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
		if len(reply.Leases) > max(sent.Want, 0)+max(sent.WantImports, 0) || len(reply.Peers) > 7 || reply.Holders < 0 || reply.Holders > 7 {
			t.Fatalf("reply %+v to %+v", reply, sent)
		}
		for _, p := range pieces(reply.Leases) {
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

// FuzzDesired sends desired sets and progress reports to a live handler. What is taken comes back.
func FuzzDesired(f *testing.F) {
	for _, body := range []string{
		`{"models":[{"name":"m","reference":"r/m:1","nodes":["a","b","a"],"priority":3,"tier":"Memory"}]}`,
		`{"models":[{"name":"m","reference":"r/m:1"},{"name":"m","reference":"r/m:2"}]}`,
		`{"node":"a","models":[{"name":"m","reference":"r/m:1","state":"Ready","bytes":-1}]}`,
		`{"models":[]}`, `{"models":null}`, `{}`, `null`, ``, `[`,
	} {
		f.Add([]byte(body))
	}
	s, err := New(Config{Now: newClock().Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	h := s.Handler()
	ask := func(t *testing.T, method, path string, body []byte) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(body)))
		if w.Code >= http.StatusInternalServerError {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		return w
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ask(t, http.MethodPost, client.ProgressPath, body)
		ask(t, http.MethodGet, client.ProgressPath, nil)
		if ask(t, http.MethodPut, client.DesiredPath, body).Code != http.StatusNoContent {
			return
		}
		var sent client.Desired
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("a body was taken that is no desired set: %v", err)
		}
		var whole client.DesiredReply
		if err := json.Unmarshal(ask(t, http.MethodGet, client.DesiredPath, nil).Body.Bytes(), &whole); err != nil {
			t.Fatal(err)
		}
		if len(whole.Models) != len(sent.Models) {
			t.Fatalf("%d models came back as %d", len(sent.Models), len(whole.Models))
		}
		for _, m := range whole.Models {
			for _, node := range m.Nodes {
				ask(t, http.MethodGet, client.DesiredPath+"?node="+url.QueryEscape(node), nil)
			}
		}
	})
}
