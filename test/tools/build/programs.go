package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// program is one file to make.
type program struct {
	name, what string
	pkg        string
	module     string   // the module that it is of, for its version; empty: of this one
	version    []string // variables that say the version, set at linking
	links      []string // other names that it is called by
	test       bool     // a test binary
}

const kubernetes = "k8s.io/kubernetes"

var programs = []program{
	{
		name: "kubernetes", what: "API server, controller manager, scheduler, kubelet and kubectl in one",
		pkg: "./kubernetes", module: kubernetes,
		version: []string{"k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"},
		links:   []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"},
	},
	{name: "etcd", what: "the API server's store", pkg: "go.etcd.io/etcd/server/v3"},
	{
		name: "containerd", what: "container runtime", pkg: "github.com/containerd/containerd/v2/cmd/containerd",
		module: "github.com/containerd/containerd/v2", version: []string{"github.com/containerd/containerd/v2/version.Version"},
	},
	{name: "containerd-shim-runc-v2", what: "its shim", pkg: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"},
	{name: "ctr", what: "its own command", pkg: "github.com/containerd/containerd/v2/cmd/ctr"},
	{name: "crictl", what: "command for any CRI runtime", pkg: "sigs.k8s.io/cri-tools/cmd/crictl"},
	{name: "cni/bridge", what: "CNI: a pod's interface", pkg: "github.com/containernetworking/plugins/plugins/main/bridge"},
	{name: "cni/loopback", what: "CNI: a pod's loopback", pkg: "github.com/containernetworking/plugins/plugins/main/loopback"},
	{name: "cni/host-local", what: "CNI: a pod's address", pkg: "github.com/containernetworking/plugins/plugins/ipam/host-local"},
	{name: "registry", what: "the distribution registry", pkg: "github.com/distribution/distribution/v3/cmd/registry"},
	{name: "helm", what: "installs charts", pkg: "helm.sh/helm/v4/cmd/helm"},
	{name: "csi-sanity", what: "conformance of CSI drivers", pkg: "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"},
	{name: "oci-conformance", what: "conformance of registries", pkg: "github.com/opencontainers/distribution-spec/conformance"},
	{name: "pause", what: "holds a pod's namespaces", pkg: "./pause"},
}

// tags leave out what needs C libraries, and storage drivers that no test uses.
const tags = "no_btrfs,no_devmapper,no_zfs"

// build makes the program in out unless it is there, made of the same. It reports whether it did.
func (p program) build(ctx context.Context, out, label string) (bool, error) {
	args, err := p.args(ctx)
	if err != nil {
		return false, err
	}
	key, err := p.key(ctx, args)
	if err != nil {
		return false, err
	}
	file := filepath.Join(out, filepath.FromSlash(p.name))
	keyFile := filepath.Join(out, "."+strings.ReplaceAll(p.name, "/", "-")+".key")
	if old, err := os.ReadFile(keyFile); err == nil && string(old) == key {
		if _, err := os.Stat(file); err == nil {
			return false, nil
		}
	}
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	args = slices.Insert(args, len(args)-1, "-o", file)
	if err := goBuild(ctx, label, args); err != nil {
		return false, err
	}
	for _, name := range p.links {
		link := filepath.Join(out, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if err := os.Symlink(p.name, link); err != nil {
			return false, err
		}
	}
	return true, os.WriteFile(keyFile, []byte(key), 0o644)
}

// args are go's arguments but for the name of the output.
func (p program) args(ctx context.Context) ([]string, error) {
	args := []string{"build"}
	if p.test {
		args = []string{"test", "-c"}
	}
	flags := []string{"-s", "-w"}
	if len(p.version) > 0 {
		v, err := goOutput(ctx, "list", "-m", "-f", "{{.Version}}", p.module)
		if err != nil {
			return nil, err
		}
		for _, name := range p.version {
			flags = append(flags, "-X", name+"="+v)
		}
		if p.module == kubernetes {
			flags = append(flags, kubernetesVersion(v)...)
		}
	}
	return append(args, "-v", "-tags", tags, "-ldflags", strings.Join(flags, " "), p.pkg), nil
}

// kubernetesVersion sets the parts of a version that Kubernetes does not read off the whole.
func kubernetesVersion(v string) []string {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	var flags []string
	for _, of := range []string{"k8s.io/component-base/version.", "k8s.io/client-go/pkg/version."} {
		flags = append(flags, "-X", of+"gitMajor="+parts[0], "-X", of+"gitMinor="+parts[1], "-X", of+"gitTreeState=clean")
	}
	return flags
}

// key names what the program is made of: Go, the versions of all modules, the flags, and our own source.
func (p program) key(ctx context.Context, args []string) (string, error) {
	h := sha256.New()
	toolchain, err := goOutput(ctx, "env", "GOVERSION", "GOOS", "GOARCH", "CGO_ENABLED", "GOFLAGS")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%q %q\n", toolchain, args)
	files := []string{"go.mod", "go.sum"}
	if strings.HasPrefix(p.pkg, "./") {
		own, err := filepath.Glob(filepath.Join(p.pkg, "*.go"))
		if err != nil {
			return "", err
		}
		files = append(files, own...)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(content))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func goOutput(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// sayEvery is how often a long build says how far it is.
const sayEvery = 20 * time.Second

// goBuild runs go, which names every package that it compiles, and says how many they are by now.
func goBuild(ctx context.Context, label string, args []string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	pipe, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	began := time.Now()
	fmt.Fprintln(os.Stderr, label)
	if err := cmd.Start(); err != nil {
		return err
	}
	last := follow(pipe, func(compiled int) {
		fmt.Fprintf(os.Stderr, "%s: %d packages compiled, %s\n", label, compiled, time.Since(began).Round(time.Second))
	})
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, strings.Join(last, "\n"))
	}
	return nil
}

// follow reads what go says until its end, and returns the last lines, in which an error would be.
func follow(r io.Reader, say func(compiled int)) (last []string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	said := time.Now()
	for compiled := 1; lines.Scan(); compiled++ {
		last = append(last, lines.Text())
		last = last[max(0, len(last)-40):]
		if time.Since(said) > sayEvery {
			say(compiled)
			said = time.Now()
		}
	}
	return last
}
