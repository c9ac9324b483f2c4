package mirror

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// played is an upstream in virtual time: what one connection carries, and all of them, in bytes a second.
type played struct {
	*streams
	now   time.Time
	noise *rand.Rand
	many  time.Duration // with more than one stream
}

func play(most int) *played {
	p := &played{streams: newStreams(most), now: time.Unix(0, 0), noise: rand.New(rand.NewPCG(1, 2))}
	p.begin(p.now)
	return p
}

func (p *played) run(d time.Duration, each, all float64) {
	const step = 20 * time.Millisecond
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(step)
		n := p.each()
		if n > 1 {
			p.many += step
		}
		rate := min(float64(n)*each, all) * (0.9 + 0.2*p.noise.Float64())
		p.read(int64(rate*step.Seconds()), p.now)
	}
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
		p.end()
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
