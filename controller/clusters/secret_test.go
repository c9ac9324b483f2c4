package clusters

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/certs"
)

// secretText is in every credential here, and in no error.
const secretText = "hush-hush"

// ca returns a CA's certificate in PEM.
func ca(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := certs.CreateCA(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func argoSecret(name, server, config string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shoal-system", Name: "secret-" + name, Labels: map[string]string{"argocd.argoproj.io/secret-type": "cluster"}},
		Data:       map[string][]byte{"name": []byte(name), "server": []byte(server), "config": []byte(config)},
	}
}

func kubeconfigSecret(name, kubeconfig string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shoal-system", Name: name, Labels: map[string]string{"sigs.k8s.io/multicluster-runtime-kubeconfig": "true"}},
		Data:       map[string][]byte{"kubeconfig": []byte(kubeconfig)},
	}
}

func kubeconfig(cluster, user string) string {
	return `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {` + cluster + `}}], users: [{name: u, user: {` + user + `}}]}`
}

func TestReadSecret(t *testing.T) {
	const server = "https://api.example.com:6443"
	trust := base64.StdEncoding.EncodeToString([]byte(ca(t)))
	argo := func(config string) *corev1.Secret { return argoSecret("beijing", server, config) }
	kube := func(cluster, user string) *corev1.Secret {
		return kubeconfigSecret("beijing", kubeconfig(cluster, user))
	}
	const token = `token: ` + secretText
	for _, tc := range []struct {
		name   string
		secret *corev1.Secret
		want   string // part of the error; "" means none
	}{
		{"Argo, token and CA", argo(`{"bearerToken": "` + secretText + `", "tlsClientConfig": {"caData": "` + trust + `"}}`), ""},
		{"Argo, username", argo(`{"username": "a", "password": "` + secretText + `"}`), ""},
		{"Argo, insecure", argo(`{"bearerToken": "` + secretText + `", "tlsClientConfig": {"insecure": true}}`), ""},
		{"Argo, proxy", argo(`{"bearerToken": "` + secretText + `", "proxyUrl": "http://proxy:3128"}`), ""},
		{"Argo, a field of tomorrow", argo(`{"bearerToken": "` + secretText + `", "new": 1}`), ""},
		{"Argo, insecure and CA", argo(`{"bearerToken": "` + secretText + `", "tlsClientConfig": {"insecure": true, "caData": "` + trust + `"}}`), "certificates cannot be used"},
		{"Argo, no name", argoSecret("", server, `{}`), "give the cluster a name"},
		{"Argo, a name in capitals", argoSecret("Beijing", server, `{}`), "give the cluster a name"},
		{"Argo, no config", argo(``), "the key config has to be JSON"},
		{"Argo, no JSON", argo(secretText), "byte 1 is not JSON"},
		{"Argo, another type", argo(`{"bearerToken": ["` + secretText + `"]}`), "the value of bearerToken is of another type"},
		{"Argo, no base64", argo(`{"tlsClientConfig": {"caData": "` + secretText + `"}}`), "are base64"},
		{"Argo, exec", argo(`{"bearerToken": "` + secretText + `", "execProviderConfig": {"command": "id"}}`), "run programs on the hub"},
		{"Argo, AWS", argo(`{"awsAuthConfig": {"clusterName": "a"}}`), "run programs on the hub"},
		{"Argo, exec null", argo(`{"bearerToken": "` + secretText + `", "execProviderConfig": null}`), ""},
		{"Argo, no credentials", argo(`{}`), "it has no credentials"},
		{"Argo, certificate without key", argo(`{"tlsClientConfig": {"certData": "` + trust + `"}}`), "give both"},
		{"Argo, CA of rubbish", argo(`{"bearerToken": "` + secretText + `", "tlsClientConfig": {"caData": "aHVzaC1odXNo"}}`), "certificates cannot be used"},
		{"Argo, a proxy of rubbish", argo(`{"bearerToken": "a", "proxyUrl": "ftp://` + secretText + `"}`), "the proxy's URL"},
		{"Argo, plain HTTP", argoSecret("a", "http://"+secretText, `{"bearerToken": "a"}`), "has to be https://"},
		{"Argo, no server", argoSecret("a", "", `{"bearerToken": "a"}`), "has to be https://"},
		{"Argo, a user in the URL", argoSecret("a", "https://u:"+secretText+"@host", `{"bearerToken": "a"}`), "has to be https://"},
		{"kubeconfig, token and CA", kube("server: '"+server+"', certificate-authority-data: "+trust, token), ""},
		{"kubeconfig, insecure", kube("server: '"+server+"', insecure-skip-tls-verify: true", token), ""},
		{"kubeconfig, proxy", kube("server: '"+server+"', proxy-url: 'socks5://proxy'", token), ""},
		{"kubeconfig, none", &corev1.Secret{ObjectMeta: kube("", "").ObjectMeta}, "put a kubeconfig under the key"},
		{"kubeconfig, rubbish", kubeconfigSecret("a", secretText), "is no kubeconfig"},
		{"kubeconfig, a list", kubeconfigSecret("a", `{apiVersion: v1, kind: Config, users: `+secretText+`}`), "is no kubeconfig"},
		{"kubeconfig, no context", kubeconfigSecret("a", `{apiVersion: v1, kind: Config}`), "kubectl config use-context"},
		{"kubeconfig, no cluster", kubeconfigSecret("a", `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}]}`), "a cluster that is not in it"},
		{"kubeconfig, no user", kubeconfigSecret("a", `{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: "https://a"}}]}`), "a user who is not in it"},
		{"kubeconfig, no server", kube("", token), "cannot be used"},
		{"kubeconfig, plain HTTP", kube("server: 'http://a'", token), "has to be https://"},
		{"kubeconfig, no credentials", kube("server: '"+server+"'", ""), "it has no credentials"},
		{"kubeconfig, exec", kube("server: '"+server+"'", "exec: {apiVersion: client.authentication.k8s.io/v1, command: id, interactiveMode: Never}"), "run programs on the hub"},
		{"kubeconfig, auth-provider", kube("server: '"+server+"'", "auth-provider: {name: gcp}"), "run programs on the hub"},
		{"kubeconfig, token file", kube("server: '"+server+"'", "tokenFile: /etc/passwd"), "the kubeconfig names files"},
		{"kubeconfig, certificate file", kube("server: '"+server+"'", "client-certificate: /a, client-key: /b"), "the kubeconfig names files"},
		{"kubeconfig, CA file", kube("server: '"+server+"', certificate-authority: /a", token), "the kubeconfig names files"},
		{"kubeconfig, a proxy of rubbish", kube("server: '"+server+"', proxy-url: 'ftp://a'", token), "the proxy's URL"},
		{"kubeconfig, two ways to log in", kube("server: '"+server+"'", token+", username: a, password: b"), "cannot be used"},
		{"no label", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b"}}, "describes no cluster"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := read(tc.secret)
			switch {
			case tc.want == "" && (e.Err != nil || e.connection == nil || e.Name != "beijing"):
				t.Errorf("cluster %q, connection %v, error: %v", e.Name, e.connection, e.Err)
			case tc.want != "" && (e.Err == nil || e.connection != nil || !strings.Contains(e.Err.Message, tc.want)):
				t.Errorf("error %v, want %q", e.Err, tc.want)
			case tc.want != "" && (e.Err.Reason != Invalid || strings.Contains(e.Err.Message, secretText) || !strings.Contains(e.Err.Message, e.Secret)):
				t.Errorf("the error has the reason %s, quotes a value, or names no Secret: %v", e.Err.Reason, e.Err)
			case e.Insecure != strings.HasSuffix(tc.name, "insecure"):
				t.Errorf("insecure is %v", e.Insecure)
			}
		})
	}
}

func TestReadRegion(t *testing.T) {
	for name, tc := range map[string]struct {
		labels, annotations map[string]string
		want                string
	}{
		"none":         {nil, nil, ""},
		"ours":         {map[string]string{"shoal.dev/region": "a", "topology.kubernetes.io/region": "b"}, nil, "a"},
		"annotation":   {map[string]string{"topology.kubernetes.io/region": "b"}, map[string]string{"shoal.dev/region": "a"}, "a"},
		"Kubernetes's": {map[string]string{"topology.kubernetes.io/region": "b"}, nil, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			s := kubeconfigSecret("a", "")
			maps.Copy(s.Labels, tc.labels)
			s.Annotations = tc.annotations
			if got := read(s).Region; got != tc.want {
				t.Errorf("region %q, want %q", got, tc.want)
			}
		})
	}
}

func TestRoster(t *testing.T) {
	made := func(s *corev1.Secret, name string, minute int) corev1.Secret {
		s.Name, s.CreationTimestamp = name, metav1.NewTime(time.Unix(int64(minute)*60, 0))
		return *s
	}
	good := func(name string) *corev1.Secret { return argoSecret(name, "https://a", `{"bearerToken": "a"}`) }
	hub := &entry{Cluster: Cluster{Name: "hub", Hub: true}, named: true}
	var got []string
	for _, e := range roster(hub, []corev1.Secret{
		made(good("b"), "late", 2), made(good("b"), "early", 1), made(good("hub"), "second", 0), made(good("a"), "x", 3),
		made(argoSecret("", "", ""), "a", 0), // no name: it does not take that of its Secret from another
	}) {
		line := e.Name + " " + e.Secret
		if e.named {
			line += " named"
		}
		if e.Err != nil {
			line += ": " + e.Err.Message
		}
		got = append(got, line)
	}
	want := []string{
		"a shoal-system/a: cluster a: Secret shoal-system/a: give the cluster a name under the key name: lower-case letters, digits, '-' and '.'",
		"a shoal-system/x named",
		"b shoal-system/early named",
		"b shoal-system/late: cluster b: Secret shoal-system/late gives the name of Secret shoal-system/early: give its cluster another name, or delete it",
		"hub  named",
		"hub shoal-system/second: cluster hub: Secret shoal-system/second gives the name of the hub itself: give its cluster another name, or delete it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMatch(t *testing.T) {
	all := []Cluster{
		{Name: "a", Labels: map[string]string{"env": "production"}},
		{Name: "b", Labels: map[string]string{"env": "test"}, Err: problem("b", Unreachable, "down")},
		{Name: "hub", Hub: true},
	}
	for name, tc := range map[string]struct {
		targets *v1alpha1.ClusterTargets
		want    string
	}{
		"none":     {nil, ""},
		"all":      {&v1alpha1.ClusterTargets{AllClusters: true}, "a b! hub"},
		"names":    {&v1alpha1.ClusterTargets{Names: []v1alpha1.ClusterName{"hub", "zz", "a"}}, "a hub zz?"},
		"selector": {&v1alpha1.ClusterTargets{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"env": "test"}}}, "b!"},
		"expression": {&v1alpha1.ClusterTargets{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "env", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"test"}},
		}}}, "a hub"},
	} {
		t.Run(name, func(t *testing.T) {
			chosen, err := match(slices.Clone(all), tc.targets)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range chosen {
				switch {
				case c.Err == nil:
					got = append(got, c.Name)
				case c.Err.Reason == Unknown:
					got = append(got, c.Name+"?")
				default:
					got = append(got, c.Name+"!")
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
	wrong := &v1alpha1.ClusterTargets{Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "env", Operator: "Is"}}}}
	if _, err := match(all, wrong); err == nil || !strings.Contains(err.Error(), "targets.clusters.selector") {
		t.Errorf("a wrong selector: %v", err)
	}
}

// FuzzReadSecret: whatever a Secret holds, it is a cluster that can be dialled, or one that says why not; no
// program is run, and no file is read.
func FuzzReadSecret(f *testing.F) {
	trust := base64.StdEncoding.EncodeToString([]byte(ca(f)))
	for _, s := range []string{
		`{"bearerToken": "a", "tlsClientConfig": {"caData": "` + trust + `"}}`,
		`{"execProviderConfig": {"command": "id"}, "proxyUrl": "http://a"}`,
		kubeconfig("server: 'https://a', certificate-authority-data: "+trust, "token: a"),
		kubeconfig("server: 'https://a', certificate-authority: /etc/passwd", "tokenFile: /etc/passwd"),
		kubeconfig("server: 'https://a', proxy-url: 'http://p'", "as: b, client-certificate-data: YQ==, client-key-data: YQ=="),
	} {
		f.Add("https://a", []byte(s), true)
		f.Add("https://a", []byte(s), false)
	}
	f.Fuzz(func(t *testing.T, server string, text []byte, argo bool) {
		s := kubeconfigSecret("a", string(text))
		if argo {
			s = argoSecret("a", server, string(text))
		}
		e := read(s)
		if (e.Err == nil) != (e.connection != nil) {
			t.Fatalf("connection %v, error %v", e.connection, e.Err)
		}
		if e.Err != nil {
			return
		}
		c := e.connection
		if c.ExecProvider != nil || c.AuthProvider != nil || c.BearerTokenFile != "" || c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" {
			t.Fatalf("it runs programs or reads files: %v", c)
		}
		if _, err := dial(c, false); err != nil {
			t.Fatalf("it cannot be dialled: %v", err)
		}
	})
}
