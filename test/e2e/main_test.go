// Package e2e shows Shoal on real clusters: real API servers, schedulers, kubelets and containerds. Run it
// with make e2e; without SHOAL_TOOLS, the folder that make tools fills, its tests are skipped.
package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/test/cluster"
)

var (
	tools = os.Getenv("SHOAL_TOOLS")
	keep  = flag.Bool("keep", false, "keep the logs and files of a cluster whose test failed")
)

// patience is how long anything here may take. It bounds a hang, and is no assertion about speed.
const patience = 3 * time.Minute

// newWorld starts an empty world that ends with the test.
func newWorld(t *testing.T) *cluster.World {
	t.Helper()
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make e2e")
	}
	dir, err := os.MkdirTemp("", "shoal-e2e-*") //nolint:usetesting // it has to outlive a test that failed
	if err != nil {
		t.Fatal(err)
	}
	w, err := cluster.New(t.Context(), cluster.Config{Tools: tools, Dir: filepath.Join(dir, "world"), Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && *keep {
			t.Logf("what it was is kept: %s", dir)
			if out, err := exec.Command("cp", "-r", filepath.Join(dir, "world"), filepath.Join(dir, "kept")).CombinedOutput(); err != nil {
				t.Logf("%v: %s", err, out)
			}
		} else {
			defer os.RemoveAll(dir)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// within bounds what a test waits for.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func addCluster(t *testing.T, w *cluster.World, name string, nodes int) (*cluster.Cluster, kubernetes.Interface) {
	t.Helper()
	c, err := w.AddCluster(t.Context(), name, nodes)
	if err != nil {
		t.Fatal(err)
	}
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	return c, client
}

// program builds a program of ours and returns its file.
func program(t *testing.T, pkg string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), filepath.Base(pkg))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", file, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // an image has no libraries
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return file
}

// repository is a client of a repository of the registry; name may end with a tag.
func repository(t *testing.T, r *cluster.Registry, name, user, password string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(r.Host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	client := &auth.Client{Client: http.DefaultClient}
	if user != "" {
		client.Credential = auth.StaticCredential(r.Host, auth.Credential{Username: user, Password: password})
	}
	repo.Client, repo.PlainHTTP = client, r.CAFile == ""
	if r.CAFile == "" {
		return repo
	}
	ca, err := os.ReadFile(r.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatalf("no certificate in %s", r.CAFile)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	client.Client = &http.Client{Transport: transport}
	return repo
}

// pushApp pushes an image that runs a program, and returns its reference.
func pushApp(t *testing.T, r *cluster.Registry, name, file string) string {
	t.Helper()
	repo := repository(t, r, "test/"+name+":1", "", "")
	im := cluster.Image{Entrypoint: []string{"/" + name}, Layers: []cluster.Files{{name: file}}}
	if _, _, err := im.Push(within(t), repo); err != nil {
		t.Fatal(err)
	}
	return repo.Reference.String()
}

// run makes the Pod and waits until its first container has ended or, unless toEnd, is ready.
func run(t *testing.T, client kubernetes.Interface, pod *corev1.Pod, toEnd bool) *corev1.Pod {
	t.Helper()
	ctx := within(t)
	pods := client.CoreV1().Pods(pod.Namespace)
	if _, err := pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var now *corev1.Pod
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		var err error
		if now, err = pods.Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
			return false, err
		}
		ended := now.Status.Phase == corev1.PodFailed || now.Status.Phase == corev1.PodSucceeded
		return ended || !toEnd && ready(now), nil
	})
	if err != nil {
		t.Fatalf("Pod %s: %v\n%s", pod.Name, err, describe(client, pod))
	}
	return now
}

// until tries until there is no error.
func until(ctx context.Context, try func(context.Context) error) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		last = try(ctx)
		return last == nil, nil
	})
	return errors.Join(err, last)
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// describe says what the cluster says of a Pod.
func describe(client kubernetes.Interface, pod *corev1.Pod) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	text := ""
	if now, err := client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err == nil {
		text = fmt.Sprintf("phase %s %s; containers %+v\n", now.Status.Phase, now.Status.Message, now.Status.ContainerStatuses)
	}
	if raw, err := client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx); err == nil {
		text += fmt.Sprintf("it wrote: %s\n", raw)
	}
	events, err := client.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return text + err.Error()
	}
	for _, e := range events.Items {
		text += fmt.Sprintf("%s %s %s: %s\n", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return text
}

// logs returns what the Pod's container wrote.
func logs(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) string {
	t.Helper()
	raw, err := client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
