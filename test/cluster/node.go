package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Node is a machine with a containerd and a kubelet. It has a mount namespace of its own, in which every
// default path (/etc, /run, /var/lib, /var/log, /opt) is its own too.
type Node struct {
	Name       string
	IP         string
	Containerd *Process
	Kubelet    *Process

	host    *host
	cluster *Cluster
	podCIDR string
}

// podsGroup is the cgroup of the node's pods.
func (n *Node) podsGroup() string { return group + "/pods/" + n.host.name }

// machine is the script that gives a node its paths, in its mount namespace, before its holder takes over.
// $1 is the node's folder.
const machine = `
set -e
mount --make-rprivate /
for d in lib log; do mkdir -p "$1/var-$d"; mount --bind "$1/var-$d" /var/$d; done
for d in etc opt; do
  mkdir -p "$1/$d-upper" "$1/$d-work"
  mount -t overlay overlay -o "lowerdir=/$d,upperdir=$1/$d-upper,workdir=$1/$d-work" /$d
done
mount -t tmpfs tmpfs /run
# A kubelet insists on these; the machine's own stay what they are.
while read -r value file; do
  name="$1/sysctl-$(echo "$file" | tr / -)"
  echo "$value" >"$name"
  mount --bind "$name" "/proc/sys/$file"
done <<END
1 vm/overcommit_memory
0 vm/panic_on_oom
10 kernel/panic
1 kernel/panic_on_oops
1000000 kernel/keys/root_maxkeys
25000000 kernel/keys/root_maxbytes
END
mount --make-rshared /
shift
exec "$@"
`

func (c *Cluster) newNode(ctx context.Context, number int) (*Node, error) {
	w := c.world
	n := &Node{
		Name: fmt.Sprintf("%s-n%d", c.Name, number), cluster: c,
		IP:      fmt.Sprintf("10.99.%d.%d", c.number, 10+number),
		podCIDR: fmt.Sprintf("10.%d.%d.0/24", 100+c.number, number),
	}
	dir := filepath.Join(w.cfg.Dir, n.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := makeGroup(group + "/pods/" + n.Name); err != nil {
		return nil, err
	}
	var err error
	n.host, err = w.newHost(ctx, n.Name, "--mount", "--propagation", "private", "/bin/sh", "-c", machine, "machine", dir)
	if err != nil {
		return nil, err
	}
	if err := n.connect(ctx); err != nil {
		return nil, err
	}
	// Pods are reached from everywhere.
	if err := w.net.run(ctx, "ip route replace "+n.podCIDR+" via "+n.IP); err != nil {
		return nil, err
	}
	if err := n.configure(ctx); err != nil {
		return nil, err
	}
	n.Containerd = n.process("containerd", n.containerdAnswers, "--config", containerdFile)
	n.Kubelet = n.process("kubelet", nil,
		"--config="+kubeletFile, "--kubeconfig="+c.Kubeconfig("system:node:"+n.Name),
		"--hostname-override="+n.Name, "--node-ip="+n.IP, "--v=2",
	)
	return n, n.start(ctx)
}

func (n *Node) connect(ctx context.Context) error {
	if err := n.host.cable(ctx, n.IP); err != nil {
		return err
	}
	if err := n.host.run(ctx, "ip route add "+services+" via "+n.cluster.host.ip); err != nil {
		return err
	}
	return n.host.forward(ctx)
}

func (n *Node) process(name string, ready func(context.Context) error, args ...string) *Process {
	w := n.cluster.world
	p := &Process{Name: name + " of " + n.Name, Log: n.host.path(name + ".log"), group: n.host.group(), ready: ready}
	p.env = []string{"PATH=" + w.cfg.Tools + ":" + os.Getenv("PATH")}
	p.command = func() []string { return n.Inside(append([]string{w.tool(name)}, args...)...) }
	return p
}

// Inside returns the command that runs argv on the node, among its mounts and in its network.
func (n *Node) Inside(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(n.host.hold.Pid()), "--mount", "--net", "--"}, argv...)
}

// Proc is a name in /proc of what holds the node together: root/... are the node's files, ns/net its network.
func (n *Node) Proc(name string) string {
	return fmt.Sprintf("/proc/%d/%s", n.host.hold.Pid(), name)
}

// Start starts a program on the node, as a systemd unit of it would, and returns when ready has no error.
func (n *Node) Start(ctx context.Context, name string, ready func(context.Context) error, argv ...string) (*Process, error) {
	p := &Process{
		Name: name + " of " + n.Name, Log: n.host.path(name + ".log"), group: n.host.group(), ready: ready,
		command: func() []string { return n.Inside(argv...) },
	}
	return p, p.Start(ctx)
}

// Run runs a command on the node and returns what it wrote.
func (n *Node) Run(ctx context.Context, argv ...string) (string, error) {
	return output(ctx, n.Inside(argv...)...)
}

func (n *Node) containerdAnswers(ctx context.Context) error {
	_, err := n.Run(ctx, n.cluster.world.tool("ctr"), "version")
	return err
}

// start starts containerd and the kubelet, in that order.
func (n *Node) start(ctx context.Context) error {
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	if err := n.Import(ctx, n.cluster.world.pauseTar()); err != nil {
		return err
	}
	return n.Kubelet.Start(ctx)
}

// Import loads an image from a tar of an OCI layout.
func (n *Node) Import(ctx context.Context, tar string) error {
	_, err := n.Run(ctx, n.cluster.world.tool("ctr"), "--namespace=k8s.io", "images", "import", tar)
	return err
}

// Kill ends the node as a power cut would: every process on it, its mounts and its network.
func (n *Node) Kill(ctx context.Context) error {
	if err := endGroup(ctx, n.podsGroup()); err != nil {
		return err
	}
	if err := endGroup(ctx, n.host.group()); err != nil {
		return err
	}
	var errs []error
	for _, p := range []*Process{n.Kubelet, n.Containerd, n.host.hold} {
		errs = append(errs, p.Kill()) // they have ended; this takes note of it
	}
	return errors.Join(errs...)
}

// Boot starts the node again after Kill. What was on its disk is there, what was in /run is not.
func (n *Node) Boot(ctx context.Context) error {
	for _, g := range []string{n.host.group(), n.podsGroup()} {
		if err := makeGroup(g); err != nil {
			return err
		}
	}
	if err := n.host.begin(ctx); err != nil {
		return err
	}
	if err := n.connect(ctx); err != nil {
		return err
	}
	return n.start(ctx)
}

// Ready reports whether the API server believes that the node is ready.
func (n *Node) Ready(ctx context.Context) (bool, error) {
	client, err := n.cluster.Client()
	if err != nil {
		return false, err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	for _, cond := range node.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue, nil
		}
	}
	return false, nil
}

// AwaitReady waits until the node is ready, or is not.
func (n *Node) AwaitReady(ctx context.Context, want bool) error {
	return poll(ctx, fmt.Sprintf("%s to be ready: %t", n.Name, want), func(ctx context.Context) error {
		is, err := n.Ready(ctx)
		if err == nil && is != want {
			err = fmt.Errorf("it is ready: %t", is)
		}
		return err
	})
}

// WriteFile writes a file on the node, and the folders above it.
func (n *Node) WriteFile(ctx context.Context, name, content string) error {
	argv := n.Inside("/bin/sh", "-c", `mkdir -p "$(dirname "$0")" && cat >"$0"`, name)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write %s on %s: %w: %s", name, n.Name, err, out)
	}
	return nil
}

// configure writes what containerd, the CNI and the kubelet read.
func (n *Node) configure(ctx context.Context) error {
	w := n.cluster.world
	values := strings.NewReplacer(
		"{runc}", w.runc, "{cni}", w.tool("cni"), "{pause}", pauseReference, "{pods}", n.podCIDR,
		"{ip}", n.IP, "{group}", "/"+n.podsGroup(),
	)
	for name, text := range map[string]string{
		containerdFile:                    containerdConfig,
		"/etc/cni/net.d/10-pods.conflist": cniConfig,
		kubeletFile:                       kubeletConfig,
	} {
		if err := n.WriteFile(ctx, name, values.Replace(text)); err != nil {
			return err
		}
	}
	return nil
}

// Trust lets containerd on the node pull from the registry: a hosts.toml says how it is reached.
func (n *Node) Trust(ctx context.Context, r *Registry) error {
	text := fmt.Sprintf("server = \"http://%s\"\n", r.Host)
	if r.CAFile != "" {
		text = fmt.Sprintf("server = \"https://%s\"\nca = %q\n", r.Host, r.CAFile)
	}
	return n.WriteFile(ctx, path.Join("/etc/containerd/certs.d", r.Host, "hosts.toml"), text)
}

// Where the node's programs are told what to do.
const (
	containerdFile = "/etc/containerd/config.toml"
	kubeletFile    = "/etc/kubernetes/kubelet.yaml"
)

const containerdConfig = `version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause}'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # root here may not have CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true # so that they end with the node
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{runc}'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{cni}']
    conf_dir = '/etc/cni/net.d'
`

const cniConfig = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "{pods}"}]], "routes": [{"dst": "0.0.0.0/0"}]}
}]}
`

// kubeletConfig leaves nothing to the machine's disk: its fullness is not the cluster's.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {ip}
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: {group}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "1Mi", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", imagefs.inodesFree: "0%"}
resolvConf: ""
syncFrequency: 5s
nodeStatusUpdateFrequency: 2s
shutdownGracePeriod: 0s
imagePullCredentialsVerificationPolicy: NeverVerify
`
