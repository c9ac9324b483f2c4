package controlplane

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/faults"
	"github.com/shoal-project/shoal/internal/osstest"
)

// kubelet stands where a kubelet and the Job controller would: it runs a Job's command as a process of this machine,
// with files where the mounts would be, and with the rights of the Job's service account.
type kubelet struct {
	*surroundings
	client kubernetes.Interface
	seen   map[string]bool // Jobs, by UID
}

func newKubelet(s *surroundings) *kubelet {
	s.t.Helper()
	client, err := kubernetes.NewForConfig(s.server.control.Config())
	if err != nil {
		s.t.Fatal(err)
	}
	return &kubelet{s, client, map[string]bool{}}
}

// job waits for a Job that was not seen before.
func (k *kubelet) job() *batchv1.Job {
	k.t.Helper()
	for ctx := within(k.t); ctx.Err() == nil; time.Sleep(50 * time.Millisecond) { // a kubelet's watch would not be shorter
		list, err := k.client.BatchV1().Jobs("default").List(ctx, metav1.ListOptions{LabelSelector: "shoal.dev/pack"})
		if err != nil {
			k.t.Fatal(err)
		}
		for i := range list.Items {
			if job := &list.Items[i]; !k.seen[string(job.UID)] {
				k.seen[string(job.UID)] = true
				return job
			}
		}
	}
	k.t.Fatal("there is no Job")
	return nil
}

// pod is a process that runs as a Pod of a Job would.
type pod struct {
	*exec.Cmd
	out  bytes.Buffer
	gone chan struct{}
}

// run starts a Pod of a Job, with an empty disk.
func (k *kubelet) run(job *batchv1.Job) *pod {
	k.t.Helper()
	dir := k.t.TempDir()
	spec := job.Spec.Template.Spec
	container := spec.Containers[0]
	places := map[string]string{} // by volume
	for _, v := range spec.Volumes {
		places[v.Name] = filepath.Join(dir, v.Name)
		files := map[string][]byte{}
		switch {
		case v.DownwardAPI != nil:
			item := v.DownwardAPI.Items[0]
			name := strings.TrimSuffix(strings.TrimPrefix(item.FieldRef.FieldPath, "metadata.annotations['"), "']")
			files[item.Path] = []byte(job.Spec.Template.Annotations[name])
		case v.Secret != nil:
			secret, err := k.client.CoreV1().Secrets(job.Namespace).Get(k.t.Context(), v.Secret.SecretName, metav1.GetOptions{})
			if err != nil {
				k.t.Fatal(err)
			}
			files = secret.Data
		case v.EmptyDir == nil:
			k.t.Fatalf("a volume of an unknown kind: %+v", v)
		}
		if err := os.Mkdir(places[v.Name], 0o700); err != nil {
			k.t.Fatal(err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(places[v.Name], name), content, 0o600); err != nil {
				k.t.Fatal(err)
			}
		}
	}
	secrets := filepath.Join(dir, "secrets") // the folder of those mounts
	if err := os.Mkdir(secrets, 0o700); err != nil {
		k.t.Fatal(err)
	}
	args := container.Args
	for _, m := range container.VolumeMounts {
		if name, ok := strings.CutPrefix(m.MountPath, "/secrets/"); ok {
			if err := os.Rename(places[m.Name], filepath.Join(secrets, name)); err != nil {
				k.t.Fatal(err)
			}
			continue
		}
		args = replace(args, m.MountPath, places[m.Name])
	}
	args = append(replace(args, "/secrets", secrets), "--kubeconfig", k.account(dir, job.Namespace, spec.ServiceAccountName))
	p := &pod{Cmd: exec.CommandContext(k.t.Context(), k.binary, args...), gone: make(chan struct{})}
	p.Env = append(os.Environ(), "ALIBABA_CLOUD_ACCESS_KEY_ID="+accessKey, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+accessPass, "HOME="+dir)
	p.Stderr = &p.out
	if err := p.Start(); err != nil {
		k.t.Fatal(err)
	}
	go func() {
		defer close(p.gone)
		_ = p.Wait()
	}()
	k.t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if k.t.Failed() {
			k.t.Logf("pod:\n%s", &p.out)
		}
		if bytes.Contains(p.out.Bytes(), []byte(accessPass)) || bytes.Contains(p.out.Bytes(), []byte(pushPass)) {
			k.t.Error("the log tells a secret")
		}
	})
	return p
}

// replace puts another path for that of a mount.
func replace(args []string, mount, at string) []string {
	var out []string
	for _, arg := range args {
		if rest, ok := strings.CutPrefix(arg, mount); ok && (rest == "" || rest[0] == '/') {
			arg = at + rest
		}
		out = append(out, arg)
	}
	return out
}

// account writes a kubeconfig with a token of a service account.
func (k *kubelet) account(dir, namespace, name string) string {
	k.t.Helper()
	config := clientcmdapi.NewConfig()
	rest := k.server.control.Config()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: rest.CAFile, CertificateAuthorityData: rest.CAData}
	config.AuthInfos["a"] = &clientcmdapi.AuthInfo{Token: strings.TrimSpace(k.server.kubectl(k.t, "create", "token", "-n", namespace, name))}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "a"}
	config.CurrentContext = "x"
	path := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		k.t.Fatal(err)
	}
	return path
}

func (p *pod) end(sig syscall.Signal) {
	_ = p.Process.Signal(sig) // it may have ended
	<-p.gone
}

// packObjects are how many objects a packing has in namespace default: Jobs, ConfigMaps, and what makes its account.
func (k *kubelet) packObjects() string {
	return strings.TrimSpace(k.server.kubectl(k.t, "get", "jobs,configmaps,serviceaccounts,roles,rolebindings", "-l", "shoal.dev/pack", "-o", "name"))
}

// waitGone waits until a Job is no more.
func (k *kubelet) waitGone(job *batchv1.Job) {
	k.t.Helper()
	for ctx := within(k.t); ; time.Sleep(50 * time.Millisecond) {
		now, err := k.client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && now.UID != job.UID {
			return
		}
		if err != nil {
			k.t.Fatal(err)
		}
	}
}

var inJobs = []string{"--packer=job", "--packer-image=registry.example.com/shoal:test"}

// TestPackJob: the sample is packed by a Job, with the rights of its account, and nothing of the Job is left.
func TestPackJob(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 20<<20)
	s.put(folder, files)
	s.start(inJobs...)
	k := newKubelet(s)
	s.server.create(t, theSample(t, "one"))
	job := k.job()
	raw, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte(accessPass)) || bytes.Contains(raw, []byte(pushPass)) {
		t.Error("the Job's specification tells a secret")
	}
	account := "system:serviceaccount:default:" + job.Spec.Template.Spec.ServiceAccountName
	for what, want := range map[string]string{
		"get configmaps/" + job.Name: "yes", "update configmaps/" + job.Name: "yes",
		"delete configmaps/" + job.Name: "no", "get configmaps/other": "no", "list configmaps": "no", "get secrets/access": "no", "create pods": "no",
	} {
		out, _ := exec.CommandContext(t.Context(), filepath.Join(tools, "kubectl"), append([]string{"--kubeconfig", s.server.kubeconfig, "auth", "can-i", "--as", account}, strings.Fields(what)...)...).Output() // it fails where it says no
		if got := strings.TrimSpace(string(out)); got != want {
			t.Errorf("may the Job %s: %s, want %s", what, got, want)
		}
	}
	p := k.run(job)
	md := s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	<-p.gone
	if p.ProcessState.ExitCode() != 0 {
		t.Errorf("the Pod ended with %s", p.ProcessState)
	}
	s.holds(hangzhou, "qwen/qwen3-8b", "v1", files)
	s.holds(beijing, "test/qwen3-8b", "v1", files)
	if p := md.Status.Packing; p == nil || p.DoneBytes < 80<<20 || md.Status.Revision == "" || md.Status.Bytes < 80<<20 {
		t.Errorf("packing %+v, status %+v", p, md.Status)
	}
	k.waitGone(job)
	if left := k.packObjects(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// TestPackJobKilled: Pod and controller are killed in the middle, and the next ones go on where they were.
func TestPackJobKilled(t *testing.T) {
	s := newSurroundings(t)
	shard := killedShard(t)
	files := modelFiles(1, int(shard))
	s.put(folder, files)
	// The first three quarters of each shard pass; the rest waits until the first Pod is dead.
	gate := make(chan struct{})
	s.failOSS(func(r *http.Request) osstest.Fault {
		var off, end int64
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "safetensors") && rangeOf(r, &off, &end) && end > shard*3/4 {
			return osstest.Fault{Fault: faults.Fault{Wait: gate}}
		}
		return osstest.Fault{}
	})
	hub := s.start(inJobs...)
	k := newKubelet(s)
	s.server.create(t, theSample(t, "one"))
	job := k.job()
	p := k.run(job)
	s.server.until(t, "one", "half of it is packed", func(md *v1alpha1.ModelDistribution) bool {
		return md.Status.Packing != nil && md.Status.Packing.DoneBytes > 2*shard
	})
	p.end(syscall.SIGKILL)
	hub.end(syscall.SIGKILL)
	close(gate)
	s.failOSS(nil)
	received, read := s.members[hangzhou].Received(), s.read(folder, files)
	s.start(inJobs...)
	k.run(job) // the same Job's next Pod
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	s.holds(hangzhou, "qwen/qwen3-8b", "v1", files)
	again, sent := s.read(folder, files)-read, s.members[hangzhou].Received()-received
	t.Logf("before the kill %d MiB were read and %d received, after it %d and %d, of %d", read>>20, received>>20, again>>20, sent>>20, 4*shard>>20)
	if again > 3*shard || sent > 3*shard {
		t.Errorf("after the kill %d bytes were read and %d sent, of %d", again, sent, 4*shard)
	}
	k.waitGone(job)
	if len(k.seen) != 1 {
		t.Errorf("%d Jobs", len(k.seen))
	}
}

// TestPackJobFaults: what goes wrong in a Job is said as if it had gone wrong here, and heals with a new Job.
func TestPackJobFaults(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 5<<20)
	s.put(folder, files)
	s.start(inJobs...)
	k := newKubelet(s)

	t.Run("Source", func(t *testing.T) {
		s.server.secret(t, "wrong", "Opaque", map[string]string{"akId": accessKey, "akSecret": "guess"})
		s.server.create(t, theSample(t, "one", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelSource.OSS.Secret = "wrong" }))
		p := k.run(k.job())
		<-p.gone
		if p.ProcessState.ExitCode() != 1 {
			t.Errorf("the Pod ended with %s", p.ProcessState)
		}
		s.server.until(t, "one", "its failure", func(md *v1alpha1.ModelDistribution) bool {
			_, reason, message := conditionOf(md, v1alpha1.ConditionSourceResolved)
			return reason == "SourceFailed" && strings.Contains(message, "SignatureDoesNotMatch")
		})
		s.server.secret(t, "wrong", "Opaque", map[string]string{"akId": accessKey, "akSecret": accessPass})
		k.run(k.job())
		s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	})

	t.Run("FirstRegistryDown", func(t *testing.T) { // the one near the source: the other is packed into
		s.fail(hangzhou, down)
		s.server.create(t, theSample(t, "two", func(md *v1alpha1.ModelDistribution) { md.Spec.ModelName = "two" }))
		<-k.run(k.job()).gone
		k.run(k.job())
		s.server.until(t, "two", "packed into the other registry", isTrue(v1alpha1.ConditionPackaged))
		s.fail(hangzhou, nil)
		s.server.until(t, "two", "Synced after it is up again", isTrue(v1alpha1.ConditionSynced))
		s.holds(hangzhou, "qwen/two", "v1", files)
	})

	t.Run("NoSecret", func(t *testing.T) { // no Pod is begun that would wait for it
		s.server.create(t, theSample(t, "three", func(md *v1alpha1.ModelDistribution) {
			md.Spec.ModelName, md.Spec.ModelSource.OSS.Secret = "three", "gone"
		}))
		s.server.until(t, "three", "its failure", func(md *v1alpha1.ModelDistribution) bool {
			_, reason, message := conditionOf(md, v1alpha1.ConditionSourceResolved)
			return reason == "SecretUnusable" && strings.Contains(message, "Secret gone")
		})
		s.server.kubectl(t, "delete", "md", "three")
		if left := k.packObjects(); left != "" {
			t.Errorf("left behind:\n%s", left)
		}
	})
}

// TestPackJobUnwanted: paused, a changed source and deletion end the Job; a Pod that runs on does no harm.
func TestPackJobUnwanted(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 5<<20)
	s.put(folder, files)
	s.put("other", files)
	gate := make(chan struct{})
	s.failOSS(func(r *http.Request) osstest.Fault {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "safetensors") {
			return osstest.Fault{Fault: faults.Fault{Wait: gate}}
		}
		return osstest.Fault{}
	})
	s.start(inJobs...)
	k := newKubelet(s)
	s.server.create(t, theSample(t, "one"))
	first := k.job()
	old := k.run(first)
	s.server.until(t, "one", "its revision", func(md *v1alpha1.ModelDistribution) bool { return md.Status.Revision != "" })

	s.server.kubectl(t, "patch", "md", "one", "--type=merge", "-p", `{"spec":{"paused":true}}`)
	k.waitGone(first)
	if left := k.packObjects(); !strings.Contains(left, "configmap/"+first.Name) {
		t.Errorf("what it goes on from is not kept: %s", left)
	}
	s.server.kubectl(t, "patch", "md", "one", "--type=merge", "-p", `{"spec":{"paused":false}}`)
	second := k.job()
	<-old.gone // it finds that another attempt has begun
	if !strings.Contains(old.out.String(), "another attempt") {
		t.Errorf("the first Pod says %s", &old.out)
	}
	kept, err := k.client.CoreV1().ConfigMaps("default").Get(t.Context(), first.Name, metav1.GetOptions{})
	if err != nil || kept.Data["report"] != "" {
		t.Errorf("the first Pod reports for the second: %v, %v", kept.Data, err)
	}

	s.server.kubectl(t, "patch", "md", "one", "--type=merge", "-p", `{"spec":{"modelSource":{"oss":{"path":"other"}}}}`)
	k.waitGone(second)
	third := k.job()
	if task := third.Spec.Template.Annotations["shoal.dev/pack-task"]; !strings.Contains(task, `"other"`) {
		t.Errorf("the third Job's task is %s", task)
	}
	close(gate)
	s.failOSS(nil)

	s.server.kubectl(t, "delete", "md", "one")
	if left := k.packObjects(); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// TestPackJobDies: a Job that has failed without a word is replaced by another one.
func TestPackJobDies(t *testing.T) {
	s := newSurroundings(t)
	files := modelFiles(1, 5<<20)
	s.put(folder, files)
	s.start(inJobs...)
	k := newKubelet(s)
	s.server.create(t, theSample(t, "one"))
	job := k.job()
	now := metav1.Now()
	job.Status.StartTime = &now
	for _, kind := range []batchv1.JobConditionType{batchv1.JobFailureTarget, batchv1.JobFailed} {
		job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{
			Type: kind, Status: corev1.ConditionTrue, Reason: "BackoffLimitExceeded", Message: "Job has reached the specified backoff limit", LastTransitionTime: now,
		})
	}
	if _, err := k.client.BatchV1().Jobs("default").UpdateStatus(t.Context(), job, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.server.until(t, "one", "its failure", func(md *v1alpha1.ModelDistribution) bool {
		_, _, message := conditionOf(md, v1alpha1.ConditionPackaged)
		return strings.Contains(message, "BackoffLimitExceeded") && strings.Contains(message, "kubectl -n default logs")
	})
	p := k.run(k.job())
	s.server.until(t, "one", "Synced", isTrue(v1alpha1.ConditionSynced))
	<-p.gone
	if p.ProcessState.ExitCode() != 0 {
		t.Errorf("the Pod ended with %s", p.ProcessState)
	}
}
