package test

import (
	"syscall"
	"testing"
)

// TestZones: nodes of two zones read the registry once together, and every byte crosses into a zone once.
// The same with a node killed on the way, less what it had.
func TestZones(t *testing.T) {
	for name, kill := range map[string]bool{"all live": false, "one is killed": true} {
		t.Run(name, func(t *testing.T) {
			r := newRegion(t, 0)
			zones := map[string][]*daemon{}
			for _, z := range []string{"a", "a", "b", "b", "b"} {
				zones[z] = append(zones[z], r.addNode("--zone", z))
			}
			dir, files := makeModel(t)
			image := r.push(dir, "v1")
			total := imageSize(image)
			allowed := total + total/20
			if kill {
				h := r.hold(image)
				r.desire("v1")
				r.half(image, h, "v1", r.nodes...)
				victim := zones["a"][0]
				zones["a"] = zones["a"][1:]
				allowed += total / 4
				victim.end(syscall.SIGKILL)
				h.release()
			} else {
				r.desire("v1")
			}
			for z, nodes := range zones {
				r.ready(image, files, nodes...)
				var into, imported int64
				for _, n := range nodes {
					r.settled(n, "v1")
					into += n.metric("shoal_peer_origin_bytes_total")
					imported += n.metric("shoal_peer_imported_bytes_total")
				}
				t.Logf("zone %s: %.3f copies came in, %.3f from the other zone", z, float64(into+imported)/float64(total), float64(imported)/float64(total))
				if imported == 0 || into+imported > allowed {
					t.Errorf("zone %s: %d bytes from the origin and %d from the other zone, of %d", z, into, imported, total)
				}
			}
			var sent int64
			for _, l := range image.Layers {
				sent += r.upstream.Sent(l.Digest)
			}
			if sent > total*102/100 {
				t.Errorf("the registry sent %d bytes of %d", sent, total)
			}
		})
	}
}
