package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// host is a machine of the world: a network namespace with one address, held by a process that does nothing
// else.
type host struct {
	name  string
	ip    string
	port  string // the router's end of its cable
	world *World
	hold  *Process
}

// Host is a machine of the world that runs what a test starts on it.
type Host struct {
	IP   string
	host *host
}

// AddHost makes a machine.
func (w *World) AddHost(ctx context.Context, name string) (*Host, error) {
	h, err := w.newHost(ctx, name)
	if err != nil {
		return nil, err
	}
	w.extra++
	return &Host{IP: fmt.Sprintf("10.99.101.%d", w.extra), host: h}, h.cable(ctx, fmt.Sprintf("10.99.101.%d", w.extra))
}

// Start starts a program on the machine, and returns when ready has no error.
func (h *Host) Start(ctx context.Context, name string, ready func(context.Context) error, argv ...string) (*Process, error) {
	p := &Process{
		Name: name, Log: h.host.path(name + ".log"), group: h.host.group(), ready: ready,
		command: func() []string { return h.host.inside(argv...) },
	}
	return p, p.Start(ctx)
}

// newHost makes a host without a cable. Its processes are in a cgroup of its name; own are more of
// unshare's arguments, before the program that holds it all.
func (w *World) newHost(ctx context.Context, name string, own ...string) (*host, error) {
	h := &host{name: name, world: w}
	if err := makeGroup(h.group()); err != nil {
		return nil, err
	}
	h.hold = &Process{
		Name: "the namespaces of " + name, Log: h.path("namespaces.log"), group: h.group(),
		command: func() []string { return append(append([]string{"unshare", "--net"}, own...), w.tool("pause")) },
	}
	return h, h.begin(ctx)
}

// begin starts the holder and waits until it is in its namespaces: unshare has become it.
func (h *host) begin(ctx context.Context) error {
	h.hold.ready = func(context.Context) error {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.hold.cmd.Process.Pid))
		if is := strings.TrimSpace(string(raw)); err == nil && is != "pause" {
			err = errors.New("it is still " + is)
		}
		return err
	}
	if err := h.hold.Start(ctx); err != nil {
		return err
	}
	return h.run(ctx, "ip link set lo up")
}

func (h *host) group() string { return group + "/hosts/" + h.name }

// path is a file of the host's in the world's folder.
func (h *host) path(elem ...string) string {
	return filepath.Join(append([]string{h.world.cfg.Dir, h.name}, elem...)...)
}

// inside returns the command that runs argv on the host.
func (h *host) inside(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(h.hold.Pid()), "--net", "--"}, argv...)
}

// run runs lines of words on the host.
func (h *host) run(ctx context.Context, lines ...string) error {
	for _, l := range lines {
		if err := run(ctx, h.inside(strings.Fields(l)...)...); err != nil {
			return fmt.Errorf("on %s: %w", h.name, err)
		}
	}
	return nil
}

// forward makes the host a router.
func (h *host) forward(ctx context.Context) error {
	return run(ctx, h.inside("/bin/sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")...)
}

// connect makes the router in the middle, and connects the machine to it.
func (w *World) connect(ctx context.Context) error {
	var err error
	if w.net, err = w.newHost(ctx, "router"); err != nil {
		return err
	}
	err = w.net.run(ctx,
		// A bridge without an address of its own takes the lowest of its ports', and so a new one when a node's
		// power is cut: for up to a minute nobody who knew the old one would reach a Pod.
		"ip link add br0 address "+card(routerIP)+" type bridge",
		"ip addr add "+routerIP+"/16 dev br0",
		"ip link set br0 up",
		"ip link add "+machineIf+" type veth peer name machine",
		"ip link set machine master br0 up",
		"ip link set "+machineIf+" netns "+strconv.Itoa(os.Getpid()),
	)
	if err != nil {
		return err
	}
	if err := w.net.forward(ctx); err != nil {
		return err
	}
	for _, l := range []string{
		"ip addr add " + MachineIP + "/16 dev " + machineIf,
		"ip link set " + machineIf + " up",
		"ip route add " + podRange + " via " + routerIP,
	} {
		if err := run(ctx, strings.Fields(l)...); err != nil {
			return fmt.Errorf("connect the machine to the network %s: %w", network, err)
		}
	}
	return nil
}

// cable connects the host to the router under an address.
func (h *host) cable(ctx context.Context, ip string) error {
	w := h.world
	w.hosts++
	h.ip, h.port = ip, fmt.Sprintf("port%d", w.hosts)
	err := w.net.run(ctx,
		// The address of its card is the host's as well, so that others know it after a power cut.
		"ip link add "+h.port+" type veth peer name eth0 address "+card(ip)+" netns "+strconv.Itoa(h.hold.Pid()),
		"ip link set "+h.port+" master br0 up",
	)
	if err != nil {
		return err
	}
	return h.run(ctx,
		"ip addr add "+ip+"/16 dev eth0",
		"ip link set eth0 up",
		"ip route add default via "+routerIP,
	)
}

// card is a local unicast MAC address made of an IPv4 address.
func card(ip string) string {
	b := netip.MustParseAddr(ip).As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// shape lets the host's cable carry rate each way, as tc writes it ("100mbit"); "" lifts it.
func (h *host) shape(ctx context.Context, rate string) error {
	for _, end := range []struct {
		of  *host
		dev string
	}{{h, "eth0"}, {h.world.net, h.port}} {
		// There may be no limit yet to replace.
		_ = end.of.run(ctx, "tc qdisc del dev "+end.dev+" root")
		if rate == "" {
			continue
		}
		if err := end.of.run(ctx, "tc qdisc add dev "+end.dev+" root tbf rate "+rate+" burst 128k latency 50ms"); err != nil {
			return err
		}
	}
	return nil
}

// cut takes the host's cable out, mend puts it back.
func (h *host) cut(ctx context.Context) error {
	return h.world.net.run(ctx, "ip link set "+h.port+" down")
}

func (h *host) mend(ctx context.Context) error {
	return h.world.net.run(ctx, "ip link set "+h.port+" up")
}
