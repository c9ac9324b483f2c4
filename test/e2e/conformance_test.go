package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/test/cluster"
)

// TestConformance runs the reads of the OCI distribution conformance suite against a mirror and against a node's
// endpoint, on loopback and without root. Pushes and deletes are switched off, as both are read-only.
func TestConformance(t *testing.T) {
	if tools == "" {
		t.Skip("SHOAL_TOOLS is not set: run make conformance")
	}
	upstream, err := registryserver.New(registryserver.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- upstream.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	content := pushConformance(t, upstream.Addr().String())
	const name = "reg.test"
	shoal := program(t, "../../cmd/shoal")
	tracker := local(t, shoal, "tracker", "tracker", "--plaintext", "--listen", "127.0.0.1:0")
	mirror := local(t, shoal, "mirror", "mirror", "--plaintext", "--listen", "127.0.0.1:0", "--dir", t.TempDir(), "--upstream", name+"=http://"+upstream.Addr().String())
	t.Run("Mirror", func(t *testing.T) { conform(t, mirror, content) })

	certs := t.TempDir()
	local(t, shoal, "containerd", "peer", "--plaintext", "--listen", "127.0.0.1:0", "--name", "n1", "--dir", t.TempDir(), "--no-yield",
		"--tracker", "http://"+tracker, "--mirror", "http://"+mirror,
		"--containerd-config", certs, "--containerd-registry", name, "--containerd-listen", "127.0.0.1:0")
	way := asContainerd(t, filepath.Join(certs, name, "hosts.toml"), name)
	// A node has no lists, which the specification makes optional.
	t.Run("Endpoint", func(t *testing.T) {
		conform(t, way, append(content, "OCI_API_TAGS_LIST=false", "OCI_API_REFERRER=false"))
	})
}

const conformanceRepository = "conformance/pull"

// pushConformance pushes an image, an index and an artifact that refers to the image, and returns the suite's
// variables that name them.
func pushConformance(t *testing.T, host string) []string {
	t.Helper()
	repo, err := remote.NewRepository(host + "/" + conformanceRepository + ":image")
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	im := cluster.Image{Layers: []cluster.Files{{"one": file}, {"two": file}}, Gzip: true}
	image, _, err := im.Push(t.Context(), repo)
	if err != nil {
		t.Fatal(err)
	}
	repo.Reference.Reference = "index"
	other := im
	other.Arch = "riscv64"
	if err := cluster.PushIndex(t.Context(), repo, im, other); err != nil {
		t.Fatal(err)
	}
	index, err := repo.Resolve(t.Context(), "index")
	if err != nil {
		t.Fatal(err)
	}
	artifact, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/x.hashes", oras.PackManifestOptions{Subject: &image})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := func() ([]byte, error) {
		body, err := repo.Fetch(t.Context(), image)
		if err != nil {
			return nil, err
		}
		defer body.Close()
		return io.ReadAll(body)
	}()
	if err != nil {
		t.Fatal(err)
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	blobs := []string{manifest.Config.Digest.String()}
	for _, l := range manifest.Layers {
		blobs = append(blobs, l.Digest.String())
	}
	return []string{
		"OCI_RO_DATA_TAGS=image index",
		"OCI_RO_DATA_MANIFESTS=" + strings.Join([]string{image.Digest.String(), index.Digest.String(), artifact.Digest.String()}, " "),
		"OCI_RO_DATA_BLOBS=" + strings.Join(blobs, " "),
		"OCI_RO_DATA_REFERRERS=" + image.Digest.String(),
	}
}

// conform runs the suite against a registry on loopback.
func conform(t *testing.T, registry string, settings []string) {
	t.Helper()
	cmd := exec.CommandContext(within(t), filepath.Join(tools, "oci-conformance"))
	cmd.Dir = t.TempDir() // for its reports
	cmd.Env = append(os.Environ(),
		"OCI_REGISTRY="+registry, "OCI_TLS=disabled", "OCI_REPO1="+conformanceRepository, "OCI_REPO2="+conformanceRepository,
		"OCI_VERSION=1.1", "OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
	)
	cmd.Env = append(cmd.Env, settings...)
	// What it prints is the result. After that, this version of it fails to write a report of reads alone, and
	// its exit code is about that.
	out, _ := cmd.CombinedOutput()
	text := string(out)
	counts := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^ +(Pass|FAIL|Skip|Error)\.+: +(\d+)$`).FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		counts[m[1]] = n
	}
	t.Logf("passed %d, failed %d, skipped %d, errors %d", counts["Pass"], counts["FAIL"], counts["Skip"], counts["Error"])
	if !strings.Contains(text, "OCI Conformance Result: Pass") || len(counts) != 4 || counts["Pass"] < 15 || counts["FAIL"]+counts["Skip"]+counts["Error"] > 0 {
		t.Errorf("the suite says\n%s", text)
	}
}

// local starts a daemon on loopback and returns the address that it logs for what.
func local(t *testing.T, shoal, what string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), shoal, args...)
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			var l struct{ Msg, What, Addr string }
			if json.Unmarshal(lines.Bytes(), &l) == nil && l.Msg == "listening" && l.What == what {
				found <- l.Addr
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait() // killed
	})
	select {
	case addr := <-found:
		return addr
	case <-ended:
		t.Fatalf("%s ended", args[0])
	case <-t.Context().Done():
		t.Fatalf("%s does not listen", args[0])
	}
	return ""
}

// asContainerd is a plain way to a node's endpoint for clients that cannot show its key: it goes the way that
// hosts.toml tells, with the registry's name as containerd adds it.
func asContainerd(t *testing.T, file, name string) string {
	t.Helper()
	var hosts struct {
		Host map[string]struct {
			CA     string     `toml:"ca"`
			Client [][]string `toml:"client"`
		} `toml:"host"`
	}
	err := until(within(t), func(context.Context) error {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return toml.Unmarshal(raw, &hosts)
	})
	if err != nil {
		t.Fatal(err)
	}
	for address, host := range hosts.Host {
		target, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(host.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		cert, err := tls.LoadX509KeyPair(host.Client[0][0], host.Client[0][1])
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
		t.Cleanup(transport.CloseIdleConnections)
		server := httptest.NewServer(&httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			query := r.Out.URL.Query()
			query.Set("ns", name)
			r.Out.URL.RawQuery = query.Encode()
		}})
		t.Cleanup(server.Close)
		return strings.TrimPrefix(server.URL, "http://")
	}
	t.Fatalf("no host in %s", file)
	return ""
}
