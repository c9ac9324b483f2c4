package test

import (
	"path/filepath"
	"syscall"
	"testing"
)

// TestTwoMirrors: two mirrors share the work, so that the registry is still read once; when one dies, the
// other takes its share on.
func TestTwoMirrors(t *testing.T) {
	r := newRegion(t, 0)
	other := &daemon{r: r, name: "other mirror", what: "mirror", addr: "127.0.0.1:0"}
	other.args = []string{
		"mirror", "--certs", filepath.Join(r.dir, "certs", "mirror"),
		"--dir", filepath.Join(r.dir, "other"), "--upstream", r.upstream.host + "=http://" + r.upstream.host,
	}
	other.start()
	for range 3 {
		r.addNode("--mirror", "https://"+other.addr)
	}
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	r.desire("v1")
	r.ready(image, files, r.nodes...)
	const read = "shoal_mirror_upstream_bytes_total"
	a, b := r.mirror.metric(read), other.metric(read)
	t.Logf("%d bytes of %d by one mirror, %d by the other", a, imageSize(image), b)
	for _, layer := range image.Layers {
		if sent := r.upstream.Sent(layer.Digest); sent != layer.Size {
			t.Errorf("the registry sent %d of the %d bytes of %s", sent, layer.Size, layer.Digest)
		}
	}

	dir, files = makeModelOf(t, 1)
	image = r.push(dir, "v2")
	h := r.hold(image)
	r.desire("v1", "v2")
	var filling *daemon
	r.until("a mirror fills the layer that is held up", func() bool {
		for _, m := range []*daemon{r.mirror, other} {
			if m.metric("shoal_mirror_fills_running") > 0 && r.upstream.Sent(h.layer.Digest) > 0 {
				filling = m
			}
		}
		return filling != nil
	})
	filling.end(syscall.SIGKILL)
	h.release()
	r.ready(image, files, r.nodes...)
}
