package model_test

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"oras.land/oras-go/v2/errdef"

	"github.com/shoal-project/shoal/internal/registry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

func answer(status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		return true
	}
}

// onBlob applies fault to reads of the blob d only.
func onBlob(d string, fault func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, d) && fault(w, r)
	}
}

// body passes the request on in private and hands what it would say to change.
func body(reg *testRegistry, change func(b []byte) []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		rec := httptest.NewRecorder()
		reg.app.ServeHTTP(rec, r)
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		if _, err := w.Write(change(rec.Body.Bytes())); err != nil {
			return true // the client went away
		}
		return true
	}
}

func TestPullOverFaults(t *testing.T) {
	tree := map[string][]byte{"big.bin": bytesOf(7, 17<<20), "small.json": []byte("{}")}
	reg := newRegistry(t)
	repo := reg.open("models/faults")
	packed, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, writeTree(t, tree), ""), Target: repo, Tag: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	big := packed.Image.Layers[0].Digest.String()

	var times atomic.Int64
	first := func(n int64, fault func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { return times.Add(1) <= n && fault(w, r) }
	}
	short := body(reg, func(b []byte) []byte { return b[:len(b)/2] })
	for name, tc := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		good  bool
		want  string
	}{
		"short bodies":       {onBlob(big, first(5, short)), true, ""},
		"503 for a while":    {first(3, answer(http.StatusServiceUnavailable)), true, ""},
		"429 for a while":    {first(3, answer(http.StatusTooManyRequests)), true, ""},
		"500 for ever":       {onBlob(big, answer(http.StatusInternalServerError)), false, "look at its health"},
		"401":                {answer(http.StatusUnauthorized), false, "docker login"},
		"403":                {answer(http.StatusForbidden), false, "ask for the right"},
		"404 of a blob":      {onBlob(big, answer(http.StatusNotFound)), false, "not found"},
		"404":                {answer(http.StatusNotFound), false, "not found"},
		"a flipped byte":     {onBlob(big, body(reg, flip(1<<20))), false, "the member table says"},
		"a flipped header":   {onBlob(big, body(reg, flip(100))), false, "contradicts the member table"},
		"empty body":         {onBlob(big, body(reg, func([]byte) []byte { return nil })), false, "gave up at byte 0"},
		"a body for another": {onBlob(big, body(reg, func(b []byte) []byte { return make([]byte, len(b)) })), false, "contradicts"},
	} {
		t.Run(name, func(t *testing.T) {
			times.Store(0)
			reg.setFault(tc.fault)
			defer reg.setFault(nil)
			parent := t.TempDir()
			_, err := model.Pull(t.Context(), repo, "v1", filepath.Join(parent, "out"), model.PullConfig{})
			if tc.good {
				if err != nil {
					t.Fatal(err)
				}
				if got := readTree(t, filepath.Join(parent, "out")); string(got["big.bin"]) != string(tree["big.bin"]) {
					t.Error("wrong bytes")
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < len(b) {
			b[at] ^= 1
		}
		return b
	}
}

func TestPackOverFaults(t *testing.T) {
	tree := map[string][]byte{"big.bin": bytesOf(8, 40<<20)}
	method := func(m string, n int64, status int) func(http.ResponseWriter, *http.Request) bool {
		var times atomic.Int64
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != m || times.Add(1) > n {
				return false
			}
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(status)
			return true
		}
	}
	for name, tc := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		want  string
	}{
		"429 on chunks":    {method(http.MethodPatch, 3, http.StatusTooManyRequests), ""},
		"503 on the end":   {method(http.MethodPut, 3, http.StatusServiceUnavailable), ""},
		"502 on the start": {method(http.MethodPost, 3, http.StatusBadGateway), ""},
		"upload lost":      {method(http.MethodPatch, 2, http.StatusNotFound), ""},
		"500 for ever":     {method(http.MethodPatch, 1<<30, http.StatusInternalServerError), "look at its health"},
		"401":              {method(http.MethodPost, 1<<30, http.StatusUnauthorized), "docker login"},
		"403":              {method(http.MethodPost, 1<<30, http.StatusForbidden), "ask for the right"},
		"lost for ever":    {method(http.MethodPatch, 1<<30, http.StatusNotFound), "lost the upload"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			repo := reg.open("models/faults")
			reg.setFault(tc.fault)
			_, err := model.Pack(t.Context(), model.PackConfig{Source: newDir(t, writeTree(t, tree), ""), Target: repo, Tag: "v1", StateDir: t.TempDir()})
			reg.setFault(nil)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := model.Pull(t.Context(), repo, "v1", filepath.Join(t.TempDir(), "out"), model.PullConfig{}); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			var refused *registry.Error
			if !errors.As(err, &refused) || refused.Repository != "models/faults" {
				t.Errorf("error %v names no repository", err)
			}
			if _, err := repo.Resolve(t.Context(), "v1"); !errors.Is(err, errdef.ErrNotFound) {
				t.Errorf("a failed pack left a tag: %v", err)
			}
		})
	}
}

// promisedSource is a directory whose files have checksums, and whose bytes are damaged for a while.
type promisedSource struct {
	*source.Dir
	checksums map[string]string
	damaged   bool
}

func (p *promisedSource) List(ctx context.Context) ([]model.File, error) {
	files, err := p.Dir.List(ctx)
	for i := range files {
		files[i].Checksum = p.checksums[files[i].Path]
	}
	return files, err
}

func (p *promisedSource) Open(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	r, err := p.Dir.Open(ctx, path, offset)
	if err != nil || !p.damaged || offset > 0 {
		return r, err
	}
	return &damagedReader{ReadCloser: r}, nil
}

// damagedReader inverts the first byte.
type damagedReader struct {
	io.ReadCloser
	at int
}

func (d *damagedReader) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if d.at == 0 && n > 0 {
		p[0] ^= 0xff
	}
	d.at += n
	return n, err
}

// TestPackAfterDamage packs a file that arrives damaged, and again when it does not: what was kept of
// the first try must not spoil the second.
func TestPackAfterDamage(t *testing.T) {
	content := bytesOf(3, 20<<20)
	root, state := writeTree(t, map[string][]byte{"big.bin": content}), t.TempDir()
	crc := crc64.Checksum(content, crc64.MakeTable(crc64.ECMA))
	src := &promisedSource{Dir: newDir(t, root, ""), checksums: map[string]string{"big.bin": fmt.Sprintf("crc64-ecma:%d", crc)}, damaged: true}
	repo := newRegistry(t).open("models/damage")
	pack := func() error {
		_, err := model.Pack(t.Context(), model.PackConfig{Source: src, Target: repo, Tag: "v1", StateDir: state})
		return err
	}
	err := pack()
	wrong, ok := errors.AsType[*model.ChecksumError](err)
	if !ok || wrong.Path != "big.bin" || !strings.Contains(err.Error(), root) {
		t.Fatalf("a damaged file: %v", err)
	}
	if _, err := repo.Resolve(t.Context(), "v1"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("a damaged file left a tag: %v", err)
	}
	src.damaged = false
	if err := pack(); err != nil {
		t.Fatal(err)
	}
}
