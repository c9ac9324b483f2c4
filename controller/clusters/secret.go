package clusters

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// convention is a way in which others write a cluster into a Secret.
type convention struct {
	label, value string // that the Secret has
	read         func(*corev1.Secret) (name string, connection *rest.Config, err error)
}

// conventions are Argo CD's (docs/operator-manual/declarative-setup.md, "Clusters") and that of the provider
// kubeconfig of sigs.k8s.io/multicluster-runtime. A Secret with both labels is read as the first.
func conventions() []convention {
	return []convention{
		{"argocd.argoproj.io/secret-type", "cluster", readArgo},
		{"sigs.k8s.io/multicluster-runtime-kubeconfig", "true", readKubeconfig},
	}
}

// Labels or annotations of a Secret that name the cluster's region; the first that is there counts.
var regionKeys = []string{"shoal.dev/region", corev1.LabelTopologyRegion}

// entry is a cluster as its Secret describes it.
type entry struct {
	Cluster
	named      bool              // it is the one cluster of its name
	sum        [sha256.Size]byte // of all that the connection is made from
	connection *rest.Config      // nil where Err is set
}

// read returns the cluster that a Secret describes. Where that cannot be used, its Err says so; where not even a
// name can be read, it is not named, and Name is the Secret's.
func read(secret *corev1.Secret) entry {
	e := entry{
		Cluster: Cluster{Name: secret.Name, Secret: secret.Namespace + "/" + secret.Name, Labels: maps.Clone(secret.Labels)},
		sum:     sum(secret),
	}
	for _, key := range regionKeys {
		e.Region = cmp.Or(e.Region, secret.Labels[key], secret.Annotations[key])
	}
	for _, c := range conventions() {
		if secret.Labels[c.label] != c.value {
			continue
		}
		name, connection, err := c.read(secret)
		if e.named = name != ""; e.named {
			e.Name = name
		}
		if err == nil {
			err = check(connection)
		}
		if err != nil {
			e.Err = problem(e.Name, Invalid, "Secret %s: %v", e.Secret, err)
			return e
		}
		e.connection, e.Insecure = connection, connection.Insecure
		return e
	}
	e.Err = problem(e.Name, Invalid, "Secret %s describes no cluster: label it as docs/members.md says", e.Secret)
	return e
}

// sum changes with everything in a Secret that a connection is made from.
func sum(secret *corev1.Secret) [sha256.Size]byte {
	h := sha256.New()
	for _, c := range conventions() {
		fmt.Fprintf(h, "%q ", secret.Labels[c.label])
	}
	for _, key := range slices.Sorted(maps.Keys(secret.Data)) {
		fmt.Fprintf(h, "%q %q ", key, secret.Data[key])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// clusterName is what spec.targets.clusters.names can hold (api/v1alpha1, ClusterName).
var clusterName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// argoConfig is the JSON under the key config.
type argoConfig struct {
	Username    string `json:"username"`
	Password    string `json:"password"`
	BearerToken string `json:"bearerToken"`
	TLS         struct {
		Insecure   bool   `json:"insecure"`
		ServerName string `json:"serverName"`
		CAData     []byte `json:"caData"`
		CertData   []byte `json:"certData"`
		KeyData    []byte `json:"keyData"`
	} `json:"tlsClientConfig"`
	AWS                json.RawMessage `json:"awsAuthConfig"`
	Exec               json.RawMessage `json:"execProviderConfig"`
	ProxyURL           string          `json:"proxyUrl"`
	DisableCompression bool            `json:"disableCompression"`
}

func readArgo(secret *corev1.Secret) (string, *rest.Config, error) {
	name := string(secret.Data["name"])
	if !clusterName.MatchString(name) {
		return "", nil, errors.New("give the cluster a name under the key name: lower-case letters, digits, '-' and '.'")
	}
	var c argoConfig
	if err := json.Unmarshal(secret.Data["config"], &c); err != nil {
		return name, nil, fmt.Errorf("the key config has to be JSON as Argo CD reads it, with bearerToken, tlsClientConfig, or username and password%s", place(err))
	}
	if given(c.Exec) || given(c.AWS) {
		return name, nil, errors.New("execProviderConfig and awsAuthConfig run programs on the hub, which is refused: put bearerToken, or tlsClientConfig.certData and keyData, into config")
	}
	connection := &rest.Config{
		Host: string(secret.Data["server"]), BearerToken: c.BearerToken, Username: c.Username, Password: c.Password,
		TLSClientConfig: rest.TLSClientConfig{
			Insecure: c.TLS.Insecure, ServerName: c.TLS.ServerName, CAData: c.TLS.CAData, CertData: c.TLS.CertData, KeyData: c.TLS.KeyData,
		},
		DisableCompression: c.DisableCompression,
	}
	if c.ProxyURL != "" {
		u, err := proxy(c.ProxyURL)
		if err != nil {
			return name, nil, err
		}
		connection.Proxy = http.ProxyURL(u)
	}
	return name, connection, nil
}

// place says where the error of a decoder lies, without the values that it may quote.
func place(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var encoding base64.CorruptInputError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf(": byte %d is not JSON", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Sprintf(": the value of %s is of another type", kind.Field)
	case errors.As(err, &encoding):
		return ": caData, certData and keyData are base64"
	}
	return ""
}

func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

func readKubeconfig(secret *corev1.Secret) (string, *rest.Config, error) {
	name := secret.Name
	raw := secret.Data["kubeconfig"]
	if len(raw) == 0 {
		return name, nil, errors.New("put a kubeconfig under the key kubeconfig")
	}
	k, err := clientcmd.Load(raw)
	if err != nil { // which may quote what it could not read
		return name, nil, errors.New("the value of the key kubeconfig is no kubeconfig: try it by kubectl --kubeconfig FILE version")
	}
	if err := refuse(k); err != nil {
		return name, nil, err
	}
	connection, err := clientcmd.NewNonInteractiveClientConfig(*k, k.CurrentContext, &clientcmd.ConfigOverrides{}, nil).ClientConfig()
	if err != nil {
		return name, nil, errors.New("the kubeconfig cannot be used: see that it has a server, and not two ways to log in")
	}
	return name, connection, nil
}

// refuse finds what a kubeconfig must not have: programs to run and files to read on the hub.
func refuse(k *clientcmdapi.Config) error {
	current, ok := k.Contexts[k.CurrentContext]
	if !ok {
		return errors.New("the kubeconfig has no context of the name of its current-context: set it by kubectl config use-context")
	}
	user, cluster := k.AuthInfos[current.AuthInfo], k.Clusters[current.Cluster]
	switch {
	case cluster == nil:
		return errors.New("the current context of the kubeconfig names a cluster that is not in it: write it by kubectl config view --minify --flatten --raw")
	case user == nil:
		return errors.New("the current context of the kubeconfig names a user who is not in it: write it by kubectl config view --minify --flatten --raw")
	case user.Exec != nil, user.AuthProvider != nil:
		return errors.New("exec and auth-provider run programs on the hub, which is refused: give the user a token or a client certificate (docs/members.md)")
	case user.TokenFile != "", user.ClientCertificate != "", user.ClientKey != "", cluster.CertificateAuthority != "":
		return errors.New("the kubeconfig names files, which the hub does not have: write it by kubectl config view --minify --flatten --raw, and a tokenFile as token")
	}
	if cluster.ProxyURL != "" {
		if _, err := proxy(cluster.ProxyURL); err != nil {
			return err
		}
	}
	return nil
}

func proxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
		return nil, errors.New("the proxy's URL has to be http://, https:// or socks5:// with a host")
	}
	return u, nil
}

// check finds what is wrong with a connection before it is tried.
func check(c *rest.Config) error {
	u, err := url.Parse(c.Host)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil:
		return errors.New("the server has to be https:// with a host: credentials go over nothing else")
	case (len(c.CertData) == 0) != (len(c.KeyData) == 0):
		return errors.New("it has one of the client's certificate and key: give both")
	case c.BearerToken == "" && c.Username == "" && len(c.CertData) == 0:
		return errors.New("it has no credentials: give a token, a client certificate with its key, or a username with its password")
	}
	if _, err := rest.TLSConfigFor(c); err != nil {
		return fmt.Errorf("its certificates cannot be used: %w", err)
	}
	return nil
}

// roster returns the clusters of the Secrets and the hub, where it is one, sorted by name. Of several with
// one name the hub wins, then the oldest Secret; the others say who did.
func roster(hub *entry, secrets []corev1.Secret) []entry {
	slices.SortFunc(secrets, func(a, b corev1.Secret) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var all []entry
	holders := map[string]string{}
	if hub != nil {
		all = append(all, *hub)
		holders[hub.Name] = "the hub itself"
	}
	for i := range secrets {
		e := read(&secrets[i])
		if holder, taken := holders[e.Name]; taken && e.named {
			e.Err = problem(e.Name, Invalid, "Secret %s gives the name of %s: give its cluster another name, or delete it", e.Secret, holder)
			e.connection, e.named = nil, false
		} else if e.named {
			holders[e.Name] = "Secret " + e.Secret
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
