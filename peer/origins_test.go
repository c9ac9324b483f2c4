package peer

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-project/shoal/internal/registry"
)

func TestOriginsOpen(t *testing.T) {
	upstreams := map[string]Upstream{"reg.example.com": {Host: "reg.internal:5000", PlainHTTP: true}}
	both := Origins{Mirrors: []string{"mirror:7071"}, Upstreams: upstreams}
	const sum = "sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for name, c := range map[string]struct {
		origins   Origins
		reference string
		repos     []string
		tag       string
		err       string
	}{
		"the mirror first":  {both, "reg.example.com/a/b:v1", []string{"mirror:7071/a/b", "reg.internal:5000/a/b"}, "v1", ""},
		"by digest":         {both, "reg.example.com/a/b@" + sum, []string{"mirror:7071/a/b", "reg.internal:5000/a/b"}, sum, ""},
		"without a tag":     {both, "reg.example.com/a/b", []string{"mirror:7071/a/b", "reg.internal:5000/a/b"}, "latest", ""},
		"an unknown one":    {both, "other.example.com/a/b:v1", []string{"mirror:7071/a/b"}, "v1", ""},
		"no mirror":         {Origins{Upstreams: upstreams}, "reg.example.com/a/b:v1", []string{"reg.internal:5000/a/b"}, "v1", ""},
		"neither":           {Origins{Upstreams: upstreams}, "other.example.com/a/b:v1", nil, "", "neither a mirror nor an upstream other.example.com"},
		"nothing":           {both, "", nil, "", "image reference"},
		"a name alone":      {both, "model", nil, "", "image reference"},
		"a way out":         {both, "reg.example.com/../b:v1", nil, "", "image reference"},
		"an odd digest":     {both, "reg.example.com/b@sha256:0", nil, "", "image reference"},
		"two mirrors":       {Origins{Mirrors: []string{"a:1", "b:1"}}, "reg.example.com/a/b:v2", []string{"b:1/a/b", "a:1/a/b"}, "v2", ""},
		"the other first":   {Origins{Mirrors: []string{"a:1", "b:1"}}, "reg.example.com/a/b:v1", []string{"a:1/a/b", "b:1/a/b"}, "v1", ""},
		"an odd mirror":     {Origins{Mirrors: []string{"a b"}}, "reg.example.com/b:1", nil, "", "image reference"},
		"an odd registry":   {Origins{Mirrors: []string{"m:1"}, Upstreams: map[string]Upstream{"r.io": {Host: "a b"}}}, "r.io/b:1", nil, "", "image reference"},
		"a host of its own": {Origins{Upstreams: map[string]Upstream{"localhost:5000": {Host: "localhost:5000"}}}, "localhost:5000/b:1", []string{"localhost:5000/b"}, "1", ""},
	} {
		repos, tag, err := c.origins.open(c.reference)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
		var got []string
		for _, repo := range repos {
			got = append(got, repo.Name())
		}
		if !slices.Equal(got, c.repos) || tag != c.tag {
			t.Errorf("%s: %v %q, want %v %q", name, got, tag, c.repos, c.tag)
		}
	}
}

func TestEach(t *testing.T) {
	repos := make([]*registry.Repository, 3)
	for i := range repos {
		repos[i] = new(registry.Repository)
	}
	errs := []error{errors.New("first"), errors.New("second"), errors.New("third")}
	for name, c := range map[string]struct {
		works  int // the first one that does
		calls  int
		cancel int // the call in which the context ends, from 1
	}{
		"the first":       {0, 1, 0},
		"the last":        {2, 3, 0},
		"none":            {3, 3, 0},
		"nobody waits":    {3, 2, 2},
		"late, and works": {1, 2, 2},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		got, err := each(ctx, repos, func(r *registry.Repository) (int, error) {
			i := slices.Index(repos, r)
			if calls++; calls == c.cancel {
				cancel()
			}
			if i < c.works {
				return 99, errs[i]
			}
			return i, nil
		})
		cancel()
		if calls != c.calls {
			t.Errorf("%s: %d calls, want %d", name, calls, c.calls)
		}
		if c.works < calls {
			if got != c.works || err != nil {
				t.Errorf("%s: %d, %v", name, got, err)
			}
			continue
		}
		if got != 0 || err == nil {
			t.Errorf("%s: %d, %v", name, got, err)
		}
		for i, want := range errs {
			if errors.Is(err, want) != (i < c.calls) {
				t.Errorf("%s: the error of origin %d: %v", name, i, err)
			}
		}
	}
}

func TestJitter(t *testing.T) {
	for _, d := range []time.Duration{1, 2, 3, time.Millisecond, time.Hour} {
		low, high := d/2, d/2+d
		for range 1000 {
			if got := jitter(d); got < low || got >= high {
				t.Fatalf("jitter of %v is %v, want [%v, %v)", d, got, low, high)
			}
		}
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		if !pause(t.Context(), time.Minute) {
			t.Error("the context is on")
		}
		if took := time.Since(begin); took < 30*time.Second || took >= 90*time.Second {
			t.Errorf("it took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if pause(ctx, time.Minute) || time.Since(begin) != time.Second {
			t.Errorf("the context ended, and after %v it goes on", time.Since(begin))
		}
	})
}

func TestRangeOrigin(t *testing.T) {
	r := newRegion(t)
	files := map[string][]byte{"a.bin": modelFiles(1)["weights/a.safetensors"]}
	layer := r.pushRaw("raw", files).Layers[0]
	desc := ocispec.Descriptor{Digest: layer.Digest, Size: layer.Size}
	body, err := rangeOrigin{r.open("raw"), desc, 1000}.Range(t.Context(), 24, 5000)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err != nil || string(got) != string(files["a.bin"][1024:6024]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
