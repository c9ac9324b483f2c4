package registryserver

import (
	"context"
	"net"

	"golang.org/x/time/rate"
)

// burst is how many bytes go out at once: small, so that the connections share the uplink as they
// would share a real one.
const burst = 16 << 10

// newLimiter bounds to perSecond bytes. It lets ten milliseconds be made up for: timers wake late, and
// at 16 KiB alone a fast uplink would lose a fifth of its rate.
func newLimiter(perSecond int64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), int(max(burst, perSecond/100)))
}

// limitedListener bounds what all its connections send together.
type limitedListener struct {
	net.Listener
	ctx     context.Context // ends the waiting: net.Listener has no place for it
	limiter *rate.Limiter
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &limitedConn{conn, l}, nil
}

// limitedConn hides the connection's ReadFrom: sendfile would go past the limit.
type limitedConn struct {
	net.Conn
	listener *limitedListener
}

// Write implements net.Conn.
func (c *limitedConn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(burst, len(p)-done)
		if err := c.listener.limiter.WaitN(c.listener.ctx, n); err != nil {
			return done, err
		}
		n, err := c.Conn.Write(p[done : done+n])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
