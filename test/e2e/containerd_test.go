package e2e

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/shoal-project/shoal/test/cluster"
)

// region is Shoal in a world: a mirror and a tracker on a machine of their own, and an agent on each node
// of a cluster, which containerd is told of by its hosts.toml.
type region struct {
	t        *testing.T
	shoal    string
	certs    string
	mirror   *cluster.Process
	tracker  *cluster.Process
	machine  *cluster.Host
	agents   map[string]*cluster.Process // by node
	registry *cluster.Registry
}

// The ports of Shoal's parts.
const (
	trackerPort, trackerAdmin = 7070, 7080
	mirrorPort, mirrorAdmin   = 7071, 7081
	agentPort, agentAdmin     = 7072, 7082
)

// newRegion starts Shoal for the nodes. The mirror reads the registry with the credentials of the docker
// configuration in the folder login, or without any where that is empty. The agents get more flags.
func newRegion(t *testing.T, w *cluster.World, registry *cluster.Registry, nodes []*cluster.Node, login string, flags ...string) *region {
	t.Helper()
	dir := t.TempDir()
	r := &region{
		t: t, shoal: program(t, "../../cmd/shoal"), certs: filepath.Join(dir, "certs"),
		agents: map[string]*cluster.Process{}, registry: registry,
	}
	r.command("certs", "init", filepath.Join(dir, "ca"))
	issue := func(role string) string {
		to := filepath.Join(r.certs, role)
		r.command("certs", "issue", filepath.Join(dir, "ca"), to, role)
		return to
	}
	var err error
	if r.machine, err = w.AddHost(t.Context(), "shoal"); err != nil {
		t.Fatal(err)
	}
	at := func(ip string, port int) string { return fmt.Sprintf("%s:%d", ip, port) }
	start := func(name string, admin string, run func(ctx context.Context, name string, ready func(context.Context) error, argv ...string) (*cluster.Process, error), args ...string) *cluster.Process {
		p, err := run(within(t), name, answers("http://"+admin+"/readyz"), append([]string{r.shoal}, append(args, "--admin", admin)...)...)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ip := r.machine.IP
	r.tracker = start("tracker", at(ip, trackerAdmin), r.machine.Start, "tracker", "--listen", at(ip, trackerPort), "--certs", issue("tracker"))
	withLogin := func(ctx context.Context, name string, ready func(context.Context) error, argv ...string) (*cluster.Process, error) {
		return r.machine.Start(ctx, name, ready, append([]string{"env", "DOCKER_CONFIG=" + login}, argv...)...)
	}
	r.mirror = start("mirror", at(ip, mirrorAdmin), withLogin, "mirror", "--listen", at(ip, mirrorPort), "--certs", issue("mirror"),
		"--dir", filepath.Join(dir, "mirror"), "--upstream", registry.Host+"=http://"+registry.Host)
	for _, n := range nodes {
		if err := n.Trust(t.Context(), registry); err != nil {
			t.Fatal(err)
		}
		r.agents[n.Name] = start("shoal", at(n.IP, agentAdmin), n.Start, append([]string{"peer", "--name", n.Name, "--listen", at(n.IP, agentPort), "--certs", issue("node/" + n.Name),
			"--dir", "/var/lib/shoal", "--tracker", "https://" + at(ip, trackerPort), "--mirror", "https://" + at(ip, mirrorPort), "--no-yield",
			"--containerd-config", "/etc/containerd/certs.d", "--containerd-registry", registry.Host}, flags...)...)
	}
	return r
}

func (r *region) command(args ...string) string {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), r.shoal, args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("shoal %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// answers reports whether a URL is answered well.
func answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", url, resp.Status)
		}
		return nil
	}
}

// metric reads one figure of an agent.
func (r *region) metric(n *cluster.Node, line string) string {
	r.t.Helper()
	text := get(r.t, fmt.Sprintf("http://%s:%d/metrics", n.IP, agentAdmin))
	for l := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(l, line+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return "0"
}

// blobRequests is how many requests for blobs the node's agent has answered well.
func (r *region) blobRequests(n *cluster.Node) int {
	r.t.Helper()
	count, err := strconv.Atoi(r.metric(n, `shoal_endpoint_requests_total{kind="blob",status="200"}`))
	if err != nil {
		r.t.Fatal(err)
	}
	return count
}

// randomFile writes size random bytes, which no compression makes smaller.
func randomFile(t *testing.T, seed byte, size int) string {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content) // never fails
	name := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// sent is how many bytes have left the registry's machine.
func (r *region) sent() int64 {
	r.t.Helper()
	n, err := r.registry.Sent(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// TestContainerd pulls images into real containerds that know of Shoal by a hosts.toml and nothing else.
func TestContainerd(t *testing.T) {
	w := newWorld(t)
	registry, err := w.AddRegistry(t.Context(), "registry", cluster.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c, client := addCluster(t, w, "one", 3)
	r := newRegion(t, w, registry, c.Nodes, t.TempDir())
	app := program(t, "./testapp")
	image := cluster.Image{
		Entrypoint: []string{"/testapp"}, Gzip: true,
		Layers: []cluster.Files{{"testapp": app}, {"data/one": randomFile(t, 1, 40<<20)}, {"data/two": randomFile(t, 2, 3<<20)}},
	}

	t.Run("ThreeNodesAtOnce", func(t *testing.T) {
		repo := repository(t, registry, "team/app:v1", "", "")
		_, size, err := image.Push(within(t), repo)
		if err != nil {
			t.Fatal(err)
		}
		before := r.sent()
		var pods errgroup.Group
		for i, n := range c.Nodes {
			pods.Go(func() error {
				pod := appPod(fmt.Sprintf("app%d", i), repo.Reference.String(), n.Name, "digests", "/data")
				if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
					return fmt.Errorf("%s ended as %s\n%s", pod.Name, ended.Status.Phase, describe(client, pod))
				}
				return nil
			})
		}
		if err := pods.Wait(); err != nil {
			t.Fatal(err)
		}
		copies := float64(r.sent()-before) / float64(size)
		t.Logf("3 nodes have pulled %d bytes; %.3f copies left the registry", size, copies)
		if copies > 1.1 {
			t.Errorf("%.3f copies left the registry", copies)
		}
		for _, n := range c.Nodes {
			if served := r.metric(n, `shoal_endpoint_sent_bytes_total{source="swarm"}`); served == "0" {
				t.Errorf("containerd on %s got nothing from its agent", n.Name)
			}
		}
	})

	t.Run("Index", func(t *testing.T) {
		repo := repository(t, registry, "team/multi:v1", "", "")
		other := image
		other.Arch = "riscv64"
		if err := cluster.PushIndex(within(t), repo, image, other); err != nil {
			t.Fatal(err)
		}
		pod := appPod("multi", repo.Reference.String(), c.Nodes[0].Name, "digests", "/data")
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
	})

	t.Run("Model", func(t *testing.T) { imageVolume(t, client, registry, registry.Host+"/team/app:v1") })

	// containerd reads a layer by several ranges at once, and out of order.
	t.Run("ConcurrentRanges", func(t *testing.T) {
		n := c.Nodes[2]
		const file = "/etc/containerd/config.toml"
		config, err := n.Run(within(t), "cat", file)
		if err != nil {
			t.Fatal(err)
		}
		config += "\n[plugins.'io.containerd.transfer.v1.local']\n  concurrent_layer_fetch_buffer = 1048576\n  max_concurrent_downloads = 3\n"
		if err := n.WriteFile(within(t), file, config); err != nil {
			t.Fatal(err)
		}
		if err := n.Containerd.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.Containerd.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		repo := repository(t, registry, "team/ranges:v1", "", "")
		ranges := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": app}, {"data/ranges": randomFile(t, 6, 24<<20)}}}
		_, size, err := ranges.Push(within(t), repo)
		if err != nil {
			t.Fatal(err)
		}
		before, asked := r.sent(), r.blobRequests(n)
		pod := appPod("ranges", repo.Reference.String(), n.Name, "digests", "/data")
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
		asked = r.blobRequests(n) - asked
		copies := float64(r.sent()-before) / float64(size)
		// How many ranges containerd makes of a layer depends on what else it fetches at that moment.
		t.Logf("%.3f copies left the registry, for %d requests of a configuration and two layers", copies, asked)
		if copies > 1.1 {
			t.Errorf("%.3f copies left the registry", copies)
		}
	})

	t.Run("MirrorDead", func(t *testing.T) {
		repo := repository(t, registry, "team/late:v1", "", "")
		late := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": app}, {"data/late": randomFile(t, 3, 2<<20)}}}
		if _, _, err := late.Push(within(t), repo); err != nil {
			t.Fatal(err)
		}
		if err := r.mirror.Kill(); err != nil {
			t.Fatal(err)
		}
		pod := appPod("late", repo.Reference.String(), c.Nodes[1].Name, "digests", "/data")
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
		if err := r.mirror.Start(within(t)); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("AgentDiesInMidBlob", func(t *testing.T) {
		repo := repository(t, registry, "team/half:v1", "", "")
		half := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": app}, {"data/half": randomFile(t, 5, 32<<20)}}}
		if _, _, err := half.Push(within(t), repo); err != nil {
			t.Fatal(err)
		}
		if err := registry.Shape(within(t), "80mbit"); err != nil { // three seconds and more
			t.Fatal(err)
		}
		n := c.Nodes[0]
		agent := r.agents[n.Name]
		before := r.sent()
		killed := make(chan error, 1)
		go func() {
			killed <- until(within(t), func(context.Context) error {
				if r.sent()-before < 10<<20 {
					return errors.New("less than 10 MiB have left the registry")
				}
				return agent.Kill()
			})
		}()
		pod := appPod("half", repo.Reference.String(), n.Name, "digests", "/data")
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
		if err := <-killed; err != nil {
			t.Error(err)
		}
		if err := registry.Shape(within(t), ""); err != nil {
			t.Fatal(err)
		}
		if err := agent.Start(within(t)); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("AgentDead", func(t *testing.T) {
		repo := repository(t, registry, "team/alone:v1", "", "")
		alone := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": app}, {"data/alone": randomFile(t, 4, 2<<20)}}}
		if _, _, err := alone.Push(within(t), repo); err != nil {
			t.Fatal(err)
		}
		if err := r.agents[c.Nodes[2].Name].Kill(); err != nil {
			t.Fatal(err)
		}
		pod := appPod("alone", repo.Reference.String(), c.Nodes[2].Name, "digests", "/data")
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
	})

	t.Run("RegistryDead", func(t *testing.T) {
		if err := registry.Kill(); err != nil {
			t.Fatal(err)
		}
		// By tag and by digest, on a node that has the image no longer.
		n := c.Nodes[1]
		if out, err := n.Run(within(t), filepath.Join(tools, "crictl"), "--runtime-endpoint", "unix:///run/containerd/containerd.sock", "rmi", registry.Host+"/team/app:v1"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		pod := appPod("cached", registry.Host+"/team/app:v1", n.Name, "digests", "/data")
		pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Errorf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
	})
}

// TestPrivateImages shows who gets an image that its registry gives to some only.
func TestPrivateImages(t *testing.T) {
	const user, password = "reader", "secret"
	w := newWorld(t)
	registry, err := w.AddRegistry(t.Context(), "private", cluster.RegistryOptions{User: user, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	c, client := addCluster(t, w, "one", 2)
	login := t.TempDir()
	credentials := dockerConfig(registry.Host, user, password)
	if err := os.WriteFile(filepath.Join(login, "config.json"), credentials, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRegion(t, w, registry, c.Nodes, login, "--containerd-stay", "1s")
	app := program(t, "./testapp")
	repo := repository(t, registry, "team/private:v1", user, password)
	image := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": app}, {"data/secret": randomFile(t, 1, 6<<20)}}}
	if _, _, err := image.Push(within(t), repo); err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string][]byte{"right": credentials, "wrong": dockerConfig(registry.Host, user, "guess")} {
		secret := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Type:       corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: config},
		}
		if _, err := client.CoreV1().Secrets("default").Create(within(t), secret, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	private := func(name, secret, node string) *corev1.Pod {
		pod := appPod(name, repo.Reference.String(), node, "digests", "/data")
		pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
		if secret != "" {
			pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: secret}}
		}
		return pod
	}
	for i, n := range c.Nodes {
		pod := private(fmt.Sprintf("right%d", i), "right", n.Name)
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Fatalf("with the secret the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
		if served := r.metric(n, `shoal_endpoint_sent_bytes_total{source="swarm"}`); served == "0" {
			t.Errorf("containerd on %s got no blob from its agent", n.Name)
		}
	}
	oneCopy(t, r, c.Nodes[0])
	// The node and its agent hold the image now.
	for name, secret := range map[string]string{"none": "", "wrong": "wrong"} {
		pod := private(name, secret, c.Nodes[0].Name)
		why := refused(t, client, pod)
		t.Logf("with the secret %q: %s", secret, why)
		// Of a registry that asks for a password and gets none, containerd says less than of a 404 before.
		if secret != "" && !strings.Contains(why, "401") {
			t.Errorf("the error is not the registry's own: %s", why)
		}
	}
}

// oneCopy waits until the agent has left one copy of each blob that containerd has, and looks for it on the disk.
func oneCopy(t *testing.T, r *region, n *cluster.Node) {
	t.Helper()
	linked := func() string { return r.metric(n, `shoal_endpoint_settled_total{way="linked"}`) }
	dropped := func() string { return r.metric(n, `shoal_endpoint_settled_total{way="dropped"}`) }
	err := until(within(t), func(context.Context) error {
		if linked() == "0" && dropped() == "0" {
			return errors.New("containerd and the agent have a copy each")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := n.Run(within(t), "find", "/var/lib/shoal", "-path", "*-raw/data", "-size", "+1M", "-links", "1")
	if err != nil || len(out) > 0 {
		t.Errorf("copies of the agent's own: %s, %v", out, err)
	}
	theirs, err := n.Run(within(t), "find", "/var/lib/containerd/io.containerd.content.v1.content/blobs", "-size", "+1M", "-links", "+1")
	t.Logf("%s became links, %s were dropped; containerd's files with a second name: %d (%v)", linked(), dropped(), strings.Count(string(theirs), "\n"), err)
}

// refused makes a Pod whose image it may not have, waits until it is refused, and returns why.
func refused(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) (why string) {
	t.Helper()
	pods := client.CoreV1().Pods(pod.Namespace)
	if _, err := pods.Create(within(t), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := until(within(t), func(ctx context.Context) error {
		now, err := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, s := range now.Status.ContainerStatuses {
			if s.State.Terminated != nil || s.State.Running != nil {
				t.Fatalf("the Pod %s runs", pod.Name)
			}
			if s.State.Waiting != nil && (s.State.Waiting.Reason == "ErrImagePull" || s.State.Waiting.Reason == "ImagePullBackOff") {
				why = s.State.Waiting.Message
				return nil
			}
		}
		return errors.New("the Pod has not been refused yet")
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, describe(client, pod))
	}
	return why
}

// dockerConfig is a docker configuration with the credentials for one registry.
func dockerConfig(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}
