package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/faults"
	"github.com/shoal-project/shoal/internal/osstest"
	"github.com/shoal-project/shoal/test/cluster"
)

// TestPackJob: a model is packed by a Job on a node. Its Pod is killed in the middle, and the Job's next Pod reads and
// sends what was missing.
func TestPackJob(t *testing.T) {
	w := newWorld(t)
	registry, err := w.AddRegistry(t.Context(), "models", cluster.RegistryOptions{User: "pusher", Password: "s3same"})
	if err != nil {
		t.Fatal(err)
	}
	c, client := addCluster(t, w, "one", 1)
	kubectl := func(args ...string) (string, error) {
		args = append([]string{"--kubeconfig", c.Kubeconfig(cluster.Admin), "--cache-dir", t.TempDir()}, args...)
		out, err := exec.CommandContext(within(t), filepath.Join(tools, "kubectl"), args...).CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{
		{"apply", "--server-side", "-f", "../../charts/shoal/crds"},
		{"wait", "--for=condition=Established", "crd", "--all"},
		{"create", "secret", "generic", "access", "--from-literal=akId=AKID", "--from-literal=akSecret=topsecret"},
		{"create", "secret", "docker-registry", "push-secret", "--docker-server=" + registry.Host, "--docker-username=pusher", "--docker-password=s3same"},
	} {
		if out, err := kubectl(args...); err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}

	// The first three quarters of each shard pass; the rest waits until the first Pod is dead.
	const shard = 64 << 20
	gate := make(chan struct{})
	bucket := osstest.New(osstest.Config{Keys: map[string]osstest.Key{"AKID": {Secret: "topsecret"}}, Faults: func(r *http.Request) osstest.Fault {
		var off, end int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &end); r.Method == http.MethodGet && n == 2 && end >= shard*3/4 {
			return osstest.Fault{Fault: faults.Fault{Wait: gate}}
		}
		return osstest.Fault{}
	}})
	names := []string{"m/v1/model-0.safetensors", "m/v1/model-1.safetensors"}
	for i, name := range names {
		content := make([]byte, shard)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content) // never fails
		bucket.Put("models-poc", name, osstest.Bytes(content))
	}
	read := func() int64 { return bucket.Sent("models-poc", names[0]) + bucket.Sent("models-poc", names[1]) }
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", cluster.MachineIP+":0")
	if err != nil {
		t.Fatal(err)
	}
	web := &httptest.Server{Listener: l, Config: &http.Server{Handler: bucket}}
	web.Start()
	t.Cleanup(web.Close)

	binary := program(t, "../../cmd/shoal")
	const image = "shoal.test/shoal:1"
	var tar bytes.Buffer
	if err := (cluster.Image{Entrypoint: []string{"/shoal"}, Layers: []cluster.Files{{"shoal": binary}}}).WriteTar(&tar, image); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "shoal.tar")
	if err := os.WriteFile(file, tar.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[0].Import(within(t), file); err != nil {
		t.Fatal(err)
	}
	startController(t, binary, "--kubeconfig", c.Kubeconfig(cluster.Admin), "--packer=job", "--packer-image", image,
		"--packer-requests", "cpu=100m,memory=128Mi", "--reach", "oss-cn-hangzhou.aliyuncs.com="+web.URL)

	md := v1alpha1.ModelDistribution{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion().String(), Kind: "ModelDistribution"},
		ObjectMeta: metav1.ObjectMeta{Name: "one", Namespace: "default"},
		Spec: v1alpha1.ModelDistributionSpec{
			ModelName: "m", ModelVersion: "v1",
			ModelSource: v1alpha1.ModelSource{OSS: &v1alpha1.OSSSource{Region: "cn-hangzhou", Bucket: "models-poc", Path: "m/v1", Secret: "access"}},
			Targets: v1alpha1.Targets{Registries: []v1alpha1.RegistryTarget{
				{Registry: registry.Host, Insecure: true, Secret: "push-secret", Options: v1alpha1.RegistryOptions{Type: v1alpha1.RegistryGeneric}},
			}},
		},
	}
	apply(t, kubectl, &md)
	status := func() v1alpha1.ModelDistributionStatus {
		out, err := kubectl("get", "md", "one", "-o", "json")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var now v1alpha1.ModelDistribution
		if err := json.Unmarshal([]byte(out), &now); err != nil {
			t.Fatal(err)
		}
		return now.Status
	}
	var last v1alpha1.ModelDistributionStatus
	reach := func(what string, ok func() bool) {
		t.Helper()
		err := until(within(t), func(context.Context) error {
			if last = status(); ok() {
				return nil
			}
			return fmt.Errorf("not yet %s", what)
		})
		if err != nil {
			out, _ := kubectl("describe", "jobs,pods")
			t.Fatalf("%v: %+v\n%s", err, last, out)
		}
	}
	reach("three quarters", func() bool { return last.Packing != nil && last.Packing.DoneBytes >= 2*shard*3/4 })
	pods, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "shoal.dev/pack"})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("%d Pods, %v", len(pods.Items), err)
	}
	if got := pods.Items[0].Status.Phase; got != corev1.PodRunning {
		t.Errorf("the Pod is %s", got)
	}
	before := read()
	if out, err := kubectl("delete", "pod", pods.Items[0].Name, "--force", "--grace-period=0"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	close(gate)
	reach("Synced", func() bool { return len(last.Registries) == 1 && last.Registries[0].State == v1alpha1.RegistrySynced })
	again := read() - before
	t.Logf("%d MiB were read before the kill, %d after it", before>>20, again>>20)
	if again > 3*shard/2 {
		t.Errorf("after the kill %d bytes were read, of %d", again, 2*shard)
	}
	if _, err := repository(t, registry, "m", "pusher", "s3same").Resolve(within(t), "v1"); err != nil {
		t.Error(err)
	}
	reach("without a Job", func() bool {
		out, err := kubectl("get", "jobs,configmaps,roles,rolebindings,serviceaccounts", "-l", "shoal.dev/pack", "-o", "name")
		return err == nil && strings.TrimSpace(out) == ""
	})
}

// apply gives kubectl a ModelDistribution without a status.
func apply(t *testing.T, kubectl func(...string) (string, error), md *v1alpha1.ModelDistribution) {
	t.Helper()
	raw, err := json.Marshal(md)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	delete(object, "status")
	if raw, err = json.Marshal(object); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "md.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := kubectl("apply", "-f", file); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// startController runs the hub until the test ends.
func startController(t *testing.T, binary string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"controller", "--dir", t.TempDir(), "--admin", "127.0.0.1:0", "--recheck", "2s"}, args...)...)
	var out bytes.Buffer
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("controller:\n%s", &out)
		}
	})
}
