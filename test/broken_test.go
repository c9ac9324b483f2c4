package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoal-project/shoal/tracker/client"
)

// onOwnDisk makes cmd run with d.disk mounted at d.dir, which only it sees.
func (d *daemon) onOwnDisk(cmd *exec.Cmd) {
	cmd.Args = append([]string{"sh", "-c", "set -e; " + d.disk + `; shift; exec "$@"`, "sh", d.dir, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
}

// Ways to mount a disk at $1.
const (
	smallDisk    = `mkdir "$1"; mount -t tmpfs -o size=120m,mode=0755 shoal "$1"`
	readOnlyDisk = `mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"`
)

// data is d.dir as the test sees it.
func (d *daemon) data() string {
	if d.disk == "" {
		return d.dir
	}
	return filepath.Join("/proc", fmt.Sprint(d.cmd.Process.Pid), "root", d.dir)
}

// fill takes all that is free on the disk of dir, and returns the file that does.
func fill(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "somebody-else"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 64<<10); len(buf) > 0; {
		if _, err := f.Write(buf); errors.Is(err, syscall.ENOSPC) {
			buf = buf[:len(buf)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

// says waits until the node reports tag as failed in a sentence with every one of words.
func (r *region) says(node *daemon, tag string, words ...string) {
	r.t.Helper()
	var m client.ModelProgress
	r.until(fmt.Sprintf("%s says %q of %s", node.name, words, tag), func() bool {
		m = r.report(node, tag)
		for _, w := range words {
			if !strings.Contains(m.Error, w) {
				return false
			}
		}
		return true
	})
	if strings.Contains(m.Error, "\n") {
		r.t.Errorf("more than one sentence: %q", m.Error)
	}
	r.t.Logf("%s: %s", node.name, m.Error)
}

// A disk that others fill in the middle of a download.
func TestDiskFull(t *testing.T) {
	r := newRegion(t, 1)
	broken := r.addDisk(smallDisk, "--keep-free", "1MiB")
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	h := r.hold(image)
	r.desire("v1")
	r.half(image, h, "v1", r.nodes...)
	file := fill(t, broken.data())
	h.release()
	r.says(broken, "v1", "no room in the store; ", "no space left")
	if _, err := os.Stat(broken.tree(image)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", broken.tree(image), err)
	}
	r.ready(image, files, r.nodes[0]) // the other one is not held up
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.ready(image, files, broken)
}

// A data folder that cannot be written to ends the program at once, with one sentence, and spoils
// nothing.
func TestReadOnlyFolder(t *testing.T) {
	r := newRegion(t, 1)
	n := r.nodes[0]
	dir, files := makeModel(t)
	image := r.push(dir, "v1")
	h := r.hold(image)
	r.desire("v1")
	r.half(image, h, "v1", n)
	n.end(syscall.SIGTERM)
	cmd := shoal(t, append(n.args, "--listen", n.addr)...)
	n.disk = readOnlyDisk
	n.onOwnDisk(cmd)
	n.disk = ""
	res := finish(t, cmd)
	if res.code != 1 || !strings.Contains(res.stderr, "read-only file system") || !strings.Contains(res.stderr, n.dir) {
		t.Errorf("exit code %d\n%s", res.code, res.stderr)
	}
	if lines := strings.Count(strings.TrimSpace(res.stderr), "\n") + 1; lines != 1 {
		t.Errorf("%d lines on stderr:\n%s", lines, res.stderr)
	}
	t.Log(res.stderr)
	n.start()
	h.release()
	r.ready(image, files, n)
	if got, most := n.metric("shoal_peer_origin_bytes_total"), h.layer.Size; got > most {
		t.Errorf("%d bytes were fetched again, at most %d were missing", got, most)
	}
}
