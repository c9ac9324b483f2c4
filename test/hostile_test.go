package test

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/probe"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// maxAnonymous is what a node may take for itself, beside a hostile peer too, in bytes.
const maxAnonymous = 150 << 20

// TestHostilePeers brings model after model to three nodes, the first one without and each other one
// with a hostile peer that announces all of it.
func TestHostilePeers(t *testing.T) {
	r := newRegion(t, 3, func(c *registryserver.Config) { c.UplinkBytesPerSecond = 12 << 20 })
	carry := func(t *testing.T, i int, begin func(image *model.Image, tag string)) time.Duration {
		dir, files := makeModelOf(t, byte(i))
		tag := fmt.Sprintf("v%d", i)
		image := r.push(dir, tag)
		begin(image, tag)
		began := time.Now()
		r.desire(tag)
		r.ready(image, files, r.nodes...)
		took := time.Since(began)
		for _, n := range r.nodes {
			got, err := probe.Anonymous(n.cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if got > maxAnonymous {
				t.Errorf("%s takes %d MiB of anonymous memory", n.name, got>>20)
			}
		}
		return took
	}
	clean := carry(t, 0, func(*model.Image, string) {})
	for i, c := range []struct {
		name string
		dial bool
		harm func(*evil, *evilConn)
	}{
		{"garbage", false, garbage},
		{"never sends", false, silent},
		{"a byte a second", false, trickle},
		{"hangs up", false, func(*evil, *evilConn) {}},
		{"floods with requests", true, flood},
		{"malformed messages", true, malformed},
		{"blocks nobody asked for", true, unasked},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e *evil
			took := carry(t, i+1, func(image *model.Image, tag string) { e = r.evil(i+1, image, tag, "", c.dial, c.harm) })
			defer e.stop()
			if e.conns.Load() == 0 {
				t.Error("it met nobody: the test shows nothing")
			}
			t.Logf("%.1f s, %.2f x the clean %.1f s; %d connections, %d bytes of blocks sent",
				took.Seconds(), took.Seconds()/clean.Seconds(), clean.Seconds(), e.conns.Load(), e.sent.Load())
			// A liar is banned by each node after its first piece, once a layer where they run side by side.
			if sent := e.sent.Load(); sent > 8<<20 {
				t.Errorf("%d bytes of garbage were taken", sent)
			}
		})
	}
}

// A certificate of another role is no way into the swarm, and what it announced holds nobody up.
func TestWrongRole(t *testing.T) {
	r := newRegion(t, 2)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	e := r.evil(1, image, "v1", "tracker", true, silent)
	r.desire("v1")
	r.ready(image, files, r.nodes...)
	if n := e.conns.Load(); n != 0 {
		t.Errorf("%d connections of a tracker's certificate reached the swarm", n)
	}
}
