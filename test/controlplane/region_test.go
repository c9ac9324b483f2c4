package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/acr/acrtest"
	"github.com/shoal-project/shoal/internal/osstest"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
)

// Names of the sample.
const (
	bucket     = "models-poc"
	folder     = "qwen3-8b/v1"
	endpoint   = "oss-cn-hangzhou-internal.aliyuncs.com"
	hangzhou   = "model-distribution-registry.cn-hangzhou.cr.aliyuncs.com"
	beijing    = "model-distribution-registry.cn-beijing.cr.aliyuncs.com"
	openAPI    = "cr.cn-beijing.aliyuncs.com"
	accessKey  = "AKID"
	accessPass = "topsecret"
	pushUser   = "pusher"
	pushPass   = "s3same"
)

// surroundings are all that the sample names: the bucket, the two registries of ACR, one with a password and one with
// temporary tokens, and ACR's OpenAPI. The hub reaches them by --reach.
type surroundings struct {
	t       *testing.T
	server  *server
	oss     *osstest.Server
	acr     *acrtest.Server
	members map[string]*registryserver.Server // by host
	reach   []string

	mu     sync.Mutex
	faults map[string]func(*http.Request) registryserver.Fault // by host
	ossBad func(*http.Request) osstest.Fault

	binary, dir string
	account     string // kubeconfig of the controller's own account, which has the least rights
}

func newSurroundings(t *testing.T) *surroundings {
	t.Helper()
	t.Parallel() // most of the time they wait
	s := &surroundings{
		t: t, server: newServer(t), binary: program(t), dir: t.TempDir(),
		members: map[string]*registryserver.Server{}, faults: map[string]func(*http.Request) registryserver.Fault{},
	}
	s.oss = osstest.New(osstest.Config{Keys: map[string]osstest.Key{accessKey: {Secret: accessPass}}, Faults: func(r *http.Request) osstest.Fault {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ossBad == nil {
			return osstest.Fault{}
		}
		return s.ossBad(r)
	}})
	s.acr = acrtest.New(acrtest.Config{InstanceID: "cri-xxxxx", Keys: map[string]string{accessKey: accessPass}})
	s.serve(endpoint, s.oss)
	alibaba := s.serve(openAPI, s.acr)
	s.addRegistry(hangzhou, map[string]string{pushUser: pushPass}, nil)
	s.addRegistry(beijing, nil, func(r *http.Request) registryserver.Fault {
		challenge, ok := s.acr.Admits(r, alibaba+"/auth")
		if ok {
			return registryserver.Fault{}
		}
		return registryserver.Fault{Status: http.StatusUnauthorized, Header: http.Header{"Www-Authenticate": {challenge}}}
	})
	s.server.kubectl(t, "apply", "-f", filepath.Join(examples, "hub.yaml"))
	s.account = s.server.account(t, "shoal-controller")
	s.server.secret(t, "access", "Opaque", map[string]string{"akId": accessKey, "akSecret": accessPass})
	s.server.pushSecret(t, "push-secret", pushUser, pushPass)
	return s
}

// serve makes handler answer for host.
func (s *surroundings) serve(host string, handler http.Handler) (url string) {
	web := httptest.NewServer(handler)
	s.t.Cleanup(web.Close)
	s.reach = append(s.reach, "--reach", host+"="+web.URL)
	return web.URL
}

func (s *surroundings) addRegistry(host string, users map[string]string, gate func(*http.Request) registryserver.Fault) {
	s.t.Helper()
	r, err := registryserver.New(registryserver.Config{Dir: s.t.TempDir(), Users: users, Faults: func(req *http.Request) registryserver.Fault {
		s.mu.Lock()
		fault := s.faults[host]
		s.mu.Unlock()
		if fault != nil {
			if f := fault(req); f.Status != 0 || f.Cut || f.Flip || f.Wait != nil {
				return f
			}
		}
		if gate == nil || req.Header.Get("X-Test") != "" {
			return registryserver.Fault{}
		}
		return gate(req)
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
	})
	s.members[host] = r
	s.reach = append(s.reach, "--reach", host+"=http://"+r.Addr().String())
}

// fail makes the requests to a registry fail as fault says, nil as they should.
func (s *surroundings) fail(host string, fault func(*http.Request) registryserver.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[host] = fault
}

func (s *surroundings) failOSS(fault func(*http.Request) osstest.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ossBad = fault
}

// down is a registry whose every request fails.
func down(*http.Request) registryserver.Fault {
	return registryserver.Fault{Status: http.StatusServiceUnavailable}
}

// modelFiles are four shards and two small files.
func modelFiles(seed byte, shard int) map[string][]byte {
	files := map[string][]byte{"config.json": []byte(`{"model_type":"qwen3"}`), "tokenizer/vocab.txt": []byte("a b c")}
	for i := range byte(4) {
		content := make([]byte, shard)
		_, _ = rand.NewChaCha8([32]byte{seed, i}).Read(content) // never fails
		files[fmt.Sprintf("model-%d.safetensors", i)] = content
	}
	return files
}

func (s *surroundings) put(folder string, files map[string][]byte) {
	for name, content := range files {
		s.oss.Put(bucket, folder+"/"+name, osstest.Bytes(content))
	}
}

// read is how many bytes the bucket has sent of a folder.
func (s *surroundings) read(folder string, files map[string][]byte) (sum int64) {
	for name := range files {
		sum += s.oss.Sent(bucket, folder+"/"+name)
	}
	return sum
}

// hub is a running controller.
type hub struct {
	*exec.Cmd
	t    *testing.T
	logs *bytes.Buffer
	gone chan struct{}
}

// start runs the controller until the test ends.
func (s *surroundings) start(flags ...string) *hub {
	s.t.Helper()
	if slices.Contains(flags, "--packer=job") {
		s.server.kubectl(s.t, "apply", "-f", filepath.Join(examples, "hub-jobs.yaml"))
	}
	args := append([]string{"controller", "--dir", s.dir, "--kubeconfig", s.account, "--admin", "127.0.0.1:0", "--recheck", "2s"}, s.reach...)
	cmd := exec.CommandContext(s.t.Context(), s.binary, append(args, flags...)...)
	cmd.Env = append(os.Environ(), "ALIBABA_CLOUD_ACCESS_KEY_ID="+accessKey, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+accessPass, "HOME="+s.dir)
	cmd.WaitDelay = 10 * time.Second
	stderr, err := cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	h := &hub{Cmd: cmd, t: s.t, logs: &bytes.Buffer{}, gone: make(chan struct{})}
	go func() {
		defer close(h.gone)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			h.logs.Write(append(lines.Bytes(), '\n'))
		}
		_ = cmd.Wait()
	}()
	s.t.Cleanup(func() {
		h.end(syscall.SIGKILL)
		if s.t.Failed() {
			s.t.Logf("controller:\n%s", h.logs)
		}
		for _, secret := range []string{accessPass, pushPass} {
			if bytes.Contains(h.logs.Bytes(), []byte(secret)) {
				s.t.Error("the log tells a secret")
			}
		}
	})
	return h
}

func (h *hub) end(sig syscall.Signal) {
	_ = h.Process.Signal(sig) // it may have ended
	<-h.gone
}

// program builds shoal once for all tests.
func program(t *testing.T) string {
	t.Helper()
	built.Do(func() {
		dir, err := os.MkdirTemp("", "shoal-test-") //nolint:usetesting // it outlives this test
		if err == nil {
			built.path = filepath.Join(dir, "shoal")
			var out []byte
			if out, err = exec.CommandContext(context.Background(), "go", "build", "-o", built.path, "../../cmd/shoal").CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		built.err = err
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// TestMain removes what the tests share.
func TestMain(m *testing.M) {
	code := m.Run()
	if built.path != "" {
		os.RemoveAll(filepath.Dir(built.path))
	}
	os.Exit(code)
}

var built struct {
	sync.Once
	path string
	err  error
}

// secret makes or changes a Secret of namespace default.
func (s *server) secret(t *testing.T, name, kind string, data map[string]string) {
	t.Helper()
	object := map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name, "namespace": "default"},
		"type": kind, "stringData": data,
	}
	s.apply(t, object)
}

// account returns the file of a kubeconfig for an account of Shoal's namespace.
func (s *server) account(t *testing.T, name string) string {
	t.Helper()
	token := strings.TrimSpace(s.kubectl(t, "create", "token", name, "-n", shoalNS, "--duration=1h"))
	file := filepath.Join(t.TempDir(), "kubeconfig")
	writeFile(t, file, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}], users: [{name: u, user: {token: %s}}]}`,
		s.control.Config().Host, authority(t, s), token))
	return file
}

func (s *server) pushSecret(t *testing.T, name, user, password string) {
	t.Helper()
	s.secret(t, name, "kubernetes.io/dockerconfigjson", map[string]string{".dockerconfigjson": dockerConfig(user, password)})
}

// dockerConfig is a docker configuration for the first registry.
func dockerConfig(user, password string) string {
	return fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, hangzhou, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// apply gives an object to kubectl.
func (s *server) apply(t *testing.T, object any) {
	t.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "object.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "apply", "--server-side", "--force-conflicts", "-f", file)
}

// until follows a ModelDistribution until ok, and returns it as it is then.
func (s *server) until(t *testing.T, name, what string, ok func(*v1alpha1.ModelDistribution) bool) *v1alpha1.ModelDistribution {
	t.Helper()
	ctx := within(t)
	var last *v1alpha1.ModelDistribution
	for ctx.Err() == nil {
		list, err := s.distributions().List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Items {
			last = &v1alpha1.ModelDistribution{}
			decode(t, &list.Items[i], last)
			if ok(last) {
				return last
			}
		}
		follow, err := s.distributions().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: list.GetResourceVersion()})
		if err != nil {
			t.Fatal(err)
		}
		for e := range follow.ResultChan() {
			object, is := e.Object.(*unstructured.Unstructured)
			if !is || e.Type == watch.Deleted {
				break
			}
			last = &v1alpha1.ModelDistribution{}
			decode(t, object, last)
			if ok(last) {
				follow.Stop()
				return last
			}
		}
		follow.Stop()
	}
	raw, _ := json.MarshalIndent(last, "", "  ") // as much as there is
	t.Fatalf("%s: never: %s\n%s", name, what, raw)
	return nil
}

// conditionOf returns a condition's status, reason and message.
func conditionOf(md *v1alpha1.ModelDistribution, kind string) (status, reason, message string) {
	for _, c := range md.Status.Conditions {
		if c.Type == kind {
			return string(c.Status), c.Reason, c.Message
		}
	}
	return "", "", ""
}

func isTrue(kind string) func(*v1alpha1.ModelDistribution) bool {
	return func(md *v1alpha1.ModelDistribution) bool {
		status, _, _ := conditionOf(md, kind)
		return status == "True"
	}
}

// open opens a repository of a registry by a way that asks for no credentials.
func (s *surroundings) open(host, name string) *registry.Repository {
	s.t.Helper()
	find := auth.StaticCredential("", auth.EmptyCredential)
	if host == hangzhou {
		find = auth.StaticCredential(s.members[host].Addr().String(), auth.Credential{Username: pushUser, Password: pushPass})
	}
	repo, err := registry.Open(s.members[host].Addr().String()+"/"+name, registry.Config{PlainHTTP: true, Credential: find})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(repo.Close)
	if host == beijing {
		client := repo.Client.(*auth.Client)
		client.Header = http.Header{"X-Test": {"1"}}
	}
	return repo
}

// holds checks that a registry has the model, bit for bit.
func (s *surroundings) holds(host, repository, tag string, files map[string][]byte) {
	s.t.Helper()
	repo := s.open(host, repository)
	dir := filepath.Join(s.t.TempDir(), "model")
	image, err := model.Pull(s.t.Context(), repo, tag, dir, model.PullConfig{})
	if err != nil {
		s.t.Errorf("%s/%s:%s: %v", host, repository, tag, err)
		return
	}
	var got []string
	for _, layer := range image.Layers {
		for _, m := range layer.Members {
			got = append(got, m.Path)
			content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(m.Path)))
			if err != nil || !bytes.Equal(content, files[m.Path]) {
				s.t.Errorf("%s/%s:%s: %s has other bytes, %v", host, repository, tag, m.Path, err)
			}
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		s.t.Errorf("%s/%s:%s: files %v, want %v", host, repository, tag, got, want)
	}
}

// tagged reports whether a registry has a tag.
func (s *surroundings) tagged(host, repository, tag string) bool {
	s.t.Helper()
	_, err := s.open(host, repository).Resolve(s.t.Context(), tag)
	return err == nil
}
