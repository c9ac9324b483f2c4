// Package controlplane shows Shoal's API and controller on real API servers, with neither root nor nodes. Run
// it with make test-controlplane; without SHOAL_TOOLS, the folder that make tools fills, its tests are skipped.
package controlplane

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"

	"github.com/shoal-project/shoal/test/cluster"
)

var tools = os.Getenv("SHOAL_TOOLS")

// patience is how long anything here may take. It bounds a hang, and is no assertion about speed.
const patience = 2 * time.Minute

const (
	crds     = "../../charts/shoal/crds"
	examples = "../../examples"
	docs     = "../../docs"
)

// server is an API server, as its administrator sees it.
type server struct {
	dynamic.Interface
	control    *cluster.ControlPlane
	kubeconfig string
}

// newServer starts an API server that ends with the test, and installs the CRDs as a user would.
func newServer(t *testing.T) *server {
	t.Helper()
	s := newBareServer(t)
	s.install(t)
	return s
}

// install makes Shoal's objects known.
func (s *server) install(t *testing.T) {
	t.Helper()
	s.kubectl(t, "apply", "--server-side", "-f", crds)
	s.kubectl(t, "wait", "--for=condition=Established", "crd", "--all")
}

// newBareServer starts an API server that ends with the test and knows nothing of Shoal.
func newBareServer(t *testing.T) *server {
	t.Helper()
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make test-controlplane")
	}
	c, err := cluster.StartControlPlane(within(t), tools, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := dynamic.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	return &server{Interface: client, control: c, kubeconfig: c.Kubeconfig(cluster.Admin)}
}

// kubectl returns what kubectl writes, and fails the test where it fails.
func (s *server) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	args = append([]string{"--kubeconfig", s.kubeconfig, "--cache-dir", t.TempDir()}, args...)
	out, err := exec.CommandContext(within(t), filepath.Join(tools, "kubectl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", args[4:], err, out)
	}
	return string(out)
}

// within bounds what a test waits for.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
