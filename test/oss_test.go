package test

import (
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/internal/osstest"
)

// TestPushFromOSS packs a bucket's directory with the program, kills it in the middle and lets it go on.
func TestPushFromOSS(t *testing.T) {
	const (
		size  = 64 << 20
		chunk = 8 << 20
	)
	oss := osstest.New(osstest.Config{Keys: map[string]osstest.Key{"ak": {Secret: "sk", Token: "token"}}})
	server := httptest.NewServer(oss)
	defer server.Close()
	_, files := writeModel(t, size)
	for name, content := range files {
		oss.Put("models", "qwen/v1/"+name, osstest.Bytes(content))
	}
	reg := newUpstream(t, nil)
	ref := reg.host + "/models/oss:v1"
	args := []string{
		"push", "oss://models/qwen/v1", ref, "--plain-http", "--json", "--parallel", "1", "--state", t.TempDir(),
		"--oss-endpoint", server.URL, "--oss-region", "cn-hangzhou",
	}
	with := func(env ...string) *exec.Cmd {
		cmd := shoal(t, args...)
		cmd.Env = append(cmd.Env, env...)
		return cmd
	}
	key := []string{"OSS_ACCESS_KEY_ID=ak", "OSS_ACCESS_KEY_SECRET=sk", "OSS_SESSION_TOKEN=token"}

	checkRefused(t, finish(t, with(key...)), "not encrypted")
	args = append(args, "--oss-insecure")
	checkRefused(t, finish(t, with("OSS_ACCESS_KEY_ID=", "OSS_ACCESS_KEY_SECRET=")), "set OSS_ACCESS_KEY_ID")
	checkRefused(t, finish(t, with("OSS_ACCESS_KEY_ID=ak", "OSS_ACCESS_KEY_SECRET=s", "OSS_SESSION_TOKEN=token")), "secret does not fit")

	held := newGate(5*chunk + chunk/2)
	reg.set(held.fault)
	first := begin(t, with(key...))
	select {
	case <-held.reached:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	first.signal(syscall.SIGKILL)
	first.wait()
	close(held.opened)
	<-held.held.Done()
	reg.set(nil)

	before := oss.Sent("models", "qwen/v1/"+bigFile)
	res := finish(t, with(key...))
	if res.code != 0 {
		t.Fatal(res.stderr)
	}
	const saved = 4 * chunk
	if again := oss.Sent("models", "qwen/v1/"+bigFile) - before; again > size-saved {
		t.Errorf("%d of %d bytes were read again", again, size)
	}
	if got := parsePushed(t, res.stdout); got.BytesSent > size-saved+1<<20 {
		t.Errorf("%d of %d bytes were sent again", got.BytesSent, size)
	}
	out := filepath.Join(t.TempDir(), "out")
	succeed(t, "pull", ref, out, "--plain-http")
	checkTree(t, out, files)
}
