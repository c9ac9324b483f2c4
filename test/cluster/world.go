package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Config says where a world lives.
type Config struct {
	Tools string // the programs that make tools builds
	Dir   string // a folder of the world's own, removed with it; on a disk that containerd's overlays may lie on
	// Log is told of each step; nil: nobody.
	Log func(format string, args ...any)
}

// World is a network with clusters and registries. There is one at a time on a machine.
type World struct {
	cfg        Config
	lock       *os.File
	net        *host // the switch and router in the middle
	hosts      int   // numbers for interfaces
	runc       string
	extra      int // hosts that tests added
	Clusters   []*Cluster
	Registries []*Registry
}

// MachineIP is the address at which the world reaches this machine.
const MachineIP = "10.99.255.254"

// The world's addresses. The machine is a host of it too, so that a test or a kubectl reaches the rest.
const (
	network   = "10.99.0.0/16"
	routerIP  = "10.99.0.1"
	machineIf = "shoal0"
	podRange  = "10.100.0.0/14" // of all clusters
	services  = "10.96.0.0/16"  // of each cluster
	serviceIP = "10.96.0.1"     // of each cluster's API server
)

// lockFile is the same for every world, whatever its folder: their interface and cgroup are the same too.
// It holds the folder of a world that its maker left running.
const lockFile = "/run/lock/shoal-cluster"

// New removes what a world left that could not close, and makes an empty one.
func New(ctx context.Context, cfg Config) (*World, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("a cluster with nodes needs root, for namespaces, mounts and cgroups")
	}
	var err error
	if cfg.Tools, err = filepath.Abs(cfg.Tools); err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	if err := findTools(cfg.Tools); err != nil {
		return nil, err
	}
	lock, err := acquire()
	if err != nil {
		return nil, err
	}
	if dir, err := leftIn(); err != nil || dir != "" {
		lock.Close()
		return nil, cmp.Or(err, fmt.Errorf("a cluster runs from %s: make cluster-down ends it", dir))
	}
	w := &World{cfg: cfg, lock: lock}
	w.runc, _ = exec.LookPath("runc") // findTools found it
	if err := w.begin(ctx); err != nil {
		return nil, errors.Join(err, w.Close()) //nolint:contextcheck // also after ctx has ended
	}
	return w, nil
}

// findTools checks that what New needs is there, and says how to get it.
func findTools(dir string) error {
	for _, name := range []string{"kubelet", "kube-apiserver", "etcd", "containerd", "registry", "pause", "cni/bridge"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("no %s in %s: run make tools", name, dir)
		}
	}
	for name, pkg := range map[string]string{"runc": "runc", "ip": "iproute2", "nsenter": "util-linux"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("no %s on this machine: apt-get install %s", name, pkg)
		}
	}
	return nil
}

// acquire takes the machine's lock on worlds.
func acquire() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(lockFile), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("a test or a command is at work with a cluster on this machine: wait for its end")
	}
	return f, nil
}

// leftIn returns the folder of the world that was left running, empty when there is none.
func leftIn() (string, error) {
	raw, err := os.ReadFile(lockFile)
	if err != nil || len(raw) == 0 {
		return "", err
	}
	pids, err := members(group)
	if len(pids) == 0 {
		return "", err // the machine was started anew since then
	}
	return string(raw), nil
}

func (w *World) begin(ctx context.Context) error {
	if err := clean(ctx, w.cfg.Dir); err != nil {
		return fmt.Errorf("what an earlier cluster left: %w", err)
	}
	if err := os.MkdirAll(w.cfg.Dir, 0o755); err != nil {
		return err
	}
	if err := makeGroup(group + "/hosts"); err != nil {
		return err
	}
	if err := w.writePause(); err != nil {
		return err
	}
	return w.connect(ctx)
}

// clean ends every process of a world, and with them its namespaces, mounts and interfaces, and removes
// its cgroups and its folder.
func clean(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := endGroup(ctx, group); err != nil {
		return err
	}
	// A link's end outlives its namespace for a moment.
	err := poll(ctx, machineIf+" to go", func(context.Context) error {
		if _, err := os.Stat("/sys/class/net/" + machineIf); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.New("it is still there")
	})
	if err != nil {
		return err
	}
	if dir == "" {
		return nil
	}
	return os.RemoveAll(dir)
}

// Close removes the world.
func (w *World) Close() error {
	w.cfg.Log("the world ends")
	err := clean(context.Background(), w.cfg.Dir)
	w.lock.Close()
	return err
}

// Remove ends the world that was left running, or what is there of one that crashed.
func Remove(ctx context.Context) error {
	lock, err := acquire()
	if err != nil {
		return err
	}
	defer lock.Close()
	dir, err := leftIn()
	if err != nil {
		return err
	}
	if err := clean(ctx, dir); err != nil {
		return err
	}
	return os.Truncate(lockFile, 0)
}

func (w *World) tool(name string) string { return filepath.Join(w.cfg.Tools, name) }

func (w *World) pauseTar() string { return filepath.Join(w.cfg.Dir, "pause.tar") }
