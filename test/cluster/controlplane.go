package cluster

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ControlPlane is etcd and an API server, and, where Pods are to run, the controller manager and the
// scheduler.
type ControlPlane struct {
	Etcd, APIServer, Controllers, Scheduler *Process

	dir    string
	url    string
	ca     *authority
	tokens map[string]string // by user
}

// users of a control plane, beside one a node: the groups that each is in.
var users = map[string]string{
	Admin:                            "system:masters",
	"system:kube-controller-manager": "",
	"system:kube-scheduler":          "",
}

// Admin is the user who may do everything.
const Admin = "admin"

// plan says where a control plane runs.
type plan struct {
	tools, dir         string
	ip, bind           string // that the API server is reached at, and listens at
	etcd, etcdPeer     int    // ports on loopback
	port               int    // the API server's
	controllers, sched int    // health ports on loopback; 0: no such part
	nodes              []string
	group              string
	inside             func(argv ...string) []string
}

func newControlPlane(p plan) (*ControlPlane, error) {
	c := &ControlPlane{dir: p.dir, url: fmt.Sprintf("https://%s", net.JoinHostPort(p.ip, fmt.Sprint(p.port))), tokens: map[string]string{}}
	if err := c.identities(p); err != nil {
		return nil, err
	}
	part := func(name string, ready func(context.Context) error, args ...string) *Process {
		argv := append([]string{filepath.Join(p.tools, name)}, args...)
		return &Process{
			Name: name, Log: filepath.Join(p.dir, name+".log"), group: p.group, ready: ready,
			command: func() []string { return p.inside(argv...) },
		}
	}
	etcd, peer := fmt.Sprintf("http://127.0.0.1:%d", p.etcd), fmt.Sprintf("http://127.0.0.1:%d", p.etcdPeer)
	c.Etcd = part("etcd", nil,
		"--name=etcd", "--data-dir="+filepath.Join(p.dir, "etcd"), "--log-level=warn",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=etcd="+peer,
		"--unsafe-no-fsync", // a machine that loses power loses its clusters anyway
	)
	c.APIServer = part("kube-apiserver", c.answers,
		"--etcd-servers="+etcd, "--bind-address="+p.bind, "--advertise-address="+p.ip, fmt.Sprintf("--secure-port=%d", p.port),
		"--tls-cert-file="+c.ca.path("apiserver.crt"), "--tls-private-key-file="+c.ca.path("apiserver.key"),
		"--client-ca-file="+c.ca.path("ca.crt"), "--token-auth-file="+filepath.Join(p.dir, "tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.ca.path("accounts.pub"), "--service-account-signing-key-file="+c.ca.path("accounts.key"),
		"--service-cluster-ip-range="+services, "--allow-privileged=true", "--endpoint-reconciler-type=none",
		"--kubelet-preferred-address-types=InternalIP", // nodes have no names in any DNS
	)
	if p.controllers > 0 {
		c.Controllers = part("kube-controller-manager", nil,
			"--kubeconfig="+c.Kubeconfig("system:kube-controller-manager"), "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", p.controllers),
			"--service-account-private-key-file="+c.ca.path("accounts.key"), "--root-ca-file="+c.ca.path("ca.crt"),
			"--use-service-account-credentials=true", "--leader-elect=false",
			// A lost node is noticed within seconds, for the tests that lose one.
			"--node-monitor-grace-period=8s", "--node-monitor-period=1s",
		)
	}
	if p.sched > 0 {
		c.Scheduler = part("kube-scheduler", nil,
			"--kubeconfig="+c.Kubeconfig("system:kube-scheduler"), "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", p.sched),
			"--leader-elect=false",
		)
	}
	return c, nil
}

// identities makes the certificates, the tokens and a kubeconfig for each user.
func (c *ControlPlane) identities(p plan) error {
	var err error
	if c.ca, err = newAuthority(p.dir, "cluster"); err != nil {
		return err
	}
	ips := []string{p.ip, "127.0.0.1", serviceIP}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	if err := c.ca.serve("apiserver", ips, names...); err != nil {
		return err
	}
	if err := c.ca.keyPair("accounts"); err != nil {
		return err
	}
	groups := maps.Clone(users)
	for _, n := range p.nodes {
		groups["system:node:"+n] = "system:nodes"
	}
	var csv strings.Builder
	for user, group := range groups {
		raw := make([]byte, 16)
		_, _ = rand.Read(raw) // never fails
		c.tokens[user] = hex.EncodeToString(raw)
		fmt.Fprintf(&csv, "%s,%s,%s,%q\n", c.tokens[user], user, user, group)
		if err := c.writeKubeconfig(user); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(p.dir, "tokens.csv"), []byte(csv.String()), 0o600)
}

// Kubeconfig returns the file by which a user reaches the API server.
func (c *ControlPlane) Kubeconfig(user string) string {
	return filepath.Join(c.dir, strings.ReplaceAll(user, ":", "-")+".kubeconfig")
}

func (c *ControlPlane) writeKubeconfig(user string) error {
	ca, err := os.ReadFile(c.ca.path("ca.crt"))
	if err != nil {
		return err
	}
	const name = "cluster"
	k := clientcmdapi.NewConfig()
	k.Clusters[name] = &clientcmdapi.Cluster{Server: c.url, CertificateAuthorityData: ca}
	k.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: c.tokens[user]}
	k.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	k.CurrentContext = name
	return clientcmd.WriteToFile(*k, c.Kubeconfig(user))
}

// Config is the administrator's way to the API server.
func (c *ControlPlane) Config() *rest.Config {
	return &rest.Config{
		Host: c.url, BearerToken: c.tokens[Admin], TLSClientConfig: rest.TLSClientConfig{CAFile: c.ca.path("ca.crt")},
		QPS: 100, Burst: 200,
	}
}

// Certificate returns the files of a client certificate and its key, by which the API server knows a user.
func (c *ControlPlane) Certificate(user string) (cert, key string, err error) {
	err = c.ca.sign(user, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return c.ca.path(user + ".crt"), c.ca.path(user + ".key"), err
}

// answers reports whether the API server is ready.
func (c *ControlPlane) answers(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.Config())
	if err != nil {
		return err
	}
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

func (c *ControlPlane) parts() []*Process {
	var all []*Process
	for _, p := range []*Process{c.Etcd, c.APIServer, c.Controllers, c.Scheduler} {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// start starts all parts, and returns when the API server is ready.
func (c *ControlPlane) start(ctx context.Context) error {
	for _, p := range c.parts() {
		if err := p.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all parts.
func (c *ControlPlane) Stop() error {
	var errs []error
	for _, p := range slices.Backward(c.parts()) {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}

// StartControlPlane starts etcd and an API server on free ports of loopback, without root, nodes or
// controllers: what the test of a controller needs. Its files are in dir, which stays.
func StartControlPlane(ctx context.Context, tools, dir string) (*ControlPlane, error) {
	for _, name := range []string{"kube-apiserver", "etcd"} {
		if _, err := os.Stat(filepath.Join(tools, name)); err != nil {
			return nil, fmt.Errorf("no %s in %s: run make tools", name, tools)
		}
	}
	var last error
	for range 5 { // another program may take a port between the choice and its use
		c, err := startOnLoopback(ctx, tools, dir)
		if err == nil || ctx.Err() != nil {
			return c, err
		}
		last = err
	}
	return nil, last
}

func startOnLoopback(ctx context.Context, tools, dir string) (*ControlPlane, error) {
	ports, err := freePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(dir, "etcd")); err != nil {
		return nil, err
	}
	c, err := newControlPlane(plan{
		tools: tools, dir: dir, ip: "127.0.0.1", bind: "127.0.0.1", etcd: ports[0], etcdPeer: ports[1], port: ports[2],
		inside: func(argv ...string) []string { return argv },
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// freePorts returns ports that nothing listened at a moment ago.
func freePorts(ctx context.Context, n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
