package swarm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/tracker/lease"
)

// TestZonesImportEachPieceOnce: cold nodes in two zones read the origin once together, and each zone has
// from the other what it did not lease itself.
func TestZonesImportEachPieceOnce(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%t", secure), func(t *testing.T) {
			s := newSwarm(t, testSize)
			if secure {
				s.ca = t.TempDir()
				if err := certs.CreateCA(s.ca); err != nil {
					t.Fatal(err)
				}
			}
			for _, s.zone = range []string{"a", "a", "b", "b", "b"} {
				s.start(none)
			}
			s.wait(s.nodes...)
			defer s.close()
			total := int64(len(s.blob.bytes))
			var origin, imported, exported int64
			into := map[string]int64{}
			for i, n := range s.nodes {
				st := n.session.Stats()
				zone := "a"
				if i >= 2 {
					zone = "b"
				}
				into[zone] += st.Origin + st.Imported
				origin += st.Origin
				imported += st.Imported
				exported += n.client.border.sent.Load()
				if st.Wasted > total/20 {
					t.Errorf("%s: %+v", n.name, st)
				}
			}
			if origin > total+total/50 || imported == 0 || imported != exported {
				t.Errorf("%d bytes from the origin and %d imported, %d exported, of %d", origin, imported, exported, total)
			}
			for zone, n := range into {
				if n < total || n > total+total/20 {
					t.Errorf("%d bytes came into zone %s, of %d", n, zone, total)
				}
			}
		})
	}
}

// TestBadSources: whatever a node of another zone does, the piece comes from the origin, and the node is
// doubted.
func TestBadSources(t *testing.T) {
	s := newSwarm(t, 3<<20)
	piece := s.blob.bytes[:1<<19]
	stopped := make(chan struct{})
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stopped:
		}
	}
	tests := map[string]http.HandlerFunc{
		"lies": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte{1}, len(piece))) },
		"has it not": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no", http.StatusNotFound)
		},
		"sends too much": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2*len(piece))) },
		"sends too little": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(piece)))
			_, _ = w.Write(piece[:1000])
		},
		"says no length": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(piece)
		},
		"sends elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) },
		"never answers":   hang,
		"stops": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(piece)))
			_, _ = w.Write(piece[:borderPart+1000])
			w.(http.Flusher).Flush()
			hang(w, r)
		},
	}
	for name, handler := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSwarm(t, 3<<20)
			server := httptest.NewServer(handler)
			defer server.Close()
			s.board.addrs["bad"] = strings.TrimPrefix(server.URL, "http://")
			s.board.table.Report("bad", "far", lease.FullBitmap(len(s.blob.torrent.Pieces)), nil, nil, time.Now())
			s.zone = "near"
			s.stall = 50 * time.Millisecond
			n := s.start(none)
			s.wait(n)
			defer s.close()
			if doubts := n.session.sources.doubts(time.Now()); !slices.Equal(doubts, []string{"bad"}) {
				t.Errorf("doubts %v", doubts)
			}
			if sent := s.origin.sent.Load(); sent != int64(len(s.blob.bytes)) {
				t.Errorf("the origin sent %d bytes of %d", sent, len(s.blob.bytes))
			}
		})
	}
	close(stopped)
	t.Run("is not there", func(t *testing.T) {
		s.board.addrs["bad"] = "127.0.0.1:1"
		s.board.table.Report("bad", "far", lease.FullBitmap(len(s.blob.torrent.Pieces)), nil, nil, time.Now())
		s.zone = "near"
		n := s.start(none)
		s.wait(n)
		s.close()
	})
}

// TestSources: after three that give nothing no other is asked for a while; a liar was reached.
func TestSources(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var s sources
	for i := range farLost {
		if s.unreachable(now) {
			t.Fatalf("given up after %d", i)
		}
		s.failed(fmt.Sprint("n", i), false, now)
		s.failed("liar", true, now)
	}
	if !s.unreachable(now) || s.unreachable(now.Add(sourceRest)) {
		t.Error("other zones are not given up, or for ever")
	}
	if got := s.doubts(now.Add(sourceRest)); !slices.Equal(got, []string{"liar", "n0", "n1", "n2"}) {
		t.Errorf("doubts %v", got)
	}
	if got := s.doubts(now.Add(sourceRest + 1)); !slices.Equal(got, []string{"liar"}) {
		t.Errorf("later: doubts %v", got)
	}
	for range 2 * farLost {
		s.failed("n", false, now.Add(time.Minute))
		s.gave()
	}
	if s.unreachable(now.Add(time.Minute)) {
		t.Error("given up, though some deliver")
	}
}

// TestBorderRefuses asks a node for what it does not give.
func TestBorderRefuses(t *testing.T) {
	s := newSwarm(t, testSize)
	down := errors.New("the origin is down: the node keeps to its one piece")
	s.origin.err.Store(&down)
	n := s.start(func(i int) bool { return i == 2 })
	defer s.close()
	hash := n.session.hash.HexString()
	base := "http://" + n.client.Addr() + "/v1/swarms/"
	length := len(s.blob.bytes) / len(s.blob.torrent.Pieces)
	for path, want := range map[string]int{
		hash + "/pieces/2":                        http.StatusOK,
		hash + "/pieces/1":                        http.StatusNotFound,
		hash + "/pieces/-1":                       http.StatusNotFound,
		hash + "/pieces/99999999999999999999":     http.StatusNotFound,
		hash + "/pieces/x":                        http.StatusNotFound,
		strings.Repeat("00", 20) + "/pieces/2":    http.StatusNotFound,
		hash[:38] + "/pieces/2":                   http.StatusBadRequest,
		hash + "00/pieces/2":                      http.StatusBadRequest,
		strings.Repeat("zz", 20) + "/pieces/2":    http.StatusBadRequest,
		hash + "/pieces/2/more":                   http.StatusNotFound,
		strings.Repeat("a", 20<<10) + "/pieces/2": http.StatusRequestHeaderFieldsTooLarge,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if want == http.StatusRequestHeaderFieldsTooLarge {
			err = nil // the server hangs up on what it has not read
		}
		if err != nil || resp.StatusCode != want {
			t.Errorf("%.80s: %s, %v, want %d", path, resp.Status, err, want)
		}
		if off, size := n.session.torrent.span(2); want == http.StatusOK && !bytes.Equal(body, s.blob.bytes[off:off+size]) {
			t.Errorf("%s: %d bytes, or wrong ones; a piece has about %d", path, len(body), length)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestSplitter: a connection that says nothing holds up no other, and each goes where it belongs.
func TestSplitter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := split(l)
	dial := func(greeting string) net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := io.WriteString(conn, greeting); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	silent := dial("")
	greeting := string(rune(btGreeting)) + "BitTorrent protocol"
	dial(greeting)
	dial("GET / HTTP/1.1\r\n")
	for want, p := range map[string]part{greeting: {s, s.bt}, "GET / HTTP/1.1\r\n": {s, s.http}} {
		conn, err := p.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		_ = conn.Close()
	}
	_ = silent.Close()
	if err := (part{s, s.bt}).Close(); err != nil {
		t.Error(err)
	}
	for _, p := range []part{{s, s.bt}, {s, s.http}} {
		if _, err := p.Accept(); err == nil {
			t.Error("accepts after Close")
		}
	}
}
