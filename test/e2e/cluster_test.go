package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/shoal-project/shoal/test/cluster"
)

// TestCluster shows that what the other tests stand on is real.
func TestCluster(t *testing.T) {
	w := newWorld(t)
	registry, err := w.AddRegistry(t.Context(), "registry", cluster.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	one, client := addCluster(t, w, "one", 2)
	_, other := addCluster(t, w, "two", 0)
	for _, n := range one.Nodes {
		if err := n.Trust(t.Context(), registry); err != nil {
			t.Fatal(err)
		}
	}
	app := pushApp(t, registry, "testapp", program(t, "./testapp"))

	t.Run("Pod", func(t *testing.T) {
		for i, n := range one.Nodes {
			name := fmt.Sprintf("serve%d", i)
			pod := run(t, client, appPod(name, app, n.Name, "serve"), false)
			if got := get(t, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")); got != name {
				t.Errorf("the Pod %s answers %q", name, got)
			}
		}
	})
	t.Run("ImageVolume", func(t *testing.T) { imageVolume(t, client, registry, app) })
	t.Run("NodeLost", func(t *testing.T) { nodeLost(t, client, one.Nodes[0], app) })
	t.Run("TwoClusters", func(t *testing.T) {
		space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "only-here"}}
		if _, err := client.CoreV1().Namespaces().Create(within(t), space, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := other.CoreV1().Namespaces().Get(within(t), space.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the other cluster says of a namespace of this one: %v", err)
		}
	})
}

// imageVolume mounts a model that shoal push packed as the volume of a Pod, by the kubelet's own means.
func imageVolume(t *testing.T, client kubernetes.Interface, registry *cluster.Registry, app string) {
	dir := t.TempDir()
	var want []string
	for name, size := range map[string]int{"config.json": 700, "weights/model-1.safetensors": 9 << 20, "weights/model-2.safetensors": 3<<20 + 1, "empty": 0} {
		content := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(content) // never fails
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%x %s", sha256.Sum256(content), name))
	}
	reference := registry.Host + "/models/small:v1"
	out, err := exec.CommandContext(within(t), program(t, "../../cmd/shoal"), "push", "--plain-http", dir, reference).CombinedOutput()
	if err != nil {
		t.Fatalf("shoal push: %v\n%s", err, out)
	}
	pod := appPod("volume", app, "", "digests", "/model")
	pod.Spec.Volumes = []corev1.Volume{{Name: "model", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: reference}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "model", MountPath: "/model", ReadOnly: true}}
	if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
		t.Fatalf("the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
	}
	got := strings.Split(strings.TrimSpace(logs(t, client, pod)), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the Pod reads\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// nodeLost cuts a node's power and brings it back.
func nodeLost(t *testing.T, client kubernetes.Interface, n *cluster.Node, app string) {
	if err := n.Kill(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := n.AwaitReady(within(t), false); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := n.AwaitReady(within(t), true); err != nil {
		t.Fatal(err)
	}
	pod := run(t, client, appPod("again", app, n.Name, "serve"), false)
	if got := get(t, "http://"+net.JoinHostPort(pod.Status.PodIP, "8080")); got != "again" {
		t.Errorf("the Pod answers %q", got)
	}
}

// appPod is a Pod that runs testapp, on the named node if there is a name.
func appPod(name, image, node string, args ...string) *corev1.Pod {
	app := corev1.Container{Name: "app", Image: image, Args: args}
	if args[0] == "serve" {
		app.ReadinessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(8080)}},
			PeriodSeconds: 1,
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyNever,
			DNSPolicy: corev1.DNSDefault, // there is no other
			// A node that has just come back carries a taint until its controller has seen it.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers:  []corev1.Container{app},
		},
	}
}

// get returns the answer to an HTTP request that succeeds.
func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s %v", url, resp.Status, err)
	}
	return strings.TrimSpace(string(body))
}

// TestRegistry shows a registry that asks who is there, behind TLS, and a link that is cut.
func TestRegistry(t *testing.T) {
	w := newWorld(t)
	r, err := w.AddRegistry(t.Context(), "private", cluster.RegistryOptions{User: "reader", Password: "secret", TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(image, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for password, fits := range map[string]bool{"secret": true, "guess": false} {
		repo := repository(t, r, "team/app:1", "reader", password)
		_, _, err := cluster.Image{Layers: []cluster.Files{{"file": image}}}.Push(within(t), repo)
		if (err == nil) != fits {
			t.Errorf("push with password %q: %v", password, err)
		}
	}
	repo := repository(t, r, "team/app:1", "reader", "secret")
	if err := r.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := repo.Resolve(short, "1"); err == nil {
		t.Error("the registry answers over a link that is cut")
	}
	if err := r.Mend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve(within(t), "1"); err != nil {
		t.Errorf("after the link was mended: %v", err)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Resolve(within(t), "1"); err != nil {
		t.Errorf("after a kill and a start: %v", err)
	}
}

// The control plane alone, without root: what tests of controllers use.
func TestControlPlaneAlone(t *testing.T) {
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make e2e")
	}
	c, err := cluster.StartControlPlane(within(t), tools, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
	if _, err := client.CoreV1().Namespaces().Create(within(t), space, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Get(within(t), space.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("after a crash of the API server: %v", err)
	}
}
