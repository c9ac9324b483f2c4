package controlplane

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller/clusters"
)

const (
	hubID     = "hub-uid"
	shoalNS   = "shoal-system"
	certUser  = "hub-of-shoal"
	pullName  = "pull"
	fleetName = "default.qwen3-8b-v1"
)

// fleet is a hub whose Inventory runs, and two clusters that can join it.
type fleet struct {
	*clusters.Inventory
	hub, a, b *server
	secrets   interface { // of the hub's namespace for clusters
		Create(context.Context, *corev1.Secret, metav1.CreateOptions) (*corev1.Secret, error)
		Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (*corev1.Secret, error)
		Delete(context.Context, string, metav1.DeleteOptions) error
	}
	queue workqueue.TypedRateLimitingInterface[reconcile.Request]
	log   *strings.Builder
}

func TestClusters(t *testing.T) {
	ctrllog.SetLogger(logr.Discard())
	f := &fleet{hub: newServer(t), a: newServer(t), b: newBareServer(t), log: &strings.Builder{}}
	for _, s := range []*server{f.hub, f.a, f.b} {
		s.kubectl(t, "apply", "-f", filepath.Join(examples, "member.yaml"))
	}
	f.b.kubectl(t, "create", "clusterrolebinding", certUser, "--clusterrole=shoal-hub", "--user="+certUser)
	f.b.kubectl(t, "create", "rolebinding", certUser, "-n", shoalNS, "--role=shoal-hub", "--user="+certUser)
	defer verifyNoLeak(t, f.hub, f.a, f.b)()
	client, err := kubernetes.NewForConfig(f.hub.control.Config())
	if err != nil {
		t.Fatal(err)
	}
	f.secrets = client.CoreV1().Secrets(shoalNS)
	defer func() {
		if text := f.log.String(); strings.Contains(text, "eyJ") || strings.Contains(text, "hush-hush") { // eyJ begins a JWT
			t.Errorf("the log has credentials:\n%s", text)
		}
	}()
	defer f.run(t)()

	t.Run("Hub", f.hubIsACluster)
	t.Run("Join", f.clustersJoin)
	t.Run("Match", f.targetsChoose)
	t.Run("Apply", f.replicasAreApplied)
	t.Run("Foreign", f.foreignIsLeftAlone)
	t.Run("Status", f.statusIsHeard)
	t.Run("Broken", f.brokenSecretsSayWhy)
	t.Run("Rotate", f.credentialsRotate)
	t.Run("Rights", f.rightsAreMissed)
	t.Run("Down", f.memberComesBack)
	t.Run("Remove", f.replicasAreRemoved)
	t.Run("Leave", f.clustersLeave)
}

// verifyNoLeak returns what fails the test where goroutines are left that run not now, once the connections of
// the test's own clients are closed.
func verifyNoLeak(t *testing.T, servers ...*server) func() {
	now := goleak.IgnoreCurrent()
	return func() {
		for _, s := range servers {
			transport, err := rest.TransportFor(s.control.Config()) // the library keeps one for all clients of a server
			if err != nil {
				t.Fatal(err)
			}
			utilnet.CloseIdleConnectionsFor(transport)
		}
		goleak.VerifyNone(t, now, goleak.IgnoreAnyFunction("github.com/shoal-project/shoal/test/cluster.(*Process).Start.func1"))
	}
}

// run runs the Inventory and listens to it as a controller does; what it returns ends both.
func (f *fleet) run(t *testing.T) func() {
	var err error
	f.Inventory, err = clusters.New(clusters.Config{
		REST: f.hub.control.Config(), ID: hubID, Namespace: shoalNS, Log: slog.New(slog.NewJSONHandler(f.log, nil)),
		Hub: &clusters.Cluster{Name: "hub", Region: "cn-hangzhou", Labels: map[string]string{"env": "test"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	f.queue = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	source := f.Source(func(_ context.Context, c clusters.Change) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: c.Cluster, Name: c.Replica}}}
	})
	stop := func() {
		cancel()
		f.queue.ShutDown()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	if err := errors.Join(source.Start(ctx, f.queue), source.WaitForSync(within(t))); err != nil {
		stop()
		t.Fatalf("%v\n%s", err, f.log)
	}
	return stop
}

// await waits until what it looks for is so; it looks again when the Inventory tells of the cluster, or of the
// replica in it, and at no other time.
func (f *fleet) await(t *testing.T, cluster, replica string, seen func() bool) {
	t.Helper()
	defer context.AfterFunc(within(t), f.queue.ShutDown)()
	for !seen() {
		for {
			r, ended := f.queue.Get()
			if ended {
				t.Fatalf("waited for %s %s; the clusters are %s", cluster, replica, f)
			}
			f.queue.Done(r)
			if r.Namespace == cluster && r.Name == replica {
				break
			}
		}
	}
}

// awaitErr waits until the cluster has an error of the reason with the text in it; "" is no error.
func (f *fleet) awaitErr(t *testing.T, name string, reason clusters.Reason, text string) {
	t.Helper()
	f.await(t, name, "", func() bool {
		c, ok := f.find(name)
		if !ok || c.Err == nil {
			return ok && reason == ""
		}
		return c.Err.Reason == reason && strings.Contains(c.Err.Message, text)
	})
	if c, _ := f.find(name); c.Since.IsZero() {
		t.Errorf("cluster %s is so since ever", name)
	}
	_, err := f.Client(name)
	if clusters.ReasonOf(err) != reason {
		t.Errorf("a client of cluster %s: %v", name, err)
	}
	if err != nil {
		t.Log(err)
	}
}

func (f *fleet) find(name string) (clusters.Cluster, bool) {
	for _, c := range f.List() {
		if c.Name == name {
			return c, true
		}
	}
	return clusters.Cluster{}, false
}

// String lists the clusters with their errors.
func (f *fleet) String() string {
	var lines []string
	for _, c := range f.List() {
		lines = append(lines, fmt.Sprintf("%s (%v)", c.Name, c.Err))
	}
	return strings.Join(lines, ", ")
}

// token returns a new token of the account in cluster a.
func (f *fleet) token(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(f.a.kubectl(t, "create", "token", "shoal-hub", "-n", shoalNS, "--duration=1h"))
}

func authority(t *testing.T, s *server) string {
	t.Helper()
	return read64(t, s.control.Config().CAFile)
}

// read64 returns a file in base64.
func read64(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

func argoConfig(token, ca string) string {
	return `{"bearerToken": "` + token + `", "tlsClientConfig": {"caData": "` + ca + `"}}`
}

func (f *fleet) kubeconfig(t *testing.T, user string) string {
	t.Helper()
	return `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "` + f.b.control.Config().Host + `", certificate-authority-data: ` + authority(t, f.b) + `}}], users: [{name: u, user: {` + user + `}}]}`
}

// create makes a Secret that describes a cluster.
func (f *fleet) create(t *testing.T, name string, labels map[string]string, data map[string]string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, StringData: data}
	if _, err := f.secrets.Create(within(t), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// set changes a key of such a Secret.
func (f *fleet) set(t *testing.T, name, key, value string) {
	t.Helper()
	patch := fmt.Sprintf(`{"data": {%q: %q}}`, key, base64.StdEncoding.EncodeToString([]byte(value)))
	f.patch(t, name, patch)
}

func (f *fleet) patch(t *testing.T, name, patch string) {
	t.Helper()
	if _, err := f.secrets.Patch(within(t), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (f *fleet) hubIsACluster(t *testing.T) {
	f.awaitErr(t, "hub", "", "")
	c, _ := f.find("hub")
	if !c.Hub || c.Region != "cn-hangzhou" || c.Labels["env"] != "test" || len(f.List()) != 1 {
		t.Errorf("the hub is %+v, the clusters are %s", c, f)
	}
}

// clustersJoin: by Argo CD's Secret with a token, and by a kubeconfig with a client certificate; the second before
// Shoal is installed there.
func (f *fleet) clustersJoin(t *testing.T) {
	f.create(t, "argo-a", map[string]string{"argocd.argoproj.io/secret-type": "cluster", "shoal.dev/region": "cn-beijing", "env": "production"}, map[string]string{
		"name": "a", "server": f.a.control.Config().Host, "config": argoConfig(f.token(t), authority(t, f.a)),
	})
	f.awaitErr(t, "a", "", "")
	if c, _ := f.find("a"); c.Region != "cn-beijing" || c.Secret != shoalNS+"/argo-a" || c.Hub || c.Insecure {
		t.Errorf("%+v", c)
	}
	cert, key, err := f.b.control.Certificate(certUser)
	if err != nil {
		t.Fatal(err)
	}
	user := "client-certificate-data: " + read64(t, cert) + ", client-key-data: " + read64(t, key)
	f.create(t, "b", map[string]string{"sigs.k8s.io/multicluster-runtime-kubeconfig": "true"}, map[string]string{"kubeconfig": f.kubeconfig(t, user)})
	f.awaitErr(t, "b", clusters.NotInstalled, "kubectl apply --server-side -f charts/shoal/crds")
	f.b.install(t)
	f.awaitErr(t, "b", "", "")
}

func (f *fleet) targetsChoose(t *testing.T) {
	for want, targets := range map[string]*v1alpha1.ClusterTargets{
		"a b hub":       {AllClusters: true},
		"b hub nowhere": {Names: []v1alpha1.ClusterName{"nowhere", "hub", "b"}},
		"a":             {Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "production"}}},
		"a hub":         {Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "env", Operator: metav1.LabelSelectorOpExists}}}},
	} {
		chosen, err := f.Match(targets)
		var names []string
		for _, c := range chosen {
			names = append(names, c.Name)
			if (c.Err != nil) != (c.Name == "nowhere") {
				t.Errorf("cluster %s: %v", c.Name, c.Err)
			}
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("got %v (%v), want %s", names, err, want)
		}
	}
	// A label changes what a selector chooses, and nothing about the connection.
	before, err := f.Client("b")
	if err != nil {
		t.Fatal(err)
	}
	f.patch(t, "b", `{"metadata": {"labels": {"env": "production"}, "annotations": {"topology.kubernetes.io/region": "cn-shanghai"}}}`)
	f.await(t, "b", "", func() bool {
		c, _ := f.find("b")
		return c.Labels["env"] == "production" && c.Region == "cn-shanghai"
	})
	if after, err := f.Client("b"); after != before {
		t.Errorf("a label cost the connection (%v)", err)
	}
}

func fleetReplica() *shoalv1alpha1.ModelReplica {
	return &shoalv1alpha1.ModelReplica{
		ObjectMeta: metav1.ObjectMeta{Name: fleetName, Labels: map[string]string{"app": "qwen"}},
		Spec: shoalv1alpha1.ModelReplicaSpec{
			ModelName: "qwen3-8b", ModelVersion: "v1", Reference: "registry.example.com/qwen/qwen3-8b@" + digest, Bytes: 16 << 30,
			PullSecret: pullName, Volume: v1alpha1.VolumeCSI, ClaimName: sampleName, Namespaces: []v1alpha1.NamespaceName{"default"},
			PreloadConfig: &v1alpha1.PreloadConfig{Tier: v1alpha1.TierDisk},
		},
	}
}

func pullSecret(password string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: pullName, Namespace: "elsewhere"},
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": {"registry.example.com": {"username": "a", "password": "hush-hush-` + password + `"}}}`)},
	}
}

// versions returns the resource versions of the replica and its pull Secret, as the administrator sees them; ""
// is none.
func versions(t *testing.T, s *server) (replica, pull string) {
	t.Helper()
	for _, part := range []struct {
		version *string
		args    []string
	}{{&replica, []string{"modelreplica", fleetName}}, {&pull, []string{"secret", pullName, "-n", shoalNS}}} {
		*part.version = s.kubectl(t, append([]string{"get", "--ignore-not-found", "-o", "jsonpath={.metadata.resourceVersion}"}, part.args...)...)
	}
	return replica, pull
}

// replicasAreApplied: in each cluster, with the least rights; again without an effect; changed and rotated.
func (f *fleet) replicasAreApplied(t *testing.T) {
	for name, s := range map[string]*server{"hub": f.hub, "a": f.a, "b": f.b} {
		t.Run(name, func(t *testing.T) {
			apply := func(change func(*shoalv1alpha1.ModelReplica), pull *corev1.Secret) {
				t.Helper()
				r := fleetReplica()
				change(r)
				if err := f.Apply(within(t), name, r, pull); err != nil {
					t.Fatal(err)
				}
			}
			asIs := func(*shoalv1alpha1.ModelReplica) {}
			apply(asIs, pullSecret("1"))
			f.await(t, name, fleetName, func() bool {
				r, err := f.Replica(within(t), name, fleetName)
				return err == nil && r.Labels[clusters.HubLabel] == hubID && r.Labels["app"] == "qwen"
			})
			replica, pull := versions(t, s)
			apply(asIs, pullSecret("1"))
			if r, p := versions(t, s); r != replica || p != pull || r == "" || p == "" {
				t.Errorf("applied again, the replica went from version %s to %s, the Secret from %s to %s", replica, r, pull, p)
			}
			apply(func(r *shoalv1alpha1.ModelReplica) { r.Spec.PreloadConfig, r.Spec.Paused = nil, true }, pullSecret("2"))
			f.await(t, name, fleetName, func() bool {
				r, err := f.Replica(within(t), name, fleetName)
				return err == nil && r.Spec.Paused && r.Spec.PreloadConfig == nil
			})
			config := s.kubectl(t, "get", "secret", pullName, "-n", shoalNS, "-o", `jsonpath={.type} {.data.\.dockerconfigjson}`)
			if want := "kubernetes.io/dockerconfigjson " + base64.StdEncoding.EncodeToString(pullSecret("2").Data[corev1.DockerConfigJsonKey]); config != want {
				t.Errorf("the rotated Secret is %s, want %s", config, want)
			}
			// A second replica shares the Secret, and the first does without it.
			apply(func(r *shoalv1alpha1.ModelReplica) { r.Name = "default.other" }, pullSecret("2"))
			apply(func(r *shoalv1alpha1.ModelReplica) { r.Spec.PullSecret = "" }, nil)
			if _, p := versions(t, s); p == "" {
				t.Error("a Secret was deleted that a replica uses")
			}
			apply(asIs, pullSecret("2"))
			if err := f.Remove(within(t), name, "default.other"); err != nil {
				t.Fatal(err)
			}
			if _, p := versions(t, s); p == "" {
				t.Error("a Secret was deleted that a replica uses")
			}
			apply(func(r *shoalv1alpha1.ModelReplica) { r.Spec.PullSecret = "" }, nil)
			if _, p := versions(t, s); p != "" {
				t.Error("a Secret that no replica uses is still there")
			}
			apply(asIs, pullSecret("3"))
		})
	}
}

// foreignIsLeftAlone: what another hub, or a person, made.
func (f *fleet) foreignIsLeftAlone(t *testing.T) {
	for name, tc := range map[string]struct{ label, want string }{
		"another hub": {clusters.HubLabel + "=other-hub", "belongs to the hub other-hub"},
		"a person":    {clusters.HubLabel + "-", "not made by a hub"},
	} {
		t.Run(name, func(t *testing.T) {
			f.a.kubectl(t, "label", "--overwrite", "modelreplica", fleetName, tc.label)
			err := f.Apply(within(t), "a", fleetReplica(), pullSecret("4"))
			if clusters.ReasonOf(err) != clusters.Foreign || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Apply over a foreign replica: %v", err)
			}
			replica, pull := versions(t, f.a)
			if err := f.Remove(within(t), "a", fleetName); err != nil {
				t.Errorf("Remove of a foreign replica: %v", err)
			}
			if r, p := versions(t, f.a); r != replica || p != pull {
				t.Error("Remove changed a foreign replica or its Secret")
			}
			f.a.kubectl(t, "label", "--overwrite", "modelreplica", fleetName, clusters.HubLabel+"="+hubID)

			f.a.kubectl(t, "label", "--overwrite", "secret", pullName, "-n", shoalNS, tc.label)
			err = f.Apply(within(t), "a", fleetReplica(), pullSecret("4"))
			if clusters.ReasonOf(err) != clusters.Foreign || !strings.Contains(err.Error(), "Secret pull") || strings.Contains(err.Error(), "hush-hush") {
				t.Errorf("Apply over a foreign Secret: %v", err)
			}
			f.a.kubectl(t, "label", "--overwrite", "secret", pullName, "-n", shoalNS, clusters.HubLabel+"="+hubID)
			if err := f.Apply(within(t), "a", fleetReplica(), pullSecret("4")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// statusIsHeard: what the controller of a cluster writes.
func (f *fleet) statusIsHeard(t *testing.T) {
	warm := []byte(`{"status": {"warm": "3/3"}}`)
	must(f.a.replicas().Patch(within(t), fleetName, types.MergePatchType, warm, metav1.PatchOptions{}, "status"))(t)
	f.await(t, "a", fleetName, func() bool {
		r, err := f.Replica(within(t), "a", fleetName)
		return err == nil && r.Status.Warm == "3/3"
	})
	if _, err := f.Replica(within(t), "a", "default.none"); !apierrors.IsNotFound(err) {
		t.Errorf("a replica that is not there: %v", err)
	}
	if _, err := f.Replica(within(t), "nowhere", fleetName); clusters.ReasonOf(err) != clusters.Unknown {
		t.Errorf("a replica in a cluster that is not there: %v", err)
	}
}

func (f *fleet) brokenSecretsSayWhy(t *testing.T) {
	argo := map[string]string{"argocd.argoproj.io/secret-type": "cluster"}
	kube := map[string]string{"sigs.k8s.io/multicluster-runtime-kubeconfig": "true"}
	const never = "https://127.0.0.1:1"
	for _, tc := range []struct {
		name   string
		labels map[string]string
		data   map[string]string
		reason clusters.Reason
		want   string
	}{
		{"wrong-token", argo, map[string]string{"server": f.a.control.Config().Host, "config": argoConfig("hush-hush", authority(t, f.a))}, clusters.Denied, "does not know the credentials in Secret shoal-system/wrong-token"},
		{"wrong-ca", argo, map[string]string{"server": f.a.control.Config().Host, "config": argoConfig("hush-hush", authority(t, f.b))}, clusters.Unreachable, "not signed by the CA in Secret shoal-system/wrong-ca"},
		{"wrong-port", argo, map[string]string{"server": never, "config": argoConfig("hush-hush", authority(t, f.b))}, clusters.Unreachable, "127.0.0.1:1 does not answer"},
		{"exec", argo, map[string]string{"server": never, "config": `{"execProviderConfig": {"command": "id"}}`}, clusters.Invalid, "run programs on the hub"},
		{"exec-kubeconfig", kube, map[string]string{"kubeconfig": f.kubeconfig(t, "exec: {apiVersion: client.authentication.k8s.io/v1, command: id, interactiveMode: Never}")}, clusters.Invalid, "run programs on the hub"},
		{"broken-kubeconfig", kube, map[string]string{"kubeconfig": "hush-hush"}, clusters.Invalid, "is no kubeconfig"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.data["name"] = tc.name
			f.create(t, tc.name, tc.labels, tc.data)
			f.awaitErr(t, tc.name, tc.reason, tc.want)
			err := f.Apply(within(t), tc.name, fleetReplica(), nil)
			if clusters.ReasonOf(err) != tc.reason || strings.Contains(err.Error(), "hush-hush") {
				t.Errorf("Apply: %v", err)
			}
			if err := f.secrets.Delete(within(t), tc.name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			f.await(t, tc.name, "", func() bool { _, found := f.find(tc.name); return !found })
		})
	}
	// A second Secret with the name of a cluster is no reason to lose the first.
	f.create(t, "zz-second", argo, map[string]string{"name": "a", "server": never, "config": argoConfig("hush-hush", authority(t, f.b))})
	f.await(t, "a", "", func() bool {
		return slices.ContainsFunc(f.List(), func(c clusters.Cluster) bool {
			return c.Secret == shoalNS+"/zz-second" && c.Err != nil && strings.Contains(c.Err.Message, "the name of Secret shoal-system/argo-a")
		})
	})
	if _, err := f.Client("a"); err != nil {
		t.Errorf("the first Secret: %v", err)
	}
	if err := f.secrets.Delete(within(t), "zz-second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// credentialsRotate: from a good token to a wrong one to another good one, while all runs.
func (f *fleet) credentialsRotate(t *testing.T) {
	old, err := f.Client("a")
	if err != nil {
		t.Fatal(err)
	}
	f.set(t, "argo-a", "config", argoConfig("hush-hush", authority(t, f.a)))
	f.awaitErr(t, "a", clusters.Denied, "put new ones there")
	err = old.Get(within(t), client.ObjectKey{Name: fleetName}, &shoalv1alpha1.ModelReplica{})
	if err == nil || !strings.Contains(err.Error(), "not used any more") {
		t.Errorf("a client with former credentials: %v", err)
	}
	f.set(t, "argo-a", "config", argoConfig(f.token(t), authority(t, f.a)))
	f.awaitErr(t, "a", "", "")
	if err := f.Apply(within(t), "a", fleetReplica(), pullSecret("5")); err != nil {
		t.Fatal(err)
	}
}

// rightsAreMissed: what the error says where one of the roles was not given.
func (f *fleet) rightsAreMissed(t *testing.T) {
	f.a.kubectl(t, "delete", "rolebinding", "shoal-hub", "-n", shoalNS)
	// Its API server hears of that itself within a moment: the first request that it refuses is the one to read.
	err := f.Apply(within(t), "a", fleetReplica(), pullSecret("6"))
	for err == nil {
		err = f.Apply(within(t), "a", fleetReplica(), pullSecret("6"))
	}
	if clusters.ReasonOf(err) != clusters.Denied || !strings.Contains(err.Error(), "examples/member.yaml") {
		t.Errorf("without the right to read Secrets: %v", err)
	}
	f.a.kubectl(t, "apply", "-f", filepath.Join(examples, "member.yaml"))
}

// memberComesBack: a member that is killed is Unreachable, costs the others nothing, and is heard of again with
// what changed meanwhile.
func (f *fleet) memberComesBack(t *testing.T) {
	if err := f.b.control.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	f.awaitErr(t, "b", clusters.Unreachable, "does not answer")
	if err := f.Apply(within(t), "b", fleetReplica(), nil); clusters.ReasonOf(err) != clusters.Unreachable {
		t.Errorf("Apply into a cluster that is down: %v", err)
	}
	if chosen, err := f.Match(&v1alpha1.ClusterTargets{AllClusters: true}); err != nil || len(chosen) != 3 {
		t.Errorf("all clusters are %v (%v)", chosen, err)
	}
	warm := []byte(`{"status": {"warm": "2/3"}}`)
	must(f.a.replicas().Patch(within(t), fleetName, types.MergePatchType, warm, metav1.PatchOptions{}, "status"))(t)
	f.await(t, "a", fleetName, func() bool {
		r, err := f.Replica(within(t), "a", fleetName)
		return err == nil && r.Status.Warm == "2/3"
	})
	if err := f.b.control.APIServer.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	f.awaitErr(t, "b", "", "")
	must(f.b.replicas().Patch(within(t), fleetName, types.MergePatchType, warm, metav1.PatchOptions{}, "status"))(t)
	f.await(t, "b", fleetName, func() bool {
		r, err := f.Replica(within(t), "b", fleetName)
		return err == nil && r.Status.Warm == "2/3"
	})
}

func (f *fleet) replicasAreRemoved(t *testing.T) {
	for name, s := range map[string]*server{"hub": f.hub, "a": f.a, "b": f.b} {
		if err := f.Remove(within(t), name, fleetName); err != nil {
			t.Fatal(err)
		}
		if r, p := versions(t, s); r != "" || p != "" {
			t.Errorf("cluster %s still has its replica %q or Secret %q", name, r, p)
		}
		f.await(t, name, fleetName, func() bool {
			_, err := f.Replica(within(t), name, fleetName)
			return apierrors.IsNotFound(err)
		})
		if err := f.Remove(within(t), name, fleetName); err != nil {
			t.Errorf("removed again: %v", err)
		}
	}
}

func (f *fleet) clustersLeave(t *testing.T) {
	for _, name := range []string{"argo-a", "b"} {
		if err := f.secrets.Delete(within(t), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		f.await(t, name, "", func() bool { _, found := f.find(name); return !found })
	}
	if _, err := f.Client("a"); clusters.ReasonOf(err) != clusters.Unknown {
		t.Errorf("a cluster that left: %v", err)
	}
}
