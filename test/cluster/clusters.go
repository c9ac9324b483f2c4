package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Cluster is a control plane and its nodes.
type Cluster struct {
	*ControlPlane

	Name  string
	Nodes []*Node

	world  *World
	host   *host // of the control plane
	number int
}

// startPatience is how long a cluster may take to be ready.
const startPatience = 3 * time.Minute

// maxClusters and maxNodes are what the addresses are made for.
const (
	maxClusters = 99
	maxNodes    = 200
)

// AddCluster starts a cluster and returns when its nodes are ready and Pods can be made in its namespace
// default.
func (w *World) AddCluster(ctx context.Context, name string, nodes int) (*Cluster, error) {
	if len(w.Clusters) >= maxClusters || nodes > maxNodes {
		return nil, fmt.Errorf("cluster %s: a world has at most %d clusters of %d nodes", name, maxClusters, maxNodes)
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	c := &Cluster{Name: name, world: w, number: len(w.Clusters) + 1}
	w.Clusters = append(w.Clusters, c)
	if err := c.startControlPlane(ctx, nodes); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	w.cfg.Log("%s: the API server is ready", name)
	if err := c.startNodes(ctx, nodes); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return c, nil
}

func (c *Cluster) startControlPlane(ctx context.Context, nodes int) error {
	var err error
	if c.host, err = c.world.newHost(ctx, c.Name); err != nil {
		return err
	}
	if err := c.host.cable(ctx, fmt.Sprintf("10.99.%d.1", c.number)); err != nil {
		return err
	}
	// The first address of the services is the API server's. No kube-proxy is needed for that: it
	// listens there itself.
	if err := c.host.run(ctx, "ip addr add "+serviceIP+"/32 dev lo"); err != nil {
		return err
	}
	p := plan{
		tools: c.world.cfg.Tools, dir: filepath.Join(c.world.cfg.Dir, c.Name), ip: c.host.ip, bind: "0.0.0.0",
		etcd: 2379, etcdPeer: 2380, port: 443, controllers: 10257, sched: 10259,
		group: c.host.group(), inside: c.host.inside,
	}
	for i := range nodes {
		p.nodes = append(p.nodes, fmt.Sprintf("%s-n%d", c.Name, i+1))
	}
	if c.ControlPlane, err = newControlPlane(p); err != nil {
		return err
	}
	return c.start(ctx)
}

func (c *Cluster) startNodes(ctx context.Context, nodes int) error {
	for i := range nodes { // one after the other: they share the router's names and the image of pause
		n, err := c.newNode(ctx, i+1)
		if err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
	}
	var wait errgroup.Group
	for _, n := range c.Nodes {
		wait.Go(func() error {
			if err := n.AwaitReady(ctx, true); err != nil {
				return fmt.Errorf("%w; its log %s ends with\n%s", err, n.Kubelet.Log, tail(n.Kubelet.Log))
			}
			c.world.cfg.Log("%s: %s is ready", c.Name, n.Name)
			return nil
		})
	}
	if nodes > 0 {
		wait.Go(func() error { return c.awaitAccount(ctx) })
	}
	return wait.Wait()
}

// awaitAccount waits for the account that Pods run under unless they name one: before that none is accepted.
func (c *Cluster) awaitAccount(ctx context.Context) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	return poll(ctx, "the service account default", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Client returns the administrator's client.
func (c *Cluster) Client() (kubernetes.Interface, error) { return kubernetes.NewForConfig(c.Config()) }
