package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/peer/pagecache"
)

// nodeCheck is what the demo finds on a node's disk.
type nodeCheck struct {
	files, right int
	modelBytes   int64   // of the source's files
	allocated    int64   // by the whole folder of the node, each inode once
	resident     float64 // share of the tree in the page cache after a drop and a warm
}

// checkNode compares the tree with the source, file by file, by sha256.
func checkNode(ctx context.Context, files, tree, nodeDir string) (nodeCheck, error) {
	var c nodeCheck
	want, err := listFiles(files)
	if err != nil {
		return c, err
	}
	got, err := listFiles(tree)
	if err != nil {
		return c, err
	}
	if !slices.Equal(want, got) {
		return c, fmt.Errorf("tree %s has the files %q, the model has %q", tree, got, want)
	}
	for _, name := range want {
		if err := ctx.Err(); err != nil {
			return c, err
		}
		a, size, err := sumFile(filepath.Join(files, name))
		if err != nil {
			return c, err
		}
		b, _, err := sumFile(filepath.Join(tree, name))
		if err != nil {
			return c, err
		}
		c.files++
		c.modelBytes += size
		if a == b {
			c.right++
		}
	}
	if c.allocated, err = allocated(nodeDir); err != nil {
		return c, err
	}
	c.resident, err = warmTree(ctx, tree)
	return c, err
}

// warmTree drops a tree from the page cache, as a restart of the machine would, brings it back, and
// returns the share of it that is resident.
func warmTree(ctx context.Context, tree string) (float64, error) {
	if err := pagecache.Drop(ctx, tree); err != nil {
		return 0, err
	}
	cold, err := pagecache.Residency(ctx, tree)
	if err != nil {
		return 0, err
	}
	if resident, total := pagecache.Sum(cold); resident > total/2 {
		return 0, fmt.Errorf("the page cache cannot be emptied of %s (is it in memory itself, as tmpfs is?): give --dir on a disk", tree)
	}
	result, err := pagecache.Warm(ctx, tree, pagecache.Config{})
	return float64(result.Resident) / float64(max(result.Total, 1)), err
}

func listFiles(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(p string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			rel, relErr := filepath.Rel(dir, p)
			names, err = append(names, rel), relErr
		}
		return err
	})
	return names, err
}

func sumFile(name string) (sum string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return string(h.Sum(nil)), size, err
}

// allocated sums the disk blocks below dir, those of a file with several names once.
func allocated(dir string) (int64, error) {
	seen := map[uint64]bool{}
	var sum int64
	err := filepath.Walk(dir, func(_ string, info fs.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

func dirSize(dir string) (int64, error) {
	var sum int64
	names, err := listFiles(dir)
	for _, name := range names {
		info, statErr := os.Stat(filepath.Join(dir, name))
		if statErr != nil {
			return 0, statErr
		}
		sum += info.Size()
	}
	if err == nil && sum == 0 {
		err = fmt.Errorf("model %s has no bytes", dir)
	}
	return sum, err
}

// checkRoom makes sure that need bytes fit below dir.
func checkRoom(dir string, need int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %s free, the demo needs %s: give less --size or --nodes, or another --dir",
			dir, units.BytesSize(float64(free)), units.BytesSize(float64(need)))
	}
	return nil
}

// removeAll removes dir with its read-only folders.
func removeAll(dir string) error {
	err := filepath.WalkDir(dir, func(p string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			err = os.Chmod(p, 0o700)
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(dir))
}

// demoResult is the object that --json prints.
type demoResult struct {
	Nodes          int     `json:"nodes"`
	Bytes          int64   `json:"bytes"`           // of the model's layers
	Seconds        float64 `json:"seconds"`         // until the last node had it
	OriginCopies   float64 `json:"origin_copies"`   // layer bytes that left the registry / bytes
	DuplicateRatio float64 `json:"duplicate_ratio"` // bytes that nodes received twice or wrong / bytes received
	DiskCopies     float64 `json:"disk_copies"`     // allocated on the fullest node / bytes of the model's files
	Verified       bool    `json:"verified"`        // sha256 of every file on every node
	ResidentMin    float64 `json:"resident_min"`    // share of the model in the page cache, after a drop and a warm
	V2             struct {
		Bytes        int64   `json:"bytes"` // layer bytes that left the registry
		OriginCopies float64 `json:"origin_copies"`
		LayersReused int     `json:"layers_reused"`
	} `json:"v2"`
}

func (d *demo) report(stdout io.Writer, v1, v2 *version) error {
	var r demoResult
	r.Nodes, r.Seconds, r.Bytes = d.flags.nodes, v1.seconds, v1.changed
	r.OriginCopies = float64(v1.moved) / float64(v1.changed)
	var received, wasted int64
	r.Verified, r.ResidentMin = true, 1
	for i, p := range v1.progress {
		m := p.Models[0]
		received += m.OriginBytes + m.PeerBytes
		wasted += m.WastedBytes
		r.DiskCopies = max(r.DiskCopies, float64(v1.nodes[i].allocated)/float64(v1.nodes[i].modelBytes))
	}
	for _, v := range []*version{v1, v2} {
		for _, n := range v.nodes {
			r.Verified = r.Verified && n.right == n.files
			r.ResidentMin = min(r.ResidentMin, n.resident)
		}
	}
	r.DuplicateRatio = float64(wasted) / float64(max(received, 1))
	r.V2.Bytes, r.V2.LayersReused = v2.moved, v2.pushed.LayersReused
	r.V2.OriginCopies = float64(v2.moved) / float64(max(v2.changed, 1))
	if err := d.table(v1, v2, r); err != nil {
		return err
	}
	if d.flags.json {
		if err := json.NewEncoder(stdout).Encode(r); err != nil {
			return err
		}
	}
	if !r.Verified {
		return errors.New("a file on a node is not the model's")
	}
	return nil
}

func (d *demo) table(v1, v2 *version, r demoResult) error {
	fmt.Fprintln(d.out)
	t := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "NODE\tSECONDS\tMIB/S\tFROM ORIGIN\tFROM PEERS\tON DISK\tIN MEMORY\tSHA256\t")
	for i, p := range v1.progress {
		m, n := p.Models[0], v1.nodes[i]
		fmt.Fprintf(t, "%s\t%.1f\t%.0f\t%s\t%s\t%.3f x\t%.1f %%\t%d/%d files\t\n", p.Node, m.Seconds,
			float64(m.Total)/(1<<20)/m.Seconds, units.BytesSize(float64(m.OriginBytes)),
			units.BytesSize(float64(m.PeerBytes)), float64(n.allocated)/float64(n.modelBytes), 100*n.resident, n.right, n.files)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var lines strings.Builder
	fmt.Fprintf(&lines, "\nVersion 1: %s in %d layers to %d nodes in %.1f s. Copies that left the registry: %.3f; received twice: %.2f %%.\n",
		units.BytesSize(float64(r.Bytes)), len(v1.image.Layers), r.Nodes, r.Seconds, r.OriginCopies, 100*r.DuplicateRatio)
	fmt.Fprintf(&lines, "Version 2: one file changed; %d of %d layers reused, %s read and %s sent by push, %s left the registry, %.1f s.\n",
		r.V2.LayersReused, len(v2.image.Layers), units.BytesSize(float64(v2.pushed.BytesRead)),
		units.BytesSize(float64(v2.pushed.BytesSent)), units.BytesSize(float64(r.V2.Bytes)), v2.seconds)
	fmt.Fprintf(&lines, "In memory: at least %.1f %% of the model on every node, measured after its pages were dropped and read again.\n", 100*r.ResidentMin)
	_, err := io.WriteString(d.out, lines.String())
	return err
}
