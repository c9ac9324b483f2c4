package registryserver

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestLimit shows that two connections together take as long as the uplink says.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond, each = 1 << 20, 4 << 20
		listener := &limitedListener{nil, t.Context(), newLimiter(perSecond)}
		start := time.Now()
		done := make(chan int64, 2)
		for range 2 {
			near, far := net.Pipe()
			go func() {
				defer near.Close()
				n, err := (&limitedConn{near, listener}).Write(make([]byte, each))
				if n != each || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
			}()
			go func() {
				n, _ := io.Copy(io.Discard, far)
				done <- n
			}()
		}
		if sum := <-done + <-done; sum != 2*each {
			t.Errorf("%d bytes came", sum)
		}
		want := 2 * each / perSecond * time.Second
		if took := time.Since(start); took < want-100*time.Millisecond || took > want+100*time.Millisecond {
			t.Errorf("took %v, want %v", took, want)
		}
	})
}
