package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/internal/probe"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// region is a registry, and mirror, tracker and nodes as real processes with mTLS.
type region struct {
	t        *testing.T
	dir      string
	upstream *upstream
	tracker  *daemon
	mirror   *daemon
	nodes    []*daemon
	control  *client.Client
	yield    bool // whether nodes to be added yield
}

// daemon is one process, which can be killed and started again at its address.
type daemon struct {
	r     *region
	name  string
	what  string // as it logs "listening"
	args  []string
	dir   string
	addr  string
	admin string
	also  map[string]string // other addresses, by what listens there
	disk  string            // mounts a disk of its own at dir; "" for none

	cmd  *exec.Cmd
	logs *logBuffer
	gone chan struct{}
	told bool // to end, by the test
}

// logBuffer keeps what a process logs and tells of the addresses in it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newBareRegion has a registry and a mirror only.
func newBareRegion(t *testing.T, change ...func(*registryserver.Config)) *region {
	t.Helper()
	r := &region{t: t, dir: t.TempDir(), upstream: newUpstream(t, nil, change...)}
	succeed(t, "certs", "init", filepath.Join(r.dir, "ca"))
	r.mirror = r.start("mirror", "mirror", "mirror", "mirror",
		"--dir", filepath.Join(r.dir, "mirror"), "--upstream", r.upstream.host+"=http://"+r.upstream.host)
	return r
}

func newRegion(t *testing.T, nodes int, change ...func(*registryserver.Config)) *region {
	t.Helper()
	r := newBareRegion(t, change...)
	r.tracker = r.start("tracker", "tracker", "tracker", "tracker")
	for range nodes {
		r.addNode()
	}
	bundle, err := certs.Load(r.issue("controller"))
	if err != nil {
		t.Fatal(err)
	}
	r.control, err = client.New(client.Config{URL: "https://" + r.tracker.addr, TLS: bundle.Client(certs.Tracker)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.control.Close)
	return r
}

func (r *region) issue(role string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, "certs", filepath.FromSlash(role))
	succeed(r.t, "certs", "issue", filepath.Join(r.dir, "ca"), dir, role)
	return dir
}

// addNode starts another node, on an address of its own.
func (r *region) addNode(flags ...string) *daemon {
	r.t.Helper()
	return r.addDisk("", flags...)
}

// addDisk is addNode with a disk of its own for the node's folder.
func (r *region) addDisk(disk string, flags ...string) *daemon {
	r.t.Helper()
	i := len(r.nodes) + 1
	name := fmt.Sprintf("n%d", i)
	args := append([]string{"--name", name, "--dir", filepath.Join(r.dir, name), "--mirror", "https://" + r.mirror.addr}, flags...)
	if !r.yield {
		args = append(args, "--no-yield") // to the test itself, with the mirror and the registry
	}
	if r.tracker != nil {
		args = append(args, "--tracker", "https://"+r.tracker.addr)
	}
	d := r.prepare(name, "swarm", "peer", "node/"+name, args...)
	d.addr = fmt.Sprintf("127.0.0.%d:0", i+1)
	d.dir, d.disk = filepath.Join(r.dir, name), disk
	d.start()
	r.nodes = append(r.nodes, d)
	return d
}

func (r *region) start(name, what, command, role string, args ...string) *daemon {
	r.t.Helper()
	d := r.prepare(name, what, command, role, args...)
	d.start()
	return d
}

func (r *region) prepare(name, what, command, role string, args ...string) *daemon {
	r.t.Helper()
	d := &daemon{r: r, name: name, what: what, addr: "127.0.0.1:0"}
	d.args = append([]string{command, "--certs", r.issue(role)}, args...)
	return d
}

// start runs the daemon, at the address of its last run, and waits until it listens.
func (d *daemon) start(flags ...string) {
	t := d.r.t
	t.Helper()
	cmd := shoal(t, append(append(d.args, "--listen", d.addr), flags...)...)
	if d.disk != "" {
		d.onOwnDisk(cmd)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	logs, up, gone := &logBuffer{}, make(chan struct{}), make(chan struct{})
	d.cmd, d.logs, d.gone, d.admin, d.also, d.told = cmd, logs, gone, "", map[string]string{}, false
	go func() {
		defer close(gone)
		var addr string
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			logs.mu.Lock()
			logs.text.Write(append(lines.Bytes(), '\n'))
			logs.mu.Unlock()
			var l struct{ Msg, What, Addr string }
			if json.Unmarshal(lines.Bytes(), &l) != nil || l.Msg != "listening" || (addr != "" && d.admin != "") {
				continue
			}
			switch l.What {
			case d.what:
				addr = l.Addr
			case "admin":
				d.admin = l.Addr
			default:
				d.also[l.What] = l.Addr
			}
			if addr != "" && d.admin != "" {
				d.addr = addr
				close(up)
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("%s:\n%s", d.name, logs)
		}
	})
	select {
	case <-up:
	case <-gone:
		t.Fatalf("%s ended:\n%s", d.name, logs)
	case <-t.Context().Done():
		t.Fatalf("%s does not listen:\n%s", d.name, logs)
	}
}

func (d *daemon) signal(sig syscall.Signal) {
	d.r.t.Helper()
	d.told = true
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.r.t.Fatal(err)
	}
}

// died reports whether the daemon has ended and nobody told it to.
func (d *daemon) died() bool {
	select {
	case <-d.gone:
		return !d.told
	default:
		return false
	}
}

// end sends sig, waits, and returns the exit code (-1: by a signal).
func (d *daemon) end(sig syscall.Signal) int {
	d.r.t.Helper()
	d.signal(sig)
	<-d.gone
	return d.cmd.ProcessState.ExitCode()
}

// get returns the answer of an admin path.
func (d *daemon) get(path string) string {
	t := d.r.t
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v %s", path, resp.Status, err, text)
	}
	return string(text)
}

// status returns what a node agent says of its models.
func (d *daemon) status() (p client.Progress) {
	d.r.t.Helper()
	if err := json.Unmarshal([]byte(d.get("/status")), &p); err != nil {
		d.r.t.Fatal(err)
	}
	return p
}

// metric returns the value of a metric without labels, or the sum over its labels.
func (d *daemon) metric(name string) int64 {
	d.r.t.Helper()
	v, err := probe.Metric(d.get("/metrics"), name)
	if err != nil {
		d.r.t.Fatal(err)
	}
	return int64(v)
}

// push packs dir as tag and returns the image.
func (r *region) push(dir, tag string, flags ...string) *model.Image {
	r.t.Helper()
	ref := r.upstream.host + "/models/m:" + tag
	succeed(r.t, append([]string{"push", dir, ref, "--plain-http", "--state", filepath.Join(r.dir, "state")}, flags...)...)
	image, err := model.Resolve(r.t.Context(), openRepository(r.t, ref), tag)
	if err != nil {
		r.t.Fatal(err)
	}
	return image
}

// desire makes every node want tags.
func (r *region) desire(tags ...string) {
	r.t.Helper()
	var d client.Desired
	for _, tag := range tags {
		d.Models = append(d.Models, client.DesiredModel{Name: tag, Reference: r.upstream.host + "/models/m:" + tag})
	}
	if err := r.control.SetDesired(r.t.Context(), d); err != nil {
		r.t.Fatal(err)
	}
}

// until polls until ok, a node dies that nobody killed, or the test's time is up.
func (r *region) until(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline, has := r.t.Deadline()
	for !ok() {
		for _, n := range r.nodes {
			if n.died() {
				r.t.Fatalf("never: %s: %s has ended by itself", what, n.name)
			}
		}
		select {
		case <-tick.C:
		case <-r.t.Context().Done():
			r.t.Fatalf("never: %s", what)
		}
		if has && time.Until(deadline) < 20*time.Second {
			r.t.Fatalf("not in time: %s", what)
		}
	}
}

// reference is how nodes call what push pushed as tag.
func (r *region) reference(tag string) string { return r.upstream.host + "/models/m:" + tag }

// report returns what node says about tag; its zero value where it has not said anything.
func (r *region) report(node *daemon, tag string) client.ModelProgress {
	all, err := r.control.Progress(r.t.Context())
	if err != nil {
		return client.ModelProgress{} // the tracker may be down
	}
	for _, p := range all {
		for _, m := range p.Models {
			if p.Node == node.name && m.Name == tag {
				return m
			}
		}
	}
	return client.ModelProgress{}
}

func (d *daemon) tree(image *model.Image) string {
	return filepath.Join(d.data(), "models", image.Manifest.Digest.Encoded())
}

// ready waits until the nodes have published image, and compares every file.
func (r *region) ready(image *model.Image, files map[string][]byte, nodes ...*daemon) {
	r.t.Helper()
	for _, n := range nodes {
		r.until(n.name+" has the model", func() bool {
			_, err := os.Stat(n.tree(image))
			return err == nil
		})
		checkTree(r.t, n.tree(image), files)
	}
}

// settled waits for the report in which the node counts the whole model.
func (r *region) settled(node *daemon, tag string) client.ModelProgress {
	r.t.Helper()
	var m client.ModelProgress
	r.until(node.name+" reports "+tag+" as ready", func() bool {
		m = r.report(node, tag)
		return m.State == "Ready"
	})
	return m
}

// held is a layer whose bytes from heldFrom on do not leave the registry until release.
type held struct {
	layer   model.Layer
	release func()
}

// heldFrom is where the mirror's second range begins.
const heldFrom = 8 << 20

// hold stops the registry in the middle of the image's largest layer.
func (r *region) hold(image *model.Image) held {
	var h held
	for _, l := range image.Layers {
		if l.Size > h.layer.Size {
			h.layer = l
		}
	}
	gate := make(chan struct{})
	h.release = sync.OnceFunc(func() { close(gate) })
	r.t.Cleanup(h.release)
	r.upstream.set(func(req *http.Request) registryserver.Fault {
		var from int64
		_, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
		if err == nil && from >= heldFrom && strings.HasSuffix(req.URL.Path, h.layer.Digest.String()) {
			return registryserver.Fault{Wait: gate}
		}
		return registryserver.Fault{}
	})
	return h
}

// half waits until the nodes hold all that hold lets through, and returns how much that is.
func (r *region) half(image *model.Image, h held, tag string, nodes ...*daemon) int64 {
	r.t.Helper()
	piece := model.PieceLength(h.layer.Size)
	var want int64
	for _, l := range image.Layers {
		want += l.Size
	}
	want -= h.layer.Size - heldFrom/piece*piece
	for _, n := range nodes {
		r.until(fmt.Sprintf("%s holds %d bytes", n.name, want), func() bool { return r.report(n, tag).Bytes >= want })
	}
	return want
}

func imageSize(image *model.Image) (sum int64) {
	for _, l := range image.Layers {
		sum += l.Size
	}
	return sum
}
