package mirror

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	p := newParser()
	for path, want := range map[string]target{
		"/v2":                             {},
		"/v2/":                            {},
		"/v2/a/blobs/" + d:                {blobs, "a", d},
		"/v2/a/b-c/d__e/manifests/V1.2_x": {manifests, "a/b-c/d__e", "V1.2_x"},
		"/v2/a/blobs/b/blobs/" + d:        {blobs, "a/blobs/b", d},
		"/v2/manifests/manifests/latest":  {manifests, "manifests", "latest"},
		"/v2/a/referrers/" + d:            {referrers, "a", d},
		"/v2/a/b/_shoal/segments/" + d:    {segmentsOf, "a/b", d},
	} {
		if got, err := p.parsePath(path); err != nil || got != want {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for path, want := range map[string]error{
		"/":                          errNoRoute,
		"/v1/a/blobs/" + d:           errNoRoute,
		"/v2/blobs/" + d:             errNoRoute,
		"/v2/a/tags/list":            errNoRoute,
		"/v2//blobs/" + d:            errBadName,
		"/v2/a/segments/" + d:        errNoRoute,
		"/v2/_shoal/segments/" + d:   errNoRoute,
		"/v2/a/_shoal/blobs/" + d:    errBadName,
		"/v2/a//b/blobs/" + d:        errBadName,
		"/v2/../blobs/" + d:          errBadName,
		"/v2/a/blobs/latest":         errBadReference,
		"/v2/a/referrers/v1":         errBadReference,
		"/v2/a/manifests/":           errBadReference,
		"/v2/a/manifests/.x":         errBadReference,
		"/v2/a/blobs/" + d + "0":     errBadReference,
		"/v2/a/blobs/SHA256" + d[6:]: errBadReference,
		"/v2/" + strings.Repeat("a", 256) + "/manifests/v1": errBadName,
	} {
		if _, err := p.parsePath(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/blobs/sha256:" + strings.Repeat("0", 64), "/v2/a/manifests/v1", "/v2/a/../b/manifests/x"} {
		f.Add(s)
	}
	p := newParser()
	f.Fuzz(func(t *testing.T, path string) {
		got, err := p.parsePath(path)
		if err != nil || got.kind == base {
			return
		}
		word := map[kind]string{blobs: "blobs", manifests: "manifests", referrers: "referrers", segmentsOf: "_shoal/segments"}[got.kind]
		if path != "/v2/"+got.repository+"/"+word+"/"+got.reference {
			t.Errorf("%q became %+v", path, got)
		}
		if strings.Contains(got.repository, "..") || strings.Contains(got.repository, "//") || strings.ContainsAny(got.reference, "/?#%") {
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
		off, n, partial, err := parseRange(header, size)
		switch {
		case err != nil && !errors.Is(err, errRange):
			t.Errorf("%q: %v", header, err)
		case err != nil:
		case off < 0 || n < 0 || off+n > size || !partial && (off != 0 || n != size) || partial && n == 0:
			t.Errorf("%q of %d: %d+%d, %v", header, size, off, n, partial)
		}
	})
}
