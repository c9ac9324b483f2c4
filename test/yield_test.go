package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shoal-project/shoal/tracker/client"
)

// service stands in for a serving process: each request reads at random from a file of 64 MiB and
// hashes a little, as a tokenizer would.
type service struct {
	url string
}

func newService(t *testing.T) *service {
	t.Helper()
	at := filepath.Join(t.TempDir(), "data")
	const size = 64 << 20
	writeFile(t, at, make([]byte, size))
	f, err := os.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		buf := make([]byte, 64<<10)
		var sum int
		for range 16 {
			if _, err := f.ReadAt(buf, rand.Int64N(size-int64(len(buf)))); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			for _, b := range buf {
				sum = sum*31 + int(b) + 1
			}
		}
		fmt.Fprintln(w, sum)
	})}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		_ = server.Close()
		running.Wait()
		f.Close()
	})
	return &service{"http://" + l.Addr().String()}
}

// load asks 100 times a second until ctx ends, and returns how long the answers took. A request that
// is late because the one before was does not count less: each has a time at which it is due.
func (s *service) load(ctx context.Context, t *testing.T) []time.Duration {
	t.Helper()
	var (
		mu      sync.Mutex
		took    []time.Duration
		running sync.WaitGroup
	)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for due := range tick.C {
		if ctx.Err() != nil {
			break
		}
		running.Go(func() {
			req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, s.url, nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			mu.Lock()
			took = append(took, time.Since(due))
			mu.Unlock()
		})
	}
	running.Wait()
	return took
}

func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}

// A node that receives a model beside a serving process. It logs what the service's slowest hundredth
// takes when the node is idle, and while it receives, with and without yielding; SHOAL_TEST_YIELD_MIB
// sets the model's size for a figure to quote.
func TestServingComesFirst(t *testing.T) {
	mib := int64(96)
	if s := os.Getenv("SHOAL_TEST_YIELD_MIB"); s != "" {
		var err error
		if mib, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	serving := newService(t)
	for _, yields := range []bool{true, false} {
		t.Run(fmt.Sprintf("yield=%t", yields), func(t *testing.T) {
			r := newRegion(t, 0)
			r.yield = yields
			dir := t.TempDir()
			content := make([]byte, mib<<20)
			_, _ = rand.NewChaCha8([32]byte{3}).Read(content) // never fails
			files := map[string][]byte{"model.bin": content}
			writeFile(t, filepath.Join(dir, "model.bin"), content)
			image := r.push(dir, "v1")
			seeder, node := r.addNode(), r.addNode()
			r.desireOn("v1", seeder)
			r.settled(seeder, "v1")

			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			idle := p99(serving.load(ctx, t))
			cancel()
			ctx, cancel = context.WithCancel(t.Context())
			busy := make(chan []time.Duration, 1)
			go func() { busy <- serving.load(ctx, t) }()
			began := time.Now()
			r.desireOn("v1", seeder, node)
			r.settled(node, "v1")
			dur := time.Since(began)
			cancel()
			took := <-busy
			t.Logf("yield %t: p99 %s idle, %s while %d MiB came in %.1f s (%.0f MiB/s): %.2f x, of %d requests",
				yields, idle, p99(took), mib, dur.Seconds(), float64(mib)/dur.Seconds(), float64(p99(took))/float64(idle), len(took))
			r.ready(image, files, node)
		})
	}
}

// desireOn makes nodes want tag.
func (r *region) desireOn(tag string, nodes ...*daemon) {
	r.t.Helper()
	m := client.DesiredModel{Name: tag, Reference: r.reference(tag)}
	for _, n := range nodes {
		m.Nodes = append(m.Nodes, n.name)
	}
	if err := r.control.SetDesired(r.t.Context(), client.Desired{Models: []client.DesiredModel{m}}); err != nil {
		r.t.Fatal(err)
	}
}
