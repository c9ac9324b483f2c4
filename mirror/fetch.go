package mirror

import (
	"context"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/registry"
)

const (
	// aloneFor and togetherFor are how long a range should take: of the only stream, and of one of several, where
	// the first missing byte may be behind the last one by a range of each, and the nodes, who lease in order, are
	// that much late. Shorter ones cost upstream more requests.
	aloneFor, togetherFor = time.Second, 100 * time.Millisecond
	// maxRange bounds a range, in bytes: others wait for its slot.
	maxRange = 256 << 20
	// growth is how many times the longest one so far a range may be: the first ones tell little of the rate.
	growth = 4
	// quiet is how long a range may bring nothing before the next one begins beside it: a connection that hangs is given
	// up much later.
	quiet = 3 * time.Second
	// roundTrips is how many answers' times before its predecessor's end a range is asked for, at least minLead.
	roundTrips, minLead = 4, 20 * time.Millisecond
)

// fetching reads one blob from upstream by streams: chains of ranges, of which each is asked for shortly
// before the one before it ends.
type fetching struct {
	mirror *Mirror
	fill   *fill
	up     *upstream
	repo   *registry.Repository
	desc   ocispec.Descriptor
	ranges bool // upstream has them
	group  *errgroup.Group

	mu      sync.Mutex
	running int // ranges
	streams int
	longest int64         // range so far
	rate    float64       // of a stream, bytes a second
	answer  time.Duration // the shortest from a request to its answer: others waited in queues
}

// fetch reads the bytes that the fill's plan lacks.
func (m *Mirror) fetch(ctx context.Context, f *fill, info blobInfo) error {
	up := m.upstreams[f.source.Upstream]
	repo, err := up.repository(f.source.Repository)
	if err != nil {
		return err
	}
	r := &fetching{
		mirror: m, fill: f, up: up, repo: repo, ranges: info.ranges, streams: 1,
		desc: ocispec.Descriptor{MediaType: "application/octet-stream", Digest: f.digest, Size: info.size},
	}
	r.group, ctx = errgroup.WithContext(ctx)
	r.group.Go(func() error { return r.next(ctx) })
	return r.group.Wait()
}

// next fetches the next range, if one is left.
func (r *fetching) next(ctx context.Context) error {
	if !r.fill.left() { // it must not wait for a slot to find that out
		return nil
	}
	select {
	case r.up.slots <- struct{}{}:
		defer func() { <-r.up.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	length := r.length()
	s := r.fill.take(r.ranges, length) // only now: what is wanted most may have changed while we waited
	if s == nil {
		return nil
	}
	defer r.fill.finish(s)
	r.begin()
	defer r.end()
	return r.read(ctx, s, length)
}

func (r *fetching) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running++
	if r.ranges {
		r.up.streams.begin(time.Now())
	}
}

func (r *fetching) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	if r.ranges {
		r.up.streams.end(time.Now())
	}
}

// read fetches one range, which should have had the given length.
func (r *fetching) read(ctx context.Context, s *span, length int64) error {
	asked := time.Now()
	body, err := r.repo.OpenRange(ctx, r.desc, s.start, s.end-s.start)
	if err != nil {
		return blame(r.fill.source, err)
	}
	defer body.Close()
	lead := min(r.lead(time.Since(asked)), (s.end-s.start)/2)
	var followed bool // guarded by r.mu
	hung := time.AfterFunc(quiet, func() { r.hangs(ctx, &followed) })
	defer hung.Stop()
	buf := r.mirror.buffers.get()
	defer r.mirror.buffers.put(buf)
	for at := s.start; at < s.end; {
		n, err := body.Read(buf)
		hung.Reset(quiet)
		r.mirror.metrics.upstreamBytes.Add(float64(n))
		if r.ranges {
			r.up.streams.read(int64(n), time.Now())
		}
		if n > 0 {
			if _, err := r.fill.blob.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
			if err := r.fill.wrote(s, int64(n)); err != nil {
				return err
			}
		}
		if err != nil && at < s.end {
			return blame(r.fill.source, err)
		}
		if at < s.end && s.end-at <= lead {
			r.follow(ctx, &followed)
		}
	}
	if s.end-s.start >= length/growth { // shorter ones say little of the rate
		r.took(s.end-s.start, time.Since(asked))
	}
	r.follow(ctx, &followed)
	return nil
}

// follow begins, once, what comes after a range that is about to end: one range, or more or none where the number of
// streams changes. Before the end a second stream would read what nobody leases yet.
func (r *fetching) follow(ctx context.Context, followed *bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followLocked(ctx, followed)
}

func (r *fetching) followLocked(ctx context.Context, followed *bool) {
	if *followed {
		return
	}
	*followed = true
	want := 1
	if r.ranges {
		want = r.up.streams.each()
	}
	begin := max(0, want-(r.streams-1))
	r.streams += begin - 1
	for range begin {
		r.group.Go(func() error { return r.next(ctx) })
	}
}

// hangs follows a range that brings nothing, unless it is a limit of ours that it waits for. It runs in a timer's
// goroutine: the group is not at its end while a range of it runs.
func (r *fetching) hangs(ctx context.Context, followed *bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ranges && r.up.limit == nil && r.running > 0 && r.running < r.mirror.cfg.Parallel {
		r.followLocked(ctx, followed)
	}
}

// length is how long the next range should be, in bytes.
func (r *fetching) length() int64 {
	if !r.ranges {
		return r.desc.Size
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rate == 0 {
		return r.mirror.cfg.RangeSize
	}
	takes := aloneFor
	if r.streams > 1 {
		takes = togetherFor
	}
	takes = max(takes, 2*roundTrips*r.answer)
	return min(int64(r.rate*takes.Seconds()), growth*r.longest, maxRange)
}

// lead notes how long upstream took to answer, and returns how many bytes before the end of a range the next
// one is to be asked for, so that nothing idles in between: a connection needs some round trips for its speed.
func (r *fetching) lead(answer time.Duration) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answer == 0 || answer < r.answer {
		r.answer = answer
	}
	return int64(r.rate * max(minLead, roundTrips*r.answer).Seconds())
}

// took notes a range that came whole.
func (r *fetching) took(n int64, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.longest = max(r.longest, n)
	r.rate = mean(r.rate, float64(n)/max(d, time.Microsecond).Seconds())
}

// mean follows a value that changes.
func mean[T float64 | time.Duration](before, now T) T {
	if before == 0 {
		return now
	}
	return (before + now) / 2
}
