package oss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/faults"
	"github.com/shoal-project/shoal/internal/osstest"
	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/internal/registryserver"
	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

// newRepository is a repository of a real registry on loopback.
func newRepository(t *testing.T) *registry.Repository {
	t.Helper()
	server, err := registryserver.New(registryserver.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	repo, err := registry.Open(server.Addr().String()+"/models/m", registry.Config{
		PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		repo.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return repo
}

// shards is a model of four shards, each a layer of its own, and small files.
func shards(version byte) map[string][]byte {
	files := map[string][]byte{"config.json": []byte("{}"), "sub/tokenizer.json": noise(9, 5000), "empty": {}}
	for i := range byte(4) {
		files[fmt.Sprintf("model-%d.safetensors", i)] = noise(i, 17<<20+int(i))
	}
	if version > 1 {
		files["model-2.safetensors"] = noise(100+version, 17<<20+2)
	}
	return files
}

func (b *bed) upload(dir string, files map[string][]byte) {
	for name, content := range files {
		b.Put(bucket, dir+"/"+name, osstest.Bytes(content))
	}
}

// sent returns the body bytes sent of a directory's objects, by path.
func (b *bed) sentOf(dir string, files map[string][]byte) map[string]int64 {
	sent := map[string]int64{}
	for name := range files {
		if n := b.Sent(bucket, dir+"/"+name); n > 0 {
			sent[name] = n
		}
	}
	return sent
}

// large has the parts that users have.
func large(c *Config) { c.Parts, c.PartBytes = 0, 0 }

func checkPulled(t *testing.T, repo *registry.Repository, tag string, files map[string][]byte) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	image, err := model.Pull(t.Context(), repo, tag, out, model.PullConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := image.Files(); n != len(files) {
		t.Errorf("%d files pulled of %d", n, len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(out, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what was in the bucket: %v", name, err)
		}
	}
}

// TestPackVersions packs a model, and its second version with a packer that has no state: the shard
// that changed is read, once, and nothing else.
func TestPackVersions(t *testing.T) {
	b := newBed(t)
	repo := newRepository(t)
	first := shards(1)
	b.upload("m/v1", first)
	if _, err := model.Pack(t.Context(), model.PackConfig{Source: b.open(t, large), Target: repo, Tag: "v1"}); err != nil {
		t.Fatal(err)
	}
	for name, n := range b.sentOf("m/v1", first) {
		if n != int64(len(first[name])) {
			t.Errorf("%s: %d bytes sent of %d", name, n, len(first[name]))
		}
	}
	checkPulled(t, repo, "v1", first)

	second := shards(2)
	b.upload("m/v2", second)
	v2 := func(c *Config) { c.Path = "m/v2" }
	result, err := model.Pack(t.Context(), model.PackConfig{Source: b.open(t, large, v2), Target: repo, Tag: "v2", Previous: []string{"v1"}})
	if err != nil {
		t.Fatal(err)
	}
	sent := b.sentOf("m/v2", second)
	if len(sent) != 1 || sent["model-2.safetensors"] != int64(len(second["model-2.safetensors"])) {
		t.Errorf("sent for the second version: %v", sent)
	}
	if changed := int64(len(second["model-2.safetensors"])); result.BytesRead != changed || result.BytesSent > changed+100<<10 {
		t.Errorf("%d bytes read and %d sent for a shard of %d", result.BytesRead, result.BytesSent, changed)
	}
	checkPulled(t, repo, "v2", second)

	again, err := model.Pack(t.Context(), model.PackConfig{Source: b.open(t, large, v2), Target: repo, Tag: "v2"})
	if err != nil || again.BytesRead != 0 || again.Image.Index.Digest != result.Image.Index.Digest {
		t.Errorf("the same model again: %+v, %v", again, err)
	}
}

// TestPackResumes stops a pack in the middle of an object; the next one has nothing of its memory.
func TestPackResumes(t *testing.T) {
	const size = 64 << 20
	b := newBed(t)
	repo := newRepository(t)
	files := map[string][]byte{"big.bin": noise(1, size)}
	b.upload("m/v1", files)
	state := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := model.Pack(ctx, model.PackConfig{Source: b.open(t, large), Target: repo, Tag: "v1", StateDir: state, Progress: func(p model.Progress) {
		if p.Done >= size/2 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("a pack that was stopped: %v", err)
	}
	before := b.Sent(bucket, "m/v1/big.bin")
	if _, err := model.Pack(t.Context(), model.PackConfig{Source: b.open(t, large), Target: repo, Tag: "v1", StateDir: state}); err != nil {
		t.Fatal(err)
	}
	// The last chunk of half the file may not have been written down.
	if sent := b.Sent(bucket, "m/v1/big.bin") - before; sent > size/2+8<<20 {
		t.Errorf("%d bytes of %d were read again", sent, size)
	}
	checkPulled(t, repo, "v1", files)
}

// TestPackOverFaults brings faults into the reads of one shard: its error is told and nothing is tagged.
func TestPackOverFaults(t *testing.T) {
	const shard = "v1%2Fmodel-2.safetensors"
	status := func(status int) osstest.Fault {
		return osstest.Fault{Fault: faults.Fault{Status: status, Header: http.Header{"Retry-After": {"0"}}}}
	}
	files := map[string][]byte{"config.json": []byte("{}"), "model-2.safetensors": noise(2, 17<<20+2)}
	for name, tc := range map[string]struct {
		fault func(*bed) func(*http.Request) osstest.Fault
		check func(error) bool // nil where it has to succeed
	}{
		"bodies break off for a while": {fault: func(*bed) func(*http.Request) osstest.Fault {
			return only("GET", "safetensors", 12, osstest.Fault{Fault: faults.Fault{At: 1 << 20, Cut: true}})
		}},
		"503 for a while": {fault: func(*bed) func(*http.Request) osstest.Fault { return only("GET", shard, 3, status(503)) }},
		"bodies break off": {
			func(*bed) func(*http.Request) osstest.Fault {
				return only("GET", shard, forever, osstest.Fault{Fault: faults.Fault{At: 100, Cut: true}})
			},
			func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) },
		},
		"500 for ever": {
			func(*bed) func(*http.Request) osstest.Fault { return only("GET", shard, forever, status(500)) },
			func(err error) bool {
				refused, ok := errors.AsType[*Error](err)
				return ok && refused.Status == 500 && refused.Tries == 4
			},
		},
		"a wrong byte": {
			func(*bed) func(*http.Request) osstest.Fault {
				return only("GET", shard, 1, osstest.Fault{Fault: faults.Fault{At: 1000, Flip: true}})
			},
			func(err error) bool {
				wrong, ok := errors.AsType[*model.ChecksumError](err)
				return ok && wrong.Path == "model-2.safetensors" && wrong.Scheme == "crc64-ecma"
			},
		},
		"changed under way": {
			func(b *bed) func(*http.Request) osstest.Fault {
				var seen atomic.Int64
				return func(r *http.Request) osstest.Fault {
					if r.Method == "GET" && r.URL.Path == "/"+bucket+"/m/v1/model-2.safetensors" && seen.Add(1) == 3 {
						b.Put(bucket, "m/v1/model-2.safetensors", osstest.Bytes(noise(77, 17<<20+2)))
					}
					return osstest.Fault{}
				}
			},
			func(err error) bool { return errors.Is(err, source.ErrChanged) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.upload("m/v1", files)
			b.set(tc.fault(b))
			repo := newRepository(t)
			state := t.TempDir()
			pack := func() error {
				_, err := model.Pack(t.Context(), model.PackConfig{Source: b.open(t, large), Target: repo, Tag: "v1", StateDir: state})
				return err
			}
			err := pack()
			if tc.check == nil {
				if err != nil {
					t.Fatal(err)
				}
				checkPulled(t, repo, "v1", files)
				return
			}
			if !tc.check(err) {
				t.Errorf("error %v", err)
			}
			explained(t, err, "oss://mybucket/m/v1/", b.url, "model-2.safetensors")
			if _, err := repo.Resolve(t.Context(), "v1"); !errors.Is(err, errdef.ErrNotFound) {
				t.Errorf("a failed pack left a tag: %v", err)
			}
			// Once it is mended, the next pack ends well.
			b.set(func(*http.Request) osstest.Fault { return osstest.Fault{} })
			b.upload("m/v1", files)
			if err := pack(); err != nil {
				t.Error(err)
			}
		})
	}
}

// zeros is content that takes no memory.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// TestPackMemory looks at the live heap while a large object passes: it must not grow with it.
func TestPackMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector has a heap of its own")
	}
	const size = 192 << 20
	b := newBed(t)
	o, err := osstest.NewObject(zeros{}, size)
	if err != nil {
		t.Fatal(err)
	}
	b.Put(bucket, "m/v1/big.bin", o)
	repo := newRepository(t)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	_, err = model.Pack(t.Context(), model.PackConfig{
		Source: b.open(t, large, func(c *Config) { c.Retry = retry.Default(); c.Stall = time.Minute }), Target: repo, Tag: "v1",
		Progress: func(model.Progress) {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if grown := int64(peak.Load()) - int64(before.HeapInuse); grown > 96<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if sent := b.Sent(bucket, "m/v1/big.bin"); sent != size {
		t.Errorf("%d bytes sent of %d", sent, size)
	}
}
