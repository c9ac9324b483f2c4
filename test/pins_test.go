package test

import (
	"path/filepath"
	"testing"
)

// TestMirrorKeepsDesired: a mirror that is told of the tracker keeps the blobs of what nodes should hold, and of
// nothing else.
func TestMirrorKeepsDesired(t *testing.T) {
	r := newRegion(t, 0)
	m := &daemon{r: r, name: "keeping mirror", what: "mirror", addr: "127.0.0.1:0"}
	m.args = []string{
		"mirror", "--certs", filepath.Join(r.dir, "certs", "mirror"), "--tracker", "https://" + r.tracker.addr,
		"--dir", filepath.Join(r.dir, "keeping"), "--upstream", r.upstream.host + "=http://" + r.upstream.host,
	}
	m.start()
	dir, _ := makeModel(t)
	image := r.push(dir, "v1")
	const pinned = "shoal_mirror_pinned_blobs"
	r.desire("v1")
	r.until("the desired model's layers are pinned", func() bool { return m.metric(pinned) >= int64(len(image.Layers)) })
	r.desire()
	r.until("nothing is pinned", func() bool { return m.metric(pinned) == 0 })
}
