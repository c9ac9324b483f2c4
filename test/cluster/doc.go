// Package cluster runs real Kubernetes clusters on one machine for tests and for play: API servers,
// schedulers, kubelets and containerds as plain processes, built from Go modules (make tools).
//
// A World is a network of its own, with hosts in network namespaces that no process outside can listen
// in. Clusters, their nodes and registries are hosts of it:
//
//	w, err := cluster.New(ctx, cluster.Config{Tools: "bin/tools", Dir: "/tmp/shoal-cluster"})
//	defer w.Close()
//	hub, err := w.AddCluster(ctx, "hub", 2)
//	client, err := kubernetes.NewForConfig(hub.Config())
//	node := hub.Nodes[0]
//	node.Kubelet.Kill()
//
// Everything of a world hangs on two things: a cgroup, by which each of its processes is found, and a folder.
// Namespaces, mounts and interfaces end with the processes that hold them. So Close, or the next New after a
// kill -9, leaves nothing behind.
//
// The control plane alone (StartControlPlane) needs no root: etcd and an API server on loopback.
package cluster
