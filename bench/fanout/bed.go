package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/bench/internal/program"
)

// bed is the testbed: hosts in network namespaces of their own, joined by bridges, one a zone. It lives
// in the private namespaces of this process (see isolate), so that its end takes everything along.
type bed struct {
	hosts []*host
	zones map[string]string // bridge by zone
	logs  string
	thin  string // the interface between the zones, seen from the first
}

// host is one machine of the bed.
type host struct {
	name string
	ip   string
	port string // the bridge's end of its cable
	program.Place
}

const (
	// mtu is that of a data centre; at 1500 this machine, which plays all hosts, would be the limit.
	mtu = "9000"
	// burst is what tbf lets through at once: the largest frame and some timer ticks at a gigabit.
	burst = "128k"
	// latency is how long a frame may wait in a link's queue before it is dropped: at 100 Mbit/s the queue
	// holds 2.5 MB, as a port of a switch may. At 50 ms thirty streams into one link, each with the few frames
	// that TCP always has under way, lost 6 % of what they carried.
	latency = "200ms"
)

func newBed(ctx context.Context, logs string) (*bed, error) {
	if err := run(ctx, "ip", "link", "set", "lo", "up"); err != nil {
		return nil, err
	}
	return &bed{logs: logs, zones: map[string]string{}}, nil
}

// run runs a command for its effect.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("the bench needs %s: apt-get install iproute2", name)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// runAll runs lines of words.
func runAll(ctx context.Context, lines ...string) error {
	for _, l := range lines {
		words := strings.Fields(l)
		if err := run(ctx, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// bridge returns the bridge of a zone.
func (b *bed) bridge(ctx context.Context, zone string) (string, error) {
	if name, ok := b.zones[zone]; ok {
		return name, nil
	}
	name := fmt.Sprintf("br%d", len(b.zones))
	b.zones[zone] = name
	return name, runAll(ctx,
		"ip link add "+name+" type bridge",
		"ip link set "+name+" mtu "+mtu+" up",
	)
}

// join connects two zones by a link of the given rate.
func (b *bed) join(ctx context.Context, one, other, rate string) error {
	left, err := b.bridge(ctx, one)
	if err != nil {
		return err
	}
	right, err := b.bridge(ctx, other)
	if err != nil {
		return err
	}
	b.thin = "thin0"
	return runAll(ctx,
		"ip link add thin0 mtu "+mtu+" type veth peer name thin1 mtu "+mtu,
		"ip link set thin0 master "+left+" up",
		"ip link set thin1 master "+right+" up",
		"tc qdisc add dev thin0 root tbf rate "+rate+" burst "+burst+" latency "+latency,
		"tc qdisc add dev thin1 root tbf rate "+rate+" burst "+burst+" latency "+latency,
	)
}

// host adds a host whose link carries rate each way; "" means as fast as it can.
func (b *bed) host(ctx context.Context, name, zone, rate string) (*host, error) {
	bridge, err := b.bridge(ctx, zone)
	if err != nil {
		return nil, err
	}
	k := len(b.hosts) + 1
	h := &host{name: name, ip: fmt.Sprintf("10.77.%d.%d", k/250, k%250+1), port: fmt.Sprintf("port%d", k)}
	others := b.hosts
	b.hosts = append(b.hosts, h)
	h.Place = program.Place{Name: name, Logs: b.logs, Command: h.command, Dial: h.dial}
	err = runAll(ctx,
		"ip netns add "+name,
		"ip link add "+h.port+" mtu "+mtu+" type veth peer name eth0 address "+h.mac()+" mtu "+mtu+" netns "+name,
		"ip link set "+h.port+" master "+bridge+" up",
		"ip -n "+name+" addr add "+h.ip+"/16 dev eth0",
		"ip -n "+name+" link set eth0 up",
		"ip -n "+name+" link set lo up",
	)
	if err != nil {
		return h, err
	}
	if err := h.introduce(ctx, others); err != nil {
		return h, err
	}
	if rate == "" {
		return h, nil
	}
	return h, runAll(ctx,
		"tc qdisc add dev "+h.port+" root tbf rate "+rate+" burst "+burst+" latency "+latency,
		"tc -n "+name+" qdisc add dev eth0 root tbf rate "+rate+" burst "+burst+" latency "+latency,
	)
}

// mac is the host's hardware address.
func (h *host) mac() string {
	ip := net.ParseIP(h.ip).To4()
	return net.HardwareAddr{2, 0, ip[0], ip[1], ip[2], ip[3]}.String()
}

// introduce tells a new host and the others each other's hardware addresses for good. The kernel keeps those that it
// learns in one table for all namespaces, which holds 1024 (gc_thresh3): thirty hosts that all talk to each other fill
// it, and some can then reach nobody.
func (h *host) introduce(ctx context.Context, others []*host) error {
	for _, other := range others {
		err := runAll(ctx,
			"ip -n "+h.name+" neigh add "+other.ip+" lladdr "+other.mac()+" dev eth0 nud permanent",
			"ip -n "+other.name+" neigh add "+h.ip+" lladdr "+h.mac()+" dev eth0 nud permanent",
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// counter reads an interface's counter.
func counter(device, name string) (int64, error) {
	raw, err := os.ReadFile(filepath.Join("/sys/class/net", device, "statistics", name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

// command prepares a program that runs on the host. The kernel kills it when this process ends.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command("ip", append([]string{"netns", "exec", h.name}, args...)...) //nolint:noctx // ended by its owner
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	return cmd
}

// dial connects from the host to one of its addresses or others'. addr has to be IP:PORT.
func (h *host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	// A socket stays in the namespace in which it was made; the thread goes back.
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	there, err := os.Open(filepath.Join("/run/netns", h.name))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("namespace of %s: %w", h.name, err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return nil, errors.Join(err, back) // the thread stays locked and ends with the goroutine
	}
	runtime.UnlockOSThread()
	return conn, err
}

// remove takes all hosts and bridges away. Their processes have ended.
func (b *bed) remove(ctx context.Context) error {
	var errs []error
	for _, h := range b.hosts {
		// A cable would go with its namespace, but only some time later.
		if _, err := os.Stat(filepath.Join("/sys/class/net", h.port)); err == nil {
			errs = append(errs, run(ctx, "ip", "link", "del", h.port))
		}
	}
	for _, h := range b.hosts {
		errs = append(errs, run(ctx, "ip", "netns", "del", h.name))
	}
	for _, name := range b.zones {
		errs = append(errs, run(ctx, "ip", "link", "del", name))
	}
	if b.thin != "" {
		errs = append(errs, run(ctx, "ip", "link", "del", b.thin))
	}
	return errors.Join(errs...)
}
