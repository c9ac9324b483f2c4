// Package utp stands in for github.com/anacrolix/go-utp, which anacrolix/torrent imports for the
// uTP transport (BEP 29). Shoal speaks TCP only: inside a datacentre uTP gives way to every other
// flow, and it cannot carry our TLS. The real module is C++ bound by cgo; leaving it out keeps the
// build pure Go. Every constructor returns ErrDisabled, and swarm sets DisableUTP besides.
package utp

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// ErrDisabled is what every constructor returns.
var ErrDisabled = errors.New("utp: not built in, Shoal uses TCP only")

// Default names this implementation in the library's messages.
const Default = "disabled"

// FirewallCallback decides whether an incoming packet from addr is dropped.
type FirewallCallback func(addr net.Addr) bool

// Option changes a socket under construction.
type Option func()

// Socket is what the library expects of a uTP socket.
type Socket interface {
	net.PacketConn
	Accept() (net.Conn, error)
	Addr() net.Addr
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	SetFirewallCallback(f FirewallCallback)
}

// WithLogger is accepted and ignored.
func WithLogger(*slog.Logger) Option { return func() {} }

// NewSocket always fails with ErrDisabled.
func NewSocket(string, string, ...Option) (Socket, error) { return nil, ErrDisabled }

// NewSocketFromPacketConn always fails with ErrDisabled.
func NewSocketFromPacketConn(net.PacketConn, ...Option) (Socket, error) { return nil, ErrDisabled }
