package mirror

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// played is an upstream in virtual time: what one connection carries, and all of them, in bytes a second.
type played struct {
	*streams
	now   time.Time
	noise *rand.Rand
	many  time.Duration // with more than one stream
	last  time.Duration // of each range
	open  []time.Time   // when the range of each stream ends
}

func play(most int) *played {
	return &played{streams: newStreams(most), now: time.Unix(0, 0), noise: rand.New(rand.NewPCG(1, 2)), last: 300 * time.Millisecond}
}

// run reads for d. As in a fill, streams begin and end with a range.
func (p *played) run(d time.Duration, each, all float64) {
	const step = 20 * time.Millisecond
	if len(p.open) == 0 {
		p.begin(p.now)
		p.open = append(p.open, p.now.Add(p.last))
	}
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(step)
		for i := 0; i < len(p.open); i++ {
			if p.now.Before(p.open[i]) {
				continue
			}
			p.end(p.now)
			if len(p.open) > p.each() {
				p.open = slices.Delete(p.open, i, i+1)
				i--
				continue
			}
			p.begin(p.now)
			p.open[i] = p.now.Add(p.last)
			for len(p.open) < p.each() {
				p.begin(p.now)
				p.open = append(p.open, p.now.Add(p.last))
			}
		}
		if len(p.open) > 1 {
			p.many += step
		}
		rate := min(float64(len(p.open))*each, all) * (0.9 + 0.2*p.noise.Float64())
		p.read(int64(rate*step.Seconds()), p.now)
	}
}

// stop ends all streams.
func (p *played) stop() {
	for range p.open {
		p.end(p.now)
	}
	p.open = nil
}

func TestStreams(t *testing.T) {
	const mb = 1e6
	t.Run("the link is the limit", func(t *testing.T) {
		p := play(4)
		p.run(time.Hour, 100*mb, 25*mb)
		if p.each() != 1 || p.many > 20*time.Second {
			t.Errorf("%d streams, %v of an hour with more than one", p.each(), p.many)
		}
	})
	t.Run("each connection is the limit", func(t *testing.T) {
		p := play(4)
		p.run(6*time.Second, 100*mb, 1000*mb)
		if p.each() != 4 {
			t.Errorf("%d streams", p.each())
		}
		p.many = 0
		p.run(time.Hour, 100*mb, 1000*mb)
		if p.each() != 4 || p.many < time.Hour-time.Second {
			t.Errorf("%d streams after an hour, %v with more than one", p.each(), p.many)
		}
	})
	t.Run("the limit changes", func(t *testing.T) {
		p := play(8)
		p.run(time.Minute, 100*mb, 1000*mb)
		p.run(10*time.Minute, 100*mb, 50*mb)
		if p.each() != 1 {
			t.Errorf("%d streams", p.each())
		}
		p.run(10*time.Minute, 10*mb, 50*mb)
		if p.each() < 4 {
			t.Errorf("%d streams again", p.each())
		}
	})
	t.Run("ranges that take long", func(t *testing.T) {
		p := play(4)
		p.last = 8 * time.Second
		p.run(25*time.Second, mb/2, 1000*mb)
		if p.each() != 4 {
			t.Errorf("%d streams", p.each())
		}
		p.run(time.Hour, mb/2, 1000*mb)
		for p.before > 0 { // a trial is on
			p.run(time.Second, mb/2, 1000*mb)
		}
		if p.each() != 4 {
			t.Errorf("%d streams after an hour", p.each())
		}
	})
	t.Run("one is allowed", func(t *testing.T) {
		p := play(1)
		p.run(time.Minute, 100*mb, 1000*mb)
		if p.each() != 1 {
			t.Errorf("%d streams", p.each())
		}
	})
	t.Run("a trial that nobody saw the end of", func(t *testing.T) {
		p := play(4)
		p.run(firstTrial+window, 100*mb, 1000*mb)
		if p.each() != 2 {
			t.Fatalf("no trial: %d streams", p.each())
		}
		p.stop()
		p.now = p.now.Add(time.Minute)
		p.begin(p.now)
		if p.each() != 1 {
			t.Errorf("%d streams", p.each())
		}
	})
}

// TestInOrder shows that a fill reads a blob from its begin to its end, with few requests.
func TestInOrder(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(64*mib + 1)
	if got := r.get(blobPath(d)); len(got.body) != len(blob) || got.err != nil {
		t.Fatalf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	var next, requests int
	for _, line := range r.asked() {
		_, of, found := strings.Cut(line, " bytes=")
		if !found {
			continue
		}
		var from, to int
		if _, err := fmt.Sscanf(of, "%d-%d", &from, &to); err != nil || from != next {
			t.Errorf("%s: want byte %d next", of, next)
		}
		next = to + 1
		requests++
	}
	if next != len(blob) || requests > 20 {
		t.Errorf("%d requests for %d of %d bytes", requests, next, len(blob))
	}
}

// TestHangs shows that a connection which brings nothing any more does not keep the rest from coming.
func TestHangs(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(32 * mib)
	gate := make(chan struct{})
	r.setFault(func(req *http.Request) registryserver.Fault {
		if strings.HasPrefix(req.Header.Get("Range"), "bytes=0-") {
			return registryserver.Fault{Wait: gate, At: mib}
		}
		return registryserver.Fault{}
	})
	if got := r.get(blobPath(d), "Range", "bytes=31457280-"); !bytes.Equal(got.body, blob[30*mib:]) {
		t.Errorf("behind the range that hangs: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	close(gate)
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("whole: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}
