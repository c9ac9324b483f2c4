package test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// copied is what `shoal copy --json` prints.
type copied struct {
	Reference    string `json:"reference"`
	Digest       string `json:"digest"`
	Bytes        int64  `json:"bytes"`
	BytesSent    int64  `json:"bytes_sent"`
	BytesMounted int64  `json:"bytes_mounted"`
	BytesPresent int64  `json:"bytes_present"`
}

func parseCopied(t *testing.T, stdout string) copied {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var c copied
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &c); err != nil {
		t.Fatalf("last line of stdout: %v\n%s", err, stdout)
	}
	return c
}

// From an open registry to a private one, with kill -9 in the middle.
func TestKilledCopyGoesOn(t *testing.T) {
	const (
		size  = 96 << 20
		chunk = 8 << 20
	)
	east, west := newUpstream(t, nil), newUpstream(t, map[string]string{"ann": "secret"})
	dir, files := writeModel(t, size)
	src, dst := east.host+"/models/kill:v1", west.host+"/eu/kill"
	succeed(t, "push", dir, src, "--plain-http", "--state", t.TempDir())
	home := t.TempDir()
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, west.host, base64.StdEncoding.EncodeToString([]byte("ann:secret")))
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) *process {
		cmd := shoal(t, args...)
		cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+home)
		return begin(t, cmd)
	}
	copying := []string{"copy", src, dst, "--from-plain-http", "--to-plain-http", "--json", "--state", t.TempDir()}

	held := newGate(5*chunk + chunk/2)
	west.set(held.fault)
	first := run(copying...)
	select {
	case <-held.reached:
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	first.signal(syscall.SIGKILL)
	if res := first.wait(); res.code != -1 {
		t.Fatalf("the first copy was not killed, its exit code is %d\n%s", res.code, res.stderr)
	}
	close(held.opened)
	<-held.held.Done() // the registry has noticed
	west.set(nil)
	if res := run("inspect", dst+":v1", "--plain-http").wait(); res.code != 1 {
		t.Errorf("a killed copy is visible: %s", res.stdout)
	}

	res := run(copying...).wait()
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.stderr)
	}
	got := parseCopied(t, res.stdout)
	const before = 4 * chunk // safely accepted and written down when the kill came
	if got.BytesSent > size-before+1<<20 || got.BytesSent+got.BytesPresent != got.Bytes || got.Reference != dst+":v1" {
		t.Errorf("the second copy: %+v", got)
	}
	if all := west.Received(); all > got.Bytes+2*chunk {
		t.Errorf("the registry received %d bytes for %d", all, got.Bytes)
	}
	out := filepath.Join(t.TempDir(), "out")
	if res := run("pull", dst+":v1", out, "--plain-http").wait(); res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.stderr)
	}
	checkTree(t, out, files)

	res = run(copying...).wait()
	if again := parseCopied(t, res.stdout); again.Digest != got.Digest || again.BytesSent != 0 {
		t.Errorf("the same copy again: %+v", again)
	}
	res = run("copy", src, dst+":v1", "--from-plain-http", "--to-plain-http").wait()
	if !strings.Contains(res.stdout, got.Digest) || !strings.Contains(res.stdout, "0B sent") {
		t.Errorf("stdout for people: %q", res.stdout)
	}
}

func TestCopyRefuses(t *testing.T) {
	reg := newUpstream(t, nil)
	dir, _ := writeModel(t, 1<<20)
	src := reg.host + "/models/src:v1"
	got := parsePushed(t, succeed(t, "push", dir, src, "--plain-http", "--json", "--state", t.TempDir()))
	digest := reg.host + "/models/src@" + got.Digest
	plain := []string{"--from-plain-http", "--to-plain-http", "--state", t.TempDir()}
	for name, tc := range map[string]struct {
		src, dst string
		fault    fault
		want     string
	}{
		"no source tag":      {reg.host + "/models/src", reg.host + "/models/dst:v1", nil, "add :TAG or @DIGEST"},
		"no such tag":        {reg.host + "/models/src:v9", reg.host + "/models/dst", nil, "not found"},
		"digest without tag": {digest, reg.host + "/models/dst", nil, "needs a tag"},
		"digest as target":   {src, reg.host + "/models/dst@" + got.Digest, nil, "under a tag"},
		"401":                {src, reg.host + "/models/dst", fails(every, forever, status(http.StatusUnauthorized)), "docker login"},
	} {
		t.Run(name, func(t *testing.T) {
			reg.set(tc.fault)
			res := finish(t, shoal(t, append([]string{"copy", tc.src, tc.dst}, plain...)...))
			reg.set(nil)
			checkRefused(t, res, tc.want)
		})
	}
	out := succeed(t, append([]string{"copy", digest, reg.host + "/models/dst:v2", "--json"}, plain...)...)
	if c := parseCopied(t, out); c.BytesMounted < 1<<20 || c.Digest != got.Digest {
		t.Errorf("within one registry: %+v", c)
	}
}
