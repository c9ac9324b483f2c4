package swarm

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	"golang.org/x/time/rate"
)

const (
	// maxServed is how many pieces are sent to other zones at a time.
	maxServed = 32
	// borderIdle is how long a connection between zones stays open without a request.
	borderIdle = 30 * time.Second
	// borderDial and borderStall are how long a node of another zone has to accept a connection, and for the
	// answer to begin and each part of a borderPart of it to come: 6 KiB a second at least.
	borderDial  = 3 * time.Second
	borderStall = 10 * time.Second
	borderPart  = 64 << 10
)

// border is what a Client has to do with nodes of other zones. Nodes of one zone trade pieces by BitTorrent,
// which brings everything to everybody. Between zones that would send each piece many times over a link that
// may be thin: there a node asks, on a lease, for one piece, by HTTP on the other node's BitTorrent port, GET
// /v1/swarms/{info hash}/pieces/{number}. The answer has the piece's bytes, or is 404 where the node does not
// hold it.
type border struct {
	client *Client
	server *http.Server
	http   *http.Client
	upload *rate.Limiter // may be nil
	slots  chan struct{}
	ended  chan struct{}
	sent   atomic.Int64  // body bytes
	stall  time.Duration // borderStall
}

func newBorder(c *Client, l net.Listener, cfg Config) *border {
	dialer := newDialer(cfg)
	b := &border{client: c, upload: cfg.Upload, slots: make(chan struct{}, maxServed), ended: make(chan struct{}), stall: borderStall}
	b.http = &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, borderDial)
				defer cancel()
				return dialer.Dial(ctx, addr)
			},
			MaxIdleConns: maxServed, MaxIdleConnsPerHost: fetchers, IdleConnTimeout: borderIdle,
			DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/swarms/{hash}/pieces/{piece}", b.serve)
	b.server = &http.Server{
		Handler: mux, ReadHeaderTimeout: sniffTime, IdleTimeout: 2 * borderIdle, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	go func() {
		defer close(b.ended)
		_ = b.server.Serve(l) // it ends with its listener
	}()
	return b
}

// close ends what is under way.
func (b *border) close() error {
	err := b.server.Close()
	<-b.ended
	b.http.CloseIdleConnections()
	if errors.Is(err, net.ErrClosed) {
		return nil // the listener may have been closed before
	}
	return err
}

// serve answers a node of another zone.
func (b *border) serve(w http.ResponseWriter, r *http.Request) {
	var hash metainfo.Hash
	if raw, err := hex.DecodeString(r.PathValue("hash")); err != nil || copy(hash[:], raw) != len(hash) || len(raw) != len(hash) {
		http.Error(w, "swarm: want the 40 hex digits of its info hash", http.StatusBadRequest)
		return
	}
	b.client.mu.Lock()
	s := b.client.sessions[hash]
	b.client.mu.Unlock()
	i, err := strconv.Atoi(r.PathValue("piece"))
	if s == nil || err != nil || i < 0 || i >= len(s.torrent.Pieces) || !s.pieces.store.Have(i) {
		http.Error(w, "the node does not hold this piece", http.StatusNotFound)
		return
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-r.Context().Done():
		return
	}
	off, n := s.torrent.span(i)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	buf := make([]byte, min(fetchBuffer, n))
	for end := off + n; off < end; {
		part := buf[:min(int64(len(buf)), end-off)]
		if err := b.sendPart(w, r, s, part, off); err != nil {
			b.client.log.Debug("a piece was not sent to another zone", "digest", s.torrent.Digest, "piece", i, "err", err)
			panic(http.ErrAbortHandler) // else the end would look like that of the body
		}
		off += int64(len(part))
	}
}

func (b *border) sendPart(w http.ResponseWriter, r *http.Request, s *Session, part []byte, off int64) error {
	if b.upload != nil {
		if err := b.upload.WaitN(r.Context(), len(part)); err != nil {
			return err
		}
	}
	if _, err := s.pieces.store.ReadAt(part, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	// A reader that takes nothing must not hold its slot for ever.
	if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(3 * borderStall)); err != nil {
		return err
	}
	n, err := w.Write(part)
	s.exported.Add(int64(n))
	b.sent.Add(int64(n))
	return err
}

// farNode is a node of another zone as an Origin of whole pieces.
type farNode struct {
	session *Session
	addr    string
}

// Range implements Origin.
func (f farNode) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	border := f.session.client.border
	ctx, cancel := context.WithCancelCause(ctx)
	pace := &paced{cancel: cancel, stall: border.stall, left: border.stall, timer: time.AfterFunc(border.stall, func() { cancel(errSlow) })}
	_, length := f.session.torrent.span(0)
	url := fmt.Sprintf("http://%s/v1/swarms/%s/pieces/%d", f.addr, f.session.hash.HexString(), off/length)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, errors.Join(err, pace.Close())
	}
	resp, err := border.http.Do(req) //nolint:bodyclose // paced closes it
	if err != nil {
		return nil, errors.Join(err, pace.Close())
	}
	pace.body = resp.Body
	pace.timer.Stop()
	if resp.StatusCode != http.StatusOK || resp.ContentLength != n {
		return nil, errors.Join(fmt.Errorf("%s answers %s with %d bytes, want %d", url, resp.Status, resp.ContentLength, n), pace.Close())
	}
	return pace, nil
}

// errSlow is why an answer of another zone was given up.
var errSlow = errors.New("the other zone's node sends next to nothing")

// paced is the body of an answer that is given up when a part of it takes too long to come. What the reader waits
// for in between, such as a limit of its own, does not count.
type paced struct {
	body   io.ReadCloser // nil before the answer begins
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
	got    int           // of the present part
	left   time.Duration // for the rest of it
}

// Read implements io.Reader.
func (p *paced) Read(b []byte) (int, error) {
	begin := time.Now()
	p.timer.Reset(p.left)
	n, err := p.body.Read(b)
	p.timer.Stop()
	p.left = max(0, p.left-time.Since(begin))
	if p.got += n; p.got >= borderPart {
		p.got, p.left = 0, p.stall
	}
	return n, err
}

// Close implements io.Closer.
func (p *paced) Close() error {
	p.timer.Stop()
	defer p.cancel(nil)
	if p.body == nil {
		return nil
	}
	return p.body.Close()
}
