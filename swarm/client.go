package swarm

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"
	"golang.org/x/time/rate"
)

// Config says how a Client meets its peers.
type Config struct {
	// Listener accepts the peers, of this zone and of others; the Client closes it. Connections are dialled from its address
	// too, because the library bans by IP: a node that lies must be banned under its own.
	Listener net.Listener
	// ServerTLS and ClientTLS are this node's mTLS sides. Both nil means plain text.
	ServerTLS, ClientTLS *tls.Config
	// Download and Upload limit the blocks that come from peers and go to them, in bytes; nil means no
	// limit. Their burst is at least BlockSize. Wait holds up reads from origins, of n bytes each;
	// nil means not at all.
	Download, Upload *rate.Limiter
	Wait             func(ctx context.Context, n int) error
	// Logger gets the library's warnings; nil means slog.Default.
	Logger *slog.Logger
}

// Client holds the BitTorrent connections of one node, for all of its blobs.
type Client struct {
	log      *slog.Logger
	listener net.Listener
	bt       *torrent.Client
	border   *border
	wait     func(ctx context.Context, n int) error

	mu       sync.Mutex
	sessions map[metainfo.Hash]*Session
}

// New starts a Client that accepts peers at once.
func New(cfg Config) (*Client, error) {
	if cfg.Listener == nil {
		return nil, errors.New("swarm: no listener")
	}
	if (cfg.ServerTLS == nil) != (cfg.ClientTLS == nil) {
		return nil, errors.New("swarm: TLS on one side only")
	}
	for _, l := range []*rate.Limiter{cfg.Download, cfg.Upload} {
		if l != nil && l.Burst() < BlockSize {
			return nil, fmt.Errorf("swarm: a limiter with a burst of %d bytes lets no block of %d through", l.Burst(), BlockSize)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Wait == nil {
		cfg.Wait = func(context.Context, int) error { return nil }
	}
	c := &Client{log: cfg.Logger, listener: cfg.Listener, wait: cfg.Wait, sessions: map[metainfo.Hash]*Session{}}
	bt, err := torrent.NewClient(c.settings(cfg))
	if err != nil {
		return nil, fmt.Errorf("swarm: %w", err)
	}
	c.bt = bt
	listener := cfg.Listener
	if cfg.ServerTLS != nil {
		// The handshake runs on the connection's first read: in the splitter.
		listener = tls.NewListener(listener, cfg.ServerTLS)
	}
	ports := split(listener)
	bt.AddListener(part{ports, ports.bt})
	bt.AddDialer(newDialer(cfg))
	c.border = newBorder(c, part{ports, ports.http}, cfg)
	return c, nil
}

// settings departs from the library's defaults, which are made for the open internet.
func (c *Client) settings(cfg Config) *torrent.ClientConfig {
	s := torrent.NewDefaultClientConfig()
	s.DefaultStorage = noStorage{} // else it opens a database in the working directory
	s.ListenHost = func(string) string { return "" }
	s.DisableTCP, s.DisableUTP, s.NoDHT = true, true, true // only the listener and dialer of ours
	s.DisablePEX, s.DisableTrackers = true, true
	s.DisableWebtorrent, s.DisableWebseeds = true, true
	s.NoDefaultPortForwarding = true
	// Else a peer gets no more than 100 KiB beyond what it gave.
	s.Seed = true
	// Else the listeners stop while no torrent needs anybody. See also Session.wantOne.
	s.AlwaysWantConns = true
	// The library would drop them while it completes a piece, and look for new ones in a state that its own
	// consistency check takes for a reason to panic. See Session.partLoop.
	s.DropMutuallyCompletePeers = false
	// Without the grace, slow blocks are requested twice (5 s were too few where sixty nodes share links of 20 Mbit/s:
	// a fifth came twice); the watchdog covers the stuck ones.
	s.StealRequestGrace = 30 * time.Second
	// Any limit starves the link while hashing lags (1.60 x the bound at 32 MiB).
	s.MaxUnverifiedBytes = 0
	s.MaxAllocPeerRequestDataPerConn = 4 * BlockSize
	s.DialRateLimiter = rate.NewLimiter(100, 100)
	// TLS is below us, or plain text was asked for: a second cipher only costs.
	s.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{RequirePreferred: true}
	if cfg.Download != nil {
		s.DownloadRateLimiter = cfg.Download
	}
	if cfg.Upload != nil {
		s.UploadRateLimiter = cfg.Upload
	}
	s.Slogger = slog.New(warnOnly{cfg.Logger.Handler()})
	s.Callbacks.ReadMessage = c.read
	s.Callbacks.ReadExtendedHandshake = c.met
	s.Callbacks.PeerConnClosed = c.closed
	s.Callbacks.ReceivedUsefulData = append(s.Callbacks.ReceivedUsefulData, c.delivered)
	s.Callbacks.SentRequest = append(s.Callbacks.SentRequest, c.asked)
	s.Callbacks.DeletedRequest = append(s.Callbacks.DeletedRequest, c.ended)
	return s
}

// read sees the peers' messages with the library's lock held, so it only notes them.
func (c *Client) read(from *torrent.PeerConn, m *pp.Message) {
	switch m.Type {
	case pp.Have, pp.Bitfield, pp.HaveAll:
	default:
		return
	}
	s := c.sessionOf(from.Torrent())
	if s == nil {
		return
	}
	switch m.Type {
	case pp.Have:
		s.offers.add(from, int(m.Index.Int()))
	case pp.Bitfield:
		s.offers.addAll(from, m.Bitfield)
	case pp.HaveAll:
		s.offers.addEvery(from)
	}
}

// defaultRequests is how many requests at once a peer takes that does not say (BEP 10, reqq).
const defaultRequests = 250

// met sees under which port the other side of a new connection listens and how many requests it takes, with the
// library's lock held; what it changes in m the library keeps to.
func (c *Client) met(conn *torrent.PeerConn, m *pp.ExtendedHandshakeMessage) {
	s := c.sessionOf(conn.Torrent())
	if s == nil {
		return
	}
	l := &link{window: NewWindow(cmp.Or(m.Reqq, defaultRequests))}
	if m.Port > 0 {
		l.addr = net.JoinHostPort(hostOf(conn.RemoteAddr.String()), strconv.Itoa(m.Port))
	}
	m.Reqq = l.window.Limit()
	s.link(&conn.Peer, l)
}

// closed sees the end of a peer's connection, with the library's lock held.
func (c *Client) closed(conn *torrent.PeerConn) {
	if s := c.sessionOf(conn.Torrent()); s != nil {
		s.offers.gone(conn, time.Now())
		s.trust.gone(&conn.Peer)
		s.unlink(&conn.Peer)
	}
}

// delivered sees the blocks that were asked for and missing, with the library's lock held. Others,
// which a peer may send only to seem alive, do not count.
func (c *Client) delivered(e torrent.ReceivedUsefulDataEvent) {
	if s := c.sessionOf(e.Peer.Torrent()); s != nil {
		now := time.Now()
		s.lastBlock.Store(now.UnixNano())
		s.trust.delivered(e.Peer, e.Peer.RemoteAddr, now)
	}
}

// sessionOf returns nil for a connection that ended before it had said which blob it is about.
func (c *Client) sessionOf(t *torrent.Torrent) *Session {
	if t == nil {
		return nil
	}
	hash := t.InfoHash()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sessions[hash]
}

// Addr is the address that peers dial.
func (c *Client) Addr() string { return c.listener.Addr().String() }

// Moved returns how many bytes came from peers and went to them so far, without those that waited in Wait.
func (c *Client) Moved() (received, sent int64) {
	stats := c.bt.ConnStats()
	return stats.BytesReadData.Int64(), stats.BytesWrittenData.Int64() + c.border.sent.Load()
}

// Close ends all connections. The Sessions must have ended before.
func (c *Client) Close() error {
	err := c.listener.Close()
	return errors.Join(append(c.bt.Close(), err, c.border.close())...)
}

// dialer dials peers over TLS from the node's own address.
type dialer struct {
	net net.Dialer
	tls *tls.Config
}

func newDialer(cfg Config) *dialer {
	d := &dialer{tls: cfg.ClientTLS}
	if a, ok := cfg.Listener.Addr().(*net.TCPAddr); ok && !a.IP.IsUnspecified() {
		d.net.LocalAddr = &net.TCPAddr{IP: a.IP, Zone: a.Zone}
	}
	return d
}

// DialerNetwork implements the library's dialer.T.
func (d *dialer) DialerNetwork() string { return "tcp" }

// Dial implements the library's dialer.T. The peer's role was checked when it returns.
func (d *dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := d.net.DialContext(ctx, "tcp", addr)
	if err != nil || d.tls == nil {
		return conn, err
	}
	secure := tls.Client(conn, d.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with peer %s: %w", addr, err)
	}
	return secure, nil
}

// noStorage refuses torrents that did not come with a storage of their own.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("swarm: torrent without storage")
}

// warnOnly keeps the library's chatter out of the node's log.
type warnOnly struct{ slog.Handler }

func (w warnOnly) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}
