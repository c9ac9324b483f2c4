package swarm

import (
	"errors"
	"io"
	"net"
	"time"
)

const (
	// sniffTime is how long a connection has to say which protocol it speaks; TLS's handshake counts.
	sniffTime = 5 * time.Second
	// maxSniffs is how many connections may be in that state.
	maxSniffs = 256
	// btGreeting is the first byte of BitTorrent's handshake, the length of its protocol's name (BEP 3).
	btGreeting = 19
)

// splitter shares the connections of one listener out by what they begin with: BitTorrent's handshake, or
// anything else, which is taken for HTTP. Closing any part closes all.
type splitter struct {
	net.Listener
	bt, http chan net.Conn
	ended    chan struct{}
	err      error // of the listener; read after ended
}

func split(l net.Listener) *splitter {
	s := &splitter{Listener: l, bt: make(chan net.Conn), http: make(chan net.Conn), ended: make(chan struct{})}
	go s.run()
	return s
}

func (s *splitter) run() {
	slots := make(chan struct{}, maxSniffs)
	wait := 5 * time.Millisecond
	for {
		conn, err := s.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			s.err = err
			close(s.ended)
			return
		case err != nil: // such as too many open files: others may be closed before long
			time.Sleep(wait)
			wait = min(2*wait, time.Second)
			continue
		}
		wait = 5 * time.Millisecond
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			s.hand(conn)
		}()
	}
}

// hand reads the first byte of conn and passes it on.
func (s *splitter) hand(conn net.Conn) {
	first := make([]byte, 1)
	_ = conn.SetReadDeadline(time.Now().Add(sniffTime))
	if _, err := io.ReadFull(conn, first); err != nil {
		_ = conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	to := s.http
	if first[0] == btGreeting {
		to = s.bt
	}
	select {
	case to <- &sniffed{conn, first}:
	case <-s.ended:
		_ = conn.Close()
	}
}

// sniffed is a connection of which the first bytes were read.
type sniffed struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (c *sniffed) Read(b []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.first)
	c.first = c.first[n:]
	return n, nil
}

// part is one protocol's part of a splitter.
type part struct {
	*splitter
	conns <-chan net.Conn
}

// Accept implements net.Listener.
func (p part) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.ended:
		return nil, p.err
	}
}
