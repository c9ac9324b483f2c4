package mirror

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registryserver"
)

// childEnv makes the test binary a mirror: "DIR UPSTREAM".
const childEnv = "SHOAL_MIRROR_TEST_CHILD"

// beChild serves until it is killed. It prints its address, and "synced" for every line that it reads
// after its fills were synced.
func beChild() bool {
	dir, upstream, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		return false
	}
	m, err := New(killConfig(dir, upstream))
	if err != nil {
		fmt.Println(err)
		return true
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return true
	}
	go m.Run(context.Background())
	go http.Serve(listener, m.Handler())
	fmt.Println(listener.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		for _, f := range m.fills {
			if err := f.blob.Sync(); err != nil {
				fmt.Println(err)
			}
		}
		fmt.Println("synced")
	}
	return true
}

func killConfig(dir, upstream string) Config {
	return Config{Dir: dir, RangeSize: 4 * mib, Retry: testRetry(), Upstreams: []Upstream{{
		Name: "reg.example.com", Registry: upstream, PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential),
	}}}
}

// TestKill kills a mirror in the middle of a fill: the next one reads only the rest.
func TestKill(t *testing.T) {
	r := newRig(t)
	d, blob := r.push(40 * mib)
	gate := make(chan struct{})
	t.Cleanup(func() { close(gate) })
	r.setFault(func(req *http.Request) registryserver.Fault {
		var from int64
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
		return registryserver.Fault{Wait: gate, At: max(0, 24*mib-from)}
	})

	dir := t.TempDir()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+dir+" "+r.upstream.Addr().String())
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	own := r.url
	r.url = "http://" + lines.Text()
	got := r.get(blobPath(d), "Range", "bytes=0-25165823")
	if !bytes.Equal(got.body, blob[:24*mib]) {
		t.Fatalf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	fmt.Fprintln(in)
	if lines.Scan(); lines.Text() != "synced" {
		t.Fatalf("the child says %q", lines.Text())
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait()
	if sent := r.upstream.Sent(d); sent != 24*mib {
		t.Errorf("upstream sent %d bytes", sent)
	}

	r.setFault(nil)
	r.url = own
	r.start(killConfig(dir, r.upstream.Addr().String()))
	if got := r.get(blobPath(d)); !bytes.Equal(got.body, blob) {
		t.Errorf("%d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if sent := r.upstream.Sent(d); sent != int64(len(blob)) {
		t.Errorf("upstream sent %d of %d bytes", sent, len(blob))
	}
}
