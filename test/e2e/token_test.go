package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/test/cluster"
)

// tokens is the configuration of tokenapp.
type tokens struct {
	Addr            string
	Key             []byte
	Issuer, Service string
	Users           map[string]string   // passwords
	May             map[string][]string // repositories

	file   string // this, for the server
	server *cluster.Process
}

const tokenPort = 5001

// prepare makes a key, and returns the registry's section auth. The token server is on the registry's own machine.
func (s *tokens) prepare(t *testing.T) (auth string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if s.Key, err = x509.MarshalECPrivateKey(key); err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	s.Issuer, s.Service = "issuer.test", "registry.test"
	b64 := base64.RawURLEncoding.EncodeToString
	jwks := filepath.Join(t.TempDir(), "jwks.json")
	keys := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"test","x":%q,"y":%q}]}`, b64(public[1:33]), b64(public[33:]))
	if err := os.WriteFile(jwks, []byte(keys), 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("{token: {realm: \"http://{ip}:%d/token\", service: %q, issuer: %q, jwks: %q}}", tokenPort, s.Service, s.Issuer, jwks)
}

// start starts the token server beside the registry.
func (s *tokens) start(t *testing.T, r *cluster.Registry) {
	t.Helper()
	s.Addr = fmt.Sprintf("%s:%d", r.Machine.IP, tokenPort)
	s.file = filepath.Join(t.TempDir(), "tokens.json")
	s.write(t)
	var err error
	if s.server, err = r.Machine.Start(within(t), "tokens", answers("http://"+s.Addr+"/token"), program(t, "./tokenapp"), s.file); err != nil {
		t.Fatal(err)
	}
}

// revoke takes a repository away from a user.
func (s *tokens) revoke(t *testing.T, user, repository string) {
	t.Helper()
	s.May[user] = slices.DeleteFunc(s.May[user], func(r string) bool { return r == repository })
	s.write(t)
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Start(within(t)); err != nil {
		t.Fatal(err)
	}
}

func (s *tokens) write(t *testing.T) {
	t.Helper()
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTokens shows that a registry with tokens decides who gets an image through the nodes, and that those who
// may get it all of it through them.
func TestTokens(t *testing.T) {
	const private = "team/private"
	w := newWorld(t)
	server := tokens{
		Users: map[string]string{"mirror": "own", "alice": "secret", "bob": "other"},
		May:   map[string][]string{"mirror": {private}, "alice": {private}, "bob": {"team/other"}},
	}
	registry, err := w.AddRegistry(t.Context(), "tokens", cluster.RegistryOptions{Auth: server.prepare(t)})
	if err != nil {
		t.Fatal(err)
	}
	server.start(t, registry)
	c, client := addCluster(t, w, "one", 1)
	login := t.TempDir()
	if err := os.WriteFile(filepath.Join(login, "config.json"), dockerConfig(registry.Host, "mirror", "own"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := c.Nodes[0]
	r := newRegion(t, w, registry, c.Nodes, login)
	repo := repository(t, registry, private+":v1", "alice", "secret")
	image := cluster.Image{Entrypoint: []string{"/testapp"}, Layers: []cluster.Files{{"testapp": program(t, "./testapp")}, {"data/secret": randomFile(t, 1, 6<<20)}}}
	if _, _, err := image.Push(within(t), repo); err != nil {
		t.Fatal(err)
	}
	for _, who := range []struct{ name, user, password string }{
		{"right", "alice", "secret"}, {"other", "bob", "other"}, {"wrong", "alice", "guess"}, {"none", "", ""},
	} {
		pod := appPod(who.name, repo.Reference.String(), n.Name, "digests", "/data")
		pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
		if who.user != "" {
			secret := &corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: who.name, Namespace: "default"}, Type: corev1.SecretTypeDockerConfigJson,
				Data: map[string][]byte{corev1.DockerConfigJsonKey: dockerConfig(registry.Host, who.user, who.password)},
			}
			if _, err := client.CoreV1().Secrets("default").Create(within(t), secret, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: who.name}}
		}
		if who.name != "right" {
			t.Logf("%s: %s", who.name, refused(t, client, pod))
			continue
		}
		if ended := run(t, client, pod, true); ended.Status.Phase != corev1.PodSucceeded {
			t.Fatalf("with the secret the Pod ended as %s\n%s", ended.Status.Phase, describe(client, pod))
		}
		for _, line := range []string{`shoal_endpoint_requests_total{kind="manifest",status="200"}`, `shoal_endpoint_requests_total{kind="manifest",status="401"}`, `shoal_endpoint_sent_bytes_total{source="swarm"}`} {
			if r.metric(n, line) == "0" {
				t.Errorf("%s is 0", line)
			}
		}
	}
}
