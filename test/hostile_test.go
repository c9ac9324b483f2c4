package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// maxAnonymous is what a node may take for itself beside a hostile peer, in bytes.
const maxAnonymous = 250 << 20

// anonymous is the process's anonymous memory in bytes (proc_pid_status(5), RssAnon).
func (d *daemon) anonymous() int64 {
	d.r.t.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), "status"))
	if err != nil {
		d.r.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				d.r.t.Fatal(err)
			}
			return n << 10
		}
	}
	d.r.t.Fatal("no RssAnon")
	return 0
}

// TestHostilePeers brings model after model to three nodes, the first one without and each other one
// with a hostile peer that announces all of it.
func TestHostilePeers(t *testing.T) {
	r := newRegion(t, 3, func(c *registryserver.Config) { c.UplinkBytesPerSecond = 12 << 20 })
	var clean time.Duration
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
			if got := n.anonymous(); got > maxAnonymous {
				t.Errorf("%s takes %d MiB of anonymous memory", n.name, got>>20)
			}
		}
		return took
	}
	clean = carry(t, 0, func(*model.Image, string) {})
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
			// A liar is banned by each node after a few pieces.
			if sent := e.sent.Load(); sent > 24<<20 {
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
