package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary run one of the helpers instead of the tests.
const helperEnv = "SHOAL_TEST_HELPER"

// helpers are programs that have to be processes of their own. They end with their stdin.
var helpers = map[string]func(ctx context.Context, args []string) error{
	"service": runService,
	"load":    runLoad,
	"busy":    runBusy,
}

// runHelper runs the named helper until stdin ends.
func runHelper(name string, args []string) error {
	run, ok := helpers[name]
	if !ok {
		return fmt.Errorf("%s=%q: no such helper", helperEnv, name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return run(ctx, args)
}

// helper prepares a run of a helper. Closing what is returned ends it.
func helper(t *testing.T, name string, args ...string) (*exec.Cmd, io.Closer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 10 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, stdin
}

// runService stands in for a serving process: each request reads at random from the file args[0] and
// hashes a little, as a tokenizer would. It prints its address.
func runService(ctx context.Context, args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		buf := make([]byte, 64<<10)
		var sum int
		for range 16 {
			if _, err := f.ReadAt(buf, rand.Int64N(info.Size()-int64(len(buf)))); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			for _, b := range buf {
				sum = sum*31 + int(b) + 1
			}
		}
		fmt.Fprintln(w, sum)
	})}
	fmt.Println(l.Addr())
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// leastAsked is how many answers a load waits for, however soon it is told to end.
const leastAsked = 200

// runLoad asks args[0] 100 times a second until ctx ends, and prints how long the answers took, as a
// JSON array of nanoseconds. A request that is late because the one before was does not count less: each
// has a time at which it is due.
func runLoad(ctx context.Context, args []string) error {
	if err := firstInLine(); err != nil {
		return err
	}
	var (
		mu      sync.Mutex
		took    []time.Duration
		failed  error
		running sync.WaitGroup
	)
	ask := func(due time.Time) error {
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodGet, args[0], nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %w", resp.Status, err)
		}
		mu.Lock()
		took = append(took, time.Since(due))
		mu.Unlock()
		return nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for asked := 0; ctx.Err() == nil || asked < leastAsked; asked++ {
		due := <-tick.C
		running.Go(func() {
			if err := ask(due); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
	}
	running.Wait()
	if failed != nil {
		return failed
	}
	return json.NewEncoder(os.Stdout).Encode(took)
}

// runBusy wants a CPU until ctx ends, and gives way to everybody.
func runBusy(ctx context.Context, _ []string) error {
	if err := schedule(unix.SchedAttr{Policy: unix.SCHED_IDLE}); err != nil {
		return err
	}
	for ctx.Err() == nil {
	}
	return nil
}

// firstInLine lets this process run whenever it has something to do, as on a machine of its own.
func firstInLine() error { return schedule(unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1}) }

// schedule sets how all threads of this process get a CPU (sched(7)).
func schedule(attr unix.SchedAttr) error {
	attr.Size = unix.SizeofSchedAttr
	tids, err := ownThreads()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority of a helper: %w", err)
		}
	}
	return nil
}

func ownThreads() (tids []int, err error) {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		tids = append(tids, tid)
	}
	return tids, nil
}

// service is a running stand-in for a serving process.
type service struct{ url string }

// startService starts one; change may give the process a place of its own.
func startService(t *testing.T, change func(*exec.Cmd)) *service {
	t.Helper()
	at := filepath.Join(t.TempDir(), "data")
	writeFile(t, at, make([]byte, 64<<20))
	cmd, end := helper(t, "service", at)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	change(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end.Close()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the service tells no address: %v", err)
	}
	return &service{"http://" + strings.TrimSpace(addr)}
}

// latencies are what requests took, sorted.
type latencies []time.Duration

func (l latencies) quantile(q float64) time.Duration { return l[int(float64(len(l))*q)] }

// load asks the service until the returned function is called, which returns what the requests took.
func (s *service) load(t *testing.T) (finish func() latencies) {
	t.Helper()
	cmd, end := helper(t, "load", s.url)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait := sync.OnceValue(func() error {
		end.Close()
		return cmd.Wait()
	})
	t.Cleanup(func() { _ = wait() })
	return func() latencies {
		t.Helper()
		if err := wait(); err != nil {
			t.Fatalf("the load: %v", err)
		}
		var l latencies
		if err := json.Unmarshal(stdout.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		slices.Sort(l)
		return l
	}
}
