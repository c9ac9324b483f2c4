package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// gossiping returns the flags of a node that gossips on its own address and wants tag.
func (r *region) gossiping(tag string) []string {
	r.t.Helper()
	keys := filepath.Join(r.dir, "gossip.keys")
	if _, err := os.Stat(keys); err != nil {
		writeFile(r.t, keys, []byte(succeed(r.t, "certs", "gossip-key")))
	}
	flags := []string{
		"--gossip", fmt.Sprintf("127.0.0.%d:0", len(r.nodes)+2), "--gossip-keys", keys, "--model", tag + "=" + r.reference(tag),
	}
	if len(r.nodes) > 0 {
		flags = append(flags, "--join", r.nodes[0].also["gossip"])
	}
	return flags
}

func TestTrackerNeverStarted(t *testing.T) {
	r := newBareRegion(t)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	for range 8 {
		r.addNode(r.gossiping("v1")...)
	}
	r.ready(image, files, r.nodes...)
	total := imageSize(image)
	sent := r.mirror.metric("shoal_mirror_sent_bytes_total")
	t.Logf("the mirror sent %.3f copies to 8 nodes", float64(sent)/float64(total))
	if sent > total*120/100 {
		t.Errorf("the mirror sent %d bytes of %d", sent, total)
	}
	for _, l := range image.Layers {
		if sent := r.upstream.Sent(l.Digest); sent != l.Size {
			t.Errorf("the registry sent %d bytes of layer %s, it has %d", sent, l.Digest, l.Size)
		}
	}
}

// Each node has one shard of the model on its disk, and nobody has the whole: neither mirror nor
// registry is alive when they find each other.
func TestNoOriginLeft(t *testing.T) {
	r := newBareRegion(t)
	dir, files := makeModel(t)
	files["d.safetensors"] = append([]byte("d"), files["a.safetensors"]...)
	writeFile(t, filepath.Join(dir, "d.safetensors"), files["d.safetensors"])
	image := r.push(dir, "v1")
	var small int64 // layers that every node may fetch
	large := map[string]bool{}
	for _, l := range image.Layers {
		if l.Size < 16<<20 {
			small += l.Size
			continue
		}
		large[l.Digest.String()] = true
	}
	r.upstream.set(func(req *http.Request) registryserver.Fault {
		if large[filepath.Base(req.URL.Path)] {
			return registryserver.Fault{Status: http.StatusServiceUnavailable}
		}
		return registryserver.Fault{}
	})
	alone := []string{"--layers", "8", "--model", "v1=" + r.reference("v1")} // no layer waits for those that do not come
	for _, shard := range []string{"a", "b", "c", "d"} {
		own := filepath.Join(r.dir, "own-"+shard)
		writeFile(t, filepath.Join(own, shard+".safetensors"), files[shard+".safetensors"])
		r.addNode(append(alone, "--adopt", own)...)
	}
	for i, n := range r.nodes {
		shard := files[string(rune('a'+i))+".safetensors"]
		r.until(n.name+" holds its shard", func() bool {
			models := n.status().Models
			return len(models) == 1 && models[0].Bytes >= int64(len(shard))+small
		})
		if _, err := os.Stat(n.tree(image)); err == nil {
			t.Fatalf("%s has the whole model: the test shows nothing", n.name)
		}
	}
	r.mirror.end(syscall.SIGKILL)
	r.upstream.set(func(*http.Request) registryserver.Fault {
		return registryserver.Fault{Status: http.StatusServiceUnavailable}
	})
	nodes := r.nodes
	r.nodes = nil
	for _, n := range nodes {
		n.end(syscall.SIGKILL)
		n.start(r.gossiping("v1")...)
		r.nodes = append(r.nodes, n)
	}
	r.ready(image, files, r.nodes...)
	for _, n := range r.nodes {
		for _, m := range n.status().Models {
			if m.OriginBytes != 0 {
				t.Errorf("%s fetched %d bytes from an origin; all are dead", n.name, m.OriginBytes)
			}
		}
	}
}

// Gossip that reaches nobody must not be in the way of a tracker.
func TestGossipBlocked(t *testing.T) {
	r := newRegion(t, 0)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	for range 3 {
		// Nothing listens at the address to join, as behind a firewall that refuses.
		flags := r.gossiping("v1")
		if at := len(flags) - 2; flags[at] == "--join" {
			flags = flags[:at]
		}
		r.addNode(append(flags, "--join", "127.0.0.250:1")...)
	}
	r.desire("v1")
	r.ready(image, files, r.nodes...)
	if sent, total := r.mirror.metric("shoal_mirror_sent_bytes_total"), imageSize(image); sent > total*102/100 {
		t.Errorf("the mirror sent %d bytes of %d", sent, total)
	}
	for _, n := range r.nodes {
		if members := n.metric("shoal_gossip_members"); members != 1 {
			t.Errorf("%s gossips with %d members: the test shows nothing", n.name, members)
		}
	}
}

// A tracker that comes up later is used, and one that dies is replaced by gossip.
func TestTrackerComesAndGoes(t *testing.T) {
	r := newRegion(t, 0)
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	h := r.hold(image)
	r.tracker.end(syscall.SIGKILL)
	for range 3 {
		r.addNode(r.gossiping("v1")...)
	}
	for _, n := range r.nodes {
		r.until(n.name+" goes on without the tracker", func() bool {
			models := n.status().Models
			return len(models) == 1 && models[0].Bytes > 0
		})
	}
	r.tracker.start()
	r.until("the nodes announce to the tracker", func() bool {
		swarms, err := r.control.Swarms(t.Context())
		if err != nil {
			return false
		}
		for _, s := range swarms {
			if s.Nodes == len(r.nodes) && strings.HasPrefix(s.Key, h.layer.Digest.Encoded()) {
				return true
			}
		}
		return false
	})
	r.tracker.end(syscall.SIGKILL)
	h.release()
	r.ready(image, files, r.nodes...)
	if sent, total := r.mirror.metric("shoal_mirror_sent_bytes_total"), imageSize(image); sent > total*120/100 {
		t.Errorf("the mirror sent %d bytes of %d", sent, total)
	}
}
