package mirror

import (
	"bytes"
	"net/http"
	"testing"

	"golang.org/x/time/rate"
)

func TestUpstreamLimit(t *testing.T) {
	for perSecond, burst := range map[int64]int{1: bufferSize, 1 << 20: bufferSize, 500 << 20: 10 << 20} {
		if l := (Upstream{BytesPerSecond: perSecond}).limiter(); l.Limit() != rate.Limit(perSecond) || l.Burst() != burst {
			t.Errorf("%d: %v with a burst of %d, want %d", perSecond, l.Limit(), l.Burst(), burst)
		}
	}
	if (Upstream{}).limiter() != nil {
		t.Error("a bound without a rate")
	}

	r := newRig(t, func(c *Config) { c.Upstreams[0].BytesPerSecond = 1 << 30 })
	up := r.mirror.upstreams["reg.example.com"]
	if up.limit == nil || r.mirror.quick["reg.example.com"].limit != up.limit {
		t.Fatal("an upstream has one bound")
	}
	// Each byte of a blob counts once, however its ranges are cut; manifests do not count.
	d, blob := r.push(9*mib + 1)
	r.pushTag("v1", "config")
	up.limit = rate.NewLimiter(1e-9, len(blob)+5)
	if got := r.get(blobPath(d)); got.err != nil || !bytes.Equal(got.body, blob) {
		t.Fatalf("%d, %v", got.status, got.err)
	}
	if got := r.get("/v2/" + repo + "/manifests/v1"); got.status != http.StatusOK {
		t.Fatalf("%d, %v", got.status, got.err)
	}
	if left := int(up.limit.Tokens()); left != 5 {
		t.Errorf("%d bytes are left of the bound, want 5", left)
	}
}
