package pullapi

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	p := NewParser()
	for path, want := range map[string]Target{
		"/v2":                             {},
		"/v2/":                            {},
		"/v2/a/blobs/" + d:                {Blobs, "a", d},
		"/v2/a/b-c/d__e/manifests/V1.2_x": {Manifests, "a/b-c/d__e", "V1.2_x"},
		"/v2/a/blobs/b/blobs/" + d:        {Blobs, "a/blobs/b", d},
		"/v2/manifests/manifests/latest":  {Manifests, "manifests", "latest"},
		"/v2/a/referrers/" + d:            {Referrers, "a", d},
		"/v2/a/b/_shoal/segments/" + d:    {Segments, "a/b", d},
		"/v2/a/b/tags/list":               {Tags, "a/b", ""},
	} {
		if got, err := p.Parse(path); err != nil || got != want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for path, want := range map[string]error{
		"/":                          ErrNoRoute,
		"/v1/a/blobs/" + d:           ErrNoRoute,
		"/v2/blobs/" + d:             ErrNoRoute,
		"/v2/a/tags/v1":              ErrNoRoute,
		"/v2//blobs/" + d:            ErrName,
		"/v2/a/segments/" + d:        ErrNoRoute,
		"/v2/_shoal/segments/" + d:   ErrNoRoute,
		"/v2/a/_shoal/blobs/" + d:    ErrName,
		"/v2/a//b/blobs/" + d:        ErrName,
		"/v2/../blobs/" + d:          ErrName,
		"/v2/a/blobs/latest":         ErrReference,
		"/v2/a/referrers/v1":         ErrReference,
		"/v2/a/manifests/":           ErrReference,
		"/v2/a/manifests/.x":         ErrReference,
		"/v2/a/blobs/" + d + "0":     ErrReference,
		"/v2/a/blobs/SHA256" + d[6:]: ErrReference,
		"/v2/" + strings.Repeat("a", 256) + "/manifests/v1": ErrName,
	} {
		if _, err := p.Parse(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/sha256:" + strings.Repeat("0", 64), "/v2/a/manifests/v1", "/v2/a/../b/manifests/x"} {
		f.Add(s)
	}
	p := NewParser()
	f.Fuzz(func(t *testing.T, path string) {
		got, err := p.Parse(path)
		if err != nil || got.Kind == Base {
			return
		}
		word := map[Kind]string{Blobs: "blobs", Manifests: "manifests", Referrers: "referrers", Segments: "_shoal/segments"}[got.Kind]
		if path != "/v2/"+got.Repository+"/"+word+"/"+got.Reference {
			t.Errorf("%q became %+v", path, got)
		}
		if strings.Contains(got.Repository, "..") || strings.Contains(got.Repository, "//") || strings.ContainsAny(got.Reference, "/?#%") {
			t.Errorf("%q passed as %+v", path, got)
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=5-9", "bytes=-3", "bytes=-0", "bytes=9-5", "bytes=1-2,3-4", "bytes=+1-2", "bytes=9223372036854775807-"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		off, n, partial, err := ParseRange(header, size)
		switch {
		case err != nil && !errors.Is(err, ErrRange):
			t.Errorf("%q: %v", header, err)
		case err != nil:
		case off < 0 || n < 0 || off+n > size || !partial && (off != 0 || n != size) || partial && n == 0:
			t.Errorf("%q of %d: %d+%d, %v", header, size, off, n, partial)
		}
	})
}
