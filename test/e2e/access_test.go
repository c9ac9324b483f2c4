package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/shoal-project/shoal/test/cluster"
)

// puller is a node's containerd, as a kubelet speaks to it.
type puller struct {
	node   *cluster.Node
	path   string // what the node's containerd pulls by
	images cri.ImageServiceClient
}

// The ways by which containerd pulls, and the lines of its log that tell which one it went.
const (
	byTransfer, byTransferSays = "transfer", "Calling cri transfer service"
	byLocal, byLocalSays       = "local", "using client.Pull()"
)

// newPuller makes containerd pull by path, and connects to it.
func newPuller(t *testing.T, n *cluster.Node, path string) *puller {
	t.Helper()
	const file = "/etc/containerd/config.toml"
	config, err := n.Run(within(t), "cat", file)
	if err != nil {
		t.Fatal(err)
	}
	const images = "[plugins.'io.containerd.cri.v1.images']\n"
	config = strings.Replace(config, images, images+fmt.Sprintf("  use_local_image_pull = %t\n", path == byLocal), 1)
	config += "\n[debug]\n  level = 'debug'\n"
	if err := n.WriteFile(within(t), file, config); err != nil {
		t.Fatal(err)
	}
	if err := n.Containerd.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Containerd.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+n.Proc("root/run/containerd/containerd.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &puller{n, path, cri.NewImageServiceClient(conn)}
}

// pull pulls an image that the node has not, and takes it away again.
func (p *puller) pull(ctx context.Context, image string, login *cri.AuthConfig) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	spec := &cri.ImageSpec{Image: image}
	if _, err := p.images.PullImage(ctx, &cri.PullImageRequest{Image: spec, Auth: login}); err != nil {
		return err
	}
	_, err := p.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
	return err
}

// checkPath fails if containerd pulled by another way than it was told to.
func (p *puller) checkPath(t *testing.T) {
	t.Helper()
	log, err := os.ReadFile(p.node.Containerd.Log)
	if err != nil {
		t.Fatal(err)
	}
	transfer, local := bytes.Contains(log, []byte(byTransferSays)), bytes.Contains(log, []byte(byLocalSays))
	if transfer != (p.path == byTransfer) || local != (p.path == byLocal) {
		t.Errorf("%s: containerd pulled by the transfer service: %t, by itself: %t", p.path, transfer, local)
	}
}

// impostor is a process on the endpoint's port that asks everyone for a password, with TLS and without.
type impostor struct {
	mu       sync.Mutex
	requests []string // those that reached it, with what they told
	conns    int
}

// lure begins an impostor on a node, until the test ends.
func lure(t *testing.T, n *cluster.Node) *impostor {
	t.Helper()
	l, err := listenOn(n, endpointAddress)
	if err != nil {
		t.Fatal(err)
	}
	im := &impostor{}
	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS() // for its certificate, which names 127.0.0.1
	server := &http.Server{Handler: im, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(&eitherListener{l, im, certificate.TLS}) // until it is closed
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
		certificate.Close()
	})
	return im
}

// ServeHTTP implements http.Handler.
func (im *impostor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	im.mu.Lock()
	im.requests = append(im.requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
	im.mu.Unlock()
	w.Header().Set("Www-Authenticate", `Basic realm="shoal"`)
	w.WriteHeader(http.StatusUnauthorized)
}

func (im *impostor) seen() (conns int, requests []string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.conns, append([]string(nil), im.requests...)
}

// eitherListener speaks TLS to who begins with it, and plain HTTP to the others.
type eitherListener struct {
	net.Listener
	im  *impostor
	tls *tls.Config
}

// Accept implements net.Listener.
func (l *eitherListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.im.mu.Lock()
	l.im.conns++
	l.im.mu.Unlock()
	peeked := &peekedConn{conn, bufio.NewReader(conn)}
	if first, err := peeked.r.Peek(1); err == nil && first[0] == 0x16 { // a handshake (RFC 8446, 5.1)
		return tls.Server(peeked, l.tls), nil
	}
	return peeked, nil
}

type peekedConn struct {
	net.Conn
	r *bufio.Reader
}

// Read implements io.Reader.
func (c *peekedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// listenOn listens in a node's network.
func listenOn(n *cluster.Node, address string) (net.Listener, error) {
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, in a foreign network, ends with the goroutine
		space, err := os.Open(n.Proc("ns/net"))
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer space.Close()
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
		done <- result{l, err}
	}()
	r := <-done
	return r.l, r.err
}

// remembers reports which of the words are in a process's memory.
func remembers(pid int, words ...string) (found []string, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	has := map[string]bool{}
	const step, overlap = 4 << 20, 256
	buf := make([]byte, step+overlap)
	for line := range strings.Lines(string(maps)) {
		if !strings.Contains(line, " rw") {
			continue
		}
		var from, to int64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			return nil, err
		}
		for at := from; at < to; at += step {
			n, _ := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at) // what was never touched, or has just gone, cannot be read
			for _, w := range words {
				has[w] = has[w] || bytes.Contains(buf[:n], []byte(w))
			}
		}
	}
	for _, w := range words {
		if has[w] {
			found = append(found, w)
		}
	}
	return found, nil
}

// traces are the ways in which a password is written down: as it is, and as in an Authorization header. The
// header's last characters depend on nothing behind them.
func traces(user, password string) []string {
	return []string{password, strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(user+":"+password)), "=")}
}

// login is what a puller shows.
type login struct{ name, user, password string }

// cell is one pull of the matrix.
type cell struct {
	login, reference string
	address          bool // the registry's, beside the credentials
	endpoint, path   string
}

// The outcomes of a pull, by where the manifest came from.
const (
	fromNode     = "from the node"
	fromRegistry = "from the registry"
	refusedPull  = "refused"
)

// access pulls a private image in every way.
type access struct {
	t          *testing.T
	region     *region
	logins     []login
	references map[string]string // by tag and by digest
	pullers    []*puller
	endpoints  []string // the states of the endpoint so far

	mu  sync.Mutex
	got map[cell]string
	why map[cell]error
}

// round makes all pulls for one state of the endpoint, by both pullers at once.
func (a *access) round(endpoint string) {
	a.endpoints = append(a.endpoints, endpoint)
	var nodes sync.WaitGroup
	for _, p := range a.pullers {
		nodes.Go(func() {
			for _, at := range a.cells(endpoint, p.path) {
				a.try(p, at)
			}
		})
	}
	nodes.Wait()
}

func (a *access) cells(endpoint, path string) []cell {
	var all []cell
	for _, l := range a.logins {
		for _, reference := range []string{"tag", "digest"} {
			for _, address := range []bool{false, true} {
				all = append(all, cell{l.name, reference, address, endpoint, path})
			}
		}
	}
	return all
}

func (a *access) try(p *puller, at cell) {
	auth := &cri.AuthConfig{}
	for _, l := range a.logins {
		if l.name == at.login {
			auth.Username, auth.Password = l.user, l.password
		}
	}
	if at.address {
		auth.ServerAddress = "http://" + a.region.registry.Host
	}
	given := func() (manifests, blobs int) { // by the node
		if at.endpoint == "up" {
			manifests, blobs = a.region.manifests(p.node, "200"), a.region.blobRequests(p.node)
		}
		return manifests, blobs
	}
	manifests, blobs := given()
	err := p.pull(a.t.Context(), a.references[at.reference], auth)
	outcome := fromRegistry
	manifestsNow, blobsNow := given()
	switch {
	case err != nil:
		outcome = refusedPull
	case manifestsNow > manifests:
		outcome = fromNode
	}
	if got := blobsNow > blobs; got != (err == nil && at.endpoint == "up") {
		outcome += fmt.Sprintf(", layers from the node: %t", got)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got[at], a.why[at] = outcome, err
}

// want is what has to come of a pull.
func (at cell) want() string {
	switch {
	case at.login != "good":
		return refusedPull
	case at.endpoint == "up" && !at.address:
		return fromNode
	}
	return fromRegistry // with an address, containerd shows the credentials there alone
}

// registrysOwn is what the registry, or its token server, says to a pull that it refuses.
func (at cell) registrysOwn() string {
	if at.login == "wrong" && !at.address {
		return "401"
	}
	return "insufficient scope" // with an address, the endpoint's host gets a token of nobody
}

// reason is an error in a few words.
func reason(err error) string {
	for _, r := range []struct{ words, short string }{
		{"insufficient_scope", "insufficient scope"}, {"401 Unauthorized", "401"}, {"not found", "not found"},
		{"connection refused", "no connection"}, {"unknown authority", "not believed"},
	} {
		if strings.Contains(err.Error(), r.words) {
			return r.short
		}
	}
	return err.Error()
}

// judge compares every pull with what has to come of it, and returns the matrix.
func (a *access) judge() string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	header := "credentials\treference\tServerAddress"
	rows := map[cell]string{}
	for _, endpoint := range a.endpoints {
		for _, p := range a.pullers {
			header += "\t" + endpoint + ", " + p.path
			for _, at := range a.cells(endpoint, p.path) {
				word := a.got[at]
				if word != at.want() {
					a.t.Errorf("%+v: %s, want %s: %v", at, word, at.want(), a.why[at])
				}
				if err := a.why[at]; err != nil {
					word += ": " + reason(err)
					if endpoint == "up" && at.registrysOwn() != reason(err) {
						a.t.Errorf("%+v: the user does not hear what the registry says: %v", at, err)
					}
				}
				row := at
				row.endpoint, row.path = "", ""
				rows[row] += "\t" + word
			}
		}
	}
	fmt.Fprintln(table, header)
	for _, row := range a.cells("", "") {
		address := map[bool]string{true: "set", false: "unset"}[row.address]
		fmt.Fprintf(table, "%s\t%s\t%s%s\n", row.login, row.reference, address, rows[row])
	}
	if err := table.Flush(); err != nil {
		a.t.Fatal(err)
	}
	return text.String()
}

// noPasswords fails if a process of Shoal has seen one of the passwords. What came in a header can be found in its
// memory: the tokens of clients are.
func (a *access) noPasswords(processes ...*cluster.Process) {
	const token = "Bearer eyJ" // and the rest of a JWT (RFC 7519)
	words := []string{token}
	for _, l := range a.logins {
		if l.user != "" {
			words = append(words, traces(l.user, l.password)...)
		}
	}
	for _, p := range processes {
		found, err := remembers(p.Pid(), words...)
		if err != nil {
			a.t.Fatal(err)
		}
		if len(found) != 1 || found[0] != token {
			a.t.Errorf("%s has in its memory %q, want a client's token and no password", p.Name, found)
		}
		log, err := os.ReadFile(p.Log)
		if err != nil {
			a.t.Fatal(err)
		}
		for _, word := range words {
			if bytes.Contains(log, []byte(word)) {
				a.t.Errorf("%s has in its log %q", p.Name, word)
			}
		}
	}
}

// fooled takes the endpoint's authority out of a node's hosts.toml and reports whether the impostor then gets the
// password: else it would be a poor one, and its silence before no proof.
func (a *access) fooled(p *puller, im *impostor, good login) bool {
	host := a.region.registry.Host
	text := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", host, endpointAddress)
	if err := p.node.WriteFile(within(a.t), filepath.Join("/etc/containerd/certs.d", host, "hosts.toml"), text); err != nil {
		a.t.Fatal(err)
	}
	if err := p.pull(within(a.t), a.references["tag"], &cri.AuthConfig{Username: good.user, Password: good.password}); err != nil {
		a.t.Error(err)
	}
	_, requests := im.seen()
	return strings.Contains(strings.Join(requests, "\n"), traces(good.user, good.password)[1])
}

const endpointAddress = "127.0.0.1:7073" // the default of --containerd-listen

// TestAccess pulls a private image with every kind of credentials, by tag and by digest, by both of containerd's
// ways, with and without the registry's address beside the credentials, while the endpoint is up, while it is down,
// and while an impostor sits on its port. The image comes to those only to whom its registry gives it, the others hear
// from the endpoint what the registry says, and no password comes to Shoal or to the impostor.
func TestAccess(t *testing.T) {
	const private = "team/private"
	w := newWorld(t)
	a := &access{t: t, got: map[cell]string{}, why: map[cell]error{}, logins: []login{
		{"good", "alice", "alices-own-secret"}, {"none", "", ""}, {"wrong", "alice", "a-guess-at-a-secret"},
		{"of another repository", "bob", "bobs-other-secret"}, {"revoked", "carol", "carols-past-secret"},
	}}
	good, revoked := a.logins[0], a.logins[4]
	server := tokens{
		Users: map[string]string{"mirror": "own", "alice": good.password, "bob": a.logins[3].password, "carol": revoked.password},
		May:   map[string][]string{"mirror": {private}, "alice": {private}, "bob": {"team/other"}, "carol": {private}},
	}
	registry, err := w.AddRegistry(t.Context(), "tokens", cluster.RegistryOptions{Auth: server.prepare(t)})
	if err != nil {
		t.Fatal(err)
	}
	server.start(t, registry)
	c, _ := addCluster(t, w, "one", 2)
	docker := t.TempDir()
	if err := os.WriteFile(filepath.Join(docker, "config.json"), dockerConfig(registry.Host, "mirror", "own"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.region = newRegion(t, w, registry, c.Nodes, docker)
	agents := a.region.agents
	repo := repository(t, registry, private+":v1", good.user, good.password)
	image := cluster.Image{Entrypoint: []string{"/secret"}, Layers: []cluster.Files{{"secret": randomFile(t, 1, 1<<20)}}}
	pushed, _, err := image.Push(within(t), repo)
	if err != nil {
		t.Fatal(err)
	}
	a.references = map[string]string{"tag": repo.Reference.String(), "digest": registry.Host + "/" + private + "@" + pushed.Digest.String()}
	a.pullers = []*puller{newPuller(t, c.Nodes[0], byTransfer), newPuller(t, c.Nodes[1], byLocal)}

	for _, p := range a.pullers {
		if err := p.pull(within(t), a.references["tag"], &cri.AuthConfig{Username: revoked.user, Password: revoked.password}); err != nil {
			t.Fatalf("%s: before it was revoked: %v", p.path, err)
		}
		if a.region.manifests(p.node, "200") == 0 {
			t.Errorf("%s: before it was revoked it did not come through the node", p.path)
		}
	}
	server.revoke(t, revoked.user, private)

	a.round("up")
	a.noPasswords(a.region.mirror, agents[c.Nodes[0].Name], agents[c.Nodes[1].Name])

	for _, n := range c.Nodes {
		if err := agents[n.Name].Kill(); err != nil {
			t.Fatal(err)
		}
	}
	a.round("down")

	var impostors []*impostor
	for _, n := range c.Nodes {
		impostors = append(impostors, lure(t, n))
	}
	a.round("impostor")
	t.Logf("an image that its registry gives to some:\n%s", a.judge())
	for i, p := range a.pullers {
		conns, requests := impostors[i].seen()
		t.Logf("%s: the impostor saw %d connections and %d requests", p.path, conns, len(requests))
		if conns == 0 || len(requests) > 0 {
			t.Errorf("%s: %d connections came to the impostor, with the requests %q", p.path, conns, requests)
		}
		if !a.fooled(p, impostors[i], good) {
			t.Errorf("%s: an impostor that is believed gets no password", p.path)
		}
		p.checkPath(t)
	}
}

// manifests is how many requests for manifests the node's agent has answered with a status.
func (r *region) manifests(n *cluster.Node, status string) int {
	r.t.Helper()
	var count int
	if _, err := fmt.Sscan(r.metric(n, fmt.Sprintf(`shoal_endpoint_requests_total{kind="manifest",status=%q}`, status)), &count); err != nil {
		r.t.Fatal(err)
	}
	return count
}
