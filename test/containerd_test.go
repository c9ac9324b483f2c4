package test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// pullPath is a way to a node's endpoint as a container runtime goes it.
type pullPath struct {
	client *http.Client
	url    string // of the endpoint
}

// containerdPath waits until containerd is told of the node, and goes the way that it is told.
func (r *region) containerdPath(config string) pullPath {
	r.t.Helper()
	file := filepath.Join(config, r.upstream.host, "hosts.toml")
	r.until("containerd is told of the node", func() bool { _, err := os.Stat(file); return err == nil })
	return pathFrom(r.t, file)
}

// pathFrom reads what hosts.toml tells.
func pathFrom(t *testing.T, file string) pullPath {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var hosts struct {
		Host map[string]struct {
			CA     string     `toml:"ca"`
			Client [][]string `toml:"client"`
		} `toml:"host"`
	}
	if err := toml.Unmarshal(raw, &hosts); err != nil || len(hosts.Host) != 1 {
		t.Fatalf("%v in\n%s", err, raw)
	}
	for url, host := range hosts.Host {
		pem, err := os.ReadFile(host.CA)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		cert, err := tls.LoadX509KeyPair(host.Client[0][0], host.Client[0][1])
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
		t.Cleanup(transport.CloseIdleConnections)
		return pullPath{&http.Client{Transport: transport}, url}
	}
	return pullPath{}
}

// read asks for n bytes of a blob and copies them to w.
func (p pullPath) read(ctx context.Context, w io.Writer, registry, repository string, d digest.Digest, off, n int64) error {
	url := fmt.Sprintf("%s/v2/%s/blobs/%s?ns=%s", p.url, repository, d, registry)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	resp, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000)) // the status is the error
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	got, err := io.Copy(w, resp.Body)
	if err == nil && got != n {
		err = fmt.Errorf("%d of %d bytes", got, n)
	}
	return err
}

// containerdFlags make a node serve a container runtime of the registry's images.
func (r *region) containerdFlags(config string) []string {
	return []string{"--containerd-config", config, "--containerd-registry", r.upstream.host, "--containerd-listen", "127.0.0.1:0"}
}

// rawBlob pushes a layer of size random bytes and returns its digest.
func (r *region) rawBlob(tag string, size int64) digest.Digest {
	r.t.Helper()
	file := filepath.Join(r.t.TempDir(), "layer")
	f, err := os.Create(file)
	if err != nil {
		r.t.Fatal(err)
	}
	sum := digest.SHA256.Digester()
	if _, err := io.CopyN(io.MultiWriter(f, sum.Hash()), rand.NewChaCha8([32]byte{9}), size); err != nil {
		r.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.foreignImage(tag, "application/vnd.oci.image.config.v1+json", foreignLayer{mediaType: "application/vnd.oci.image.layer.v1.tar", file: file})
	return sum.Digest()
}

// 200 readers of ranges of one cold blob are one transfer. SHOAL_TEST_READERS_MIB sets the blob's size.
func TestManyReadersOfOneBlob(t *testing.T) {
	const readers = 200
	mib := int64(100)
	if s := os.Getenv("SHOAL_TEST_READERS_MIB"); s != "" {
		var err error
		if mib, err = strconv.ParseInt(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	size := mib << 20
	r := newRegion(t, 0)
	config := filepath.Join(r.dir, "certs.d")
	node := r.addNode(r.containerdFlags(config)...)
	d := r.rawBlob("cold", size)
	before := r.mirror.metric("shoal_mirror_sent_bytes_total")
	path := r.containerdPath(config)
	path.client.Transport.(*http.Transport).MaxIdleConnsPerHost = readers

	// Every reader has a part of its own, and some read the whole.
	part := (size + readers - 1) / readers
	parts := make([][]byte, readers)
	group, ctx := errgroup.WithContext(t.Context())
	for i := range readers {
		group.Go(func() error {
			off := int64(i) * part
			n := min(part, size-off)
			var out strings.Builder
			if err := path.read(ctx, &out, r.upstream.host, "models/m", d, off, n); err != nil {
				return fmt.Errorf("reader %d: %w", i, err)
			}
			parts[i] = []byte(out.String())
			return nil
		})
	}
	whole := sha256.New()
	group.Go(func() error { return path.read(ctx, whole, r.upstream.host, "models/m", d, 0, size) })
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, p := range parts {
		sum.Write(p)
	}
	for what, got := range map[string][]byte{"the parts": sum.Sum(nil), "the whole": whole.Sum(nil)} {
		if hex.EncodeToString(got) != d.Encoded() {
			t.Errorf("%s: other bytes than the digest names", what)
		}
	}
	sent := r.mirror.metric("shoal_mirror_sent_bytes_total") - before
	anon := node.anonymous()
	t.Logf("%d readers of %d MiB: the mirror sent %.3f copies, the node has %d MiB of anonymous memory", readers, mib, float64(sent)/float64(size), anon>>20)
	if sent > size*105/100 {
		t.Errorf("the mirror sent %d bytes of %d", sent, size)
	}
	// The node has it, but another repository is no way to it.
	if err := path.read(t.Context(), io.Discard, r.upstream.host, "models/other", d, 0, 10); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("through a repository that lacks the blob: %v", err)
	}
	if anon > 250<<20 {
		t.Errorf("the node has %d MiB of anonymous memory", anon>>20)
	}
}

// A node that is killed while it serves a blob serves it after its start, and fetches nothing twice that was
// whole.
func TestNodeKilledInMidBlob(t *testing.T) {
	r := newRegion(t, 0, func(c *registryserver.Config) { c.UplinkBytesPerSecond = 16 << 20 })
	config := filepath.Join(r.dir, "certs.d")
	node := r.addNode(r.containerdFlags(config)...)
	const size = 24 << 20
	d := r.rawBlob("slow", size)
	path := r.containerdPath(config)
	if err := path.read(t.Context(), io.Discard, r.upstream.host, "models/m", d, 0, 5<<20); err != nil {
		t.Fatal(err)
	}
	node.end(syscall.SIGKILL)
	if err := path.read(t.Context(), io.Discard, r.upstream.host, "models/m", d, 0, size); err == nil {
		t.Error("a node that is dead answers")
	}
	node.start()
	sum := sha256.New()
	r.until("the node serves again", func() bool {
		sum.Reset()
		return r.containerdPath(config).read(t.Context(), sum, r.upstream.host, "models/m", d, 0, size) == nil
	})
	if got := hex.EncodeToString(sum.Sum(nil)); got != d.Encoded() {
		t.Errorf("the blob came as %s", got)
	}
}

// anonymous is how many bytes of memory of its own the process has.
func (d *daemon) anonymous() int64 {
	d.r.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		d.r.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				d.r.t.Fatal(err)
			}
			return kib << 10
		}
	}
	d.r.t.Fatal("the kernel does not tell RssAnon")
	return 0
}
