package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Summary is what a world consists of, for those who come to it from outside.
type Summary struct {
	Dir        string            `json:"dir"`
	Clusters   []ClusterSummary  `json:"clusters"`
	Registries []RegistrySummary `json:"registries"`
	Processes  int               `json:"processes"` // that run now, Pods and all
}

// ClusterSummary is a cluster of a Summary.
type ClusterSummary struct {
	Name       string        `json:"name"`
	Server     string        `json:"server"`
	Kubeconfig string        `json:"kubeconfig"`
	Nodes      []NodeSummary `json:"nodes"`
}

// NodeSummary is a node of a Summary.
type NodeSummary struct {
	Name string   `json:"name"`
	IP   string   `json:"ip"`
	Exec []string `json:"exec"` // before a command to run it on the node
}

// RegistrySummary is a registry of a Summary.
type RegistrySummary struct {
	Name string `json:"name"`
	Host string `json:"host"`
	CA   string `json:"ca,omitempty"`
}

const summaryName = "world.json"

// Summary says what there is.
func (w *World) Summary() Summary {
	s := Summary{Dir: w.cfg.Dir, Clusters: []ClusterSummary{}, Registries: []RegistrySummary{}}
	for _, c := range w.Clusters {
		cs := ClusterSummary{Name: c.Name, Server: c.url, Kubeconfig: c.Kubeconfig(Admin), Nodes: []NodeSummary{}}
		for _, n := range c.Nodes {
			cs.Nodes = append(cs.Nodes, NodeSummary{n.Name, n.IP, n.Inside()})
		}
		s.Clusters = append(s.Clusters, cs)
	}
	for _, r := range w.Registries {
		s.Registries = append(s.Registries, RegistrySummary{r.host.name, r.Host, r.CAFile})
	}
	return s
}

// Leave ends this process's part and lets the world run on, for Load to find and Remove to end.
func (w *World) Leave() error {
	raw, err := json.MarshalIndent(w.Summary(), "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.cfg.Dir, summaryName), raw, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(lockFile, []byte(w.cfg.Dir), 0o644); err != nil {
		return err
	}
	return w.lock.Close()
}

// ErrNone says that no world was left running.
var ErrNone = errors.New("no cluster runs on this machine: make cluster-up begins one")

// Load returns the summary of the world that was left running, or ErrNone.
func Load() (Summary, error) {
	var s Summary
	dir, err := leftIn()
	if errors.Is(err, fs.ErrNotExist) || err == nil && dir == "" {
		return s, ErrNone
	}
	if err != nil {
		return s, err
	}
	raw, err := os.ReadFile(filepath.Join(dir, summaryName))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("%s: %w", dir, err)
	}
	pids, err := members(group)
	s.Processes = len(pids)
	return s, err
}
