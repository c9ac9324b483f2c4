package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
)

func TestReadManifest(t *testing.T) {
	raw := bytes.Repeat([]byte(" "), 1000)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	send := func(w http.ResponseWriter, body []byte) {
		w.Header().Set("Content-Type", desc.MediaType)
		w.Write(body)
	}
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
		send(w, raw[:500])
		panic(http.ErrAbortHandler)
	}
	for name, tc := range map[string]struct {
		answer func(n int64, w http.ResponseWriter)
		want   string // "" means that it is read
		later  bool
	}{
		"all well": {func(_ int64, w http.ResponseWriter) { send(w, raw) }, "", false},
		"cut twice": {func(n int64, w http.ResponseWriter) {
			if n <= 2 {
				cut(w)
			}
			send(w, raw)
		}, "", false},
		"cut for ever":   {func(_ int64, w http.ResponseWriter) { cut(w) }, "no answer", true},
		"too short":      {func(_ int64, w http.ResponseWriter) { send(w, raw[1:]) }, "wrong content", false},
		"too long":       {func(_ int64, w http.ResponseWriter) { send(w, append(raw, ' ')) }, "wrong content", false},
		"other bytes":    {func(_ int64, w http.ResponseWriter) { send(w, bytes.Repeat([]byte("x"), 1000)) }, "wrong content", false},
		"another type":   {func(_ int64, w http.ResponseWriter) { w.Header().Set("Content-Type", "text/html"); w.Write(raw) }, "wrong content", false},
		"not there":      {func(_ int64, w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, "not found", false},
		"not for anyone": {func(_ int64, w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }, "ask for the right", false},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { tc.answer(n.Add(1), w) }))
			got, err := repo.ReadManifest(t.Context(), desc)
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, raw) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), repo.Reference.Registry) || Unavailable(err) != tc.later {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	huge := desc
	huge.Size = maxManifest + 1
	if _, err := serve(t, http.NotFoundHandler()).ReadManifest(t.Context(), huge); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("a manifest that is too long: %v", err)
	}
}

func TestListReferrers(t *testing.T) {
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("subject"), Size: 7}
	index := func(n int) []byte {
		list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		for i := range n {
			list.Manifests = append(list.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
		}
		raw, _ := json.Marshal(list) // never fails
		return raw
	}
	answer := func(w http.ResponseWriter, status int, raw []byte) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.WriteHeader(status)
		w.Write(raw)
	}
	for name, tc := range map[string]struct {
		api, tag func(w http.ResponseWriter, r *http.Request)
		n        int
		want     string
		later    bool
	}{
		"the API":     {api: func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, index(3)) }, n: 3},
		"no API":      {api: http.NotFound, tag: func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, index(2)) }, n: 2},
		"API unheard": {api: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(405) }, tag: func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, index(2)) }, n: 2},
		"none":        {api: http.NotFound, tag: http.NotFound},
		"no repository": {api: func(w http.ResponseWriter, _ *http.Request) {
			answer(w, 404, []byte(`{"errors":[{"code":"NAME_UNKNOWN"}]}`))
		}},
		"403":      {api: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }, want: "ask for the right"},
		"500":      {api: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, want: "look at its health", later: true},
		"too many": {api: func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, index(11)) }, want: "more than 10"},
		"no JSON":  {api: func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, []byte("<html>")) }, want: "wrong content"},
		"endless pages": {api: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "<"+r.URL.Path+`>; rel="next"`)
			answer(w, 200, index(0))
		}, want: "wrong content"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/referrers/") {
					tc.api(w, r)
				} else {
					tc.tag(w, r)
				}
			}))
			got, err := repo.ListReferrers(t.Context(), subject, 10)
			if tc.want == "" {
				if err != nil || len(got) != tc.n {
					t.Errorf("%d referrers, %v", len(got), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || Unavailable(err) != tc.later {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestMountBlob(t *testing.T) {
	blob, desc := blobOf(1000)
	app := newApp(t)
	var status atomic.Int64 // that answers mounts; 0: the registry's
	var deleted atomic.Int64
	repo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			deleted.Add(1)
		}
		if s := status.Load(); s != 0 && r.URL.Query().Has("mount") {
			w.WriteHeader(int(s))
			return
		}
		app.ServeHTTP(w, r)
	}))
	if err := repo.Push(t.Context(), desc, bytes.NewReader(blob)); err != nil {
		t.Fatal(err)
	}
	other, err := Open(repo.Reference.Registry+"/ns/other", Config{
		PlainHTTP: true, Credential: auth.StaticCredential("", auth.EmptyCredential), Retry: Retry{Tries: 2, Base: time.Millisecond, Max: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	for _, tc := range []struct {
		from    string
		status  int64
		mounted bool
		bad     bool
		deleted int64
	}{
		{"ns/none", 0, false, false, 1}, // the upload that the registry begins is cancelled
		{"ns/model", http.StatusForbidden, false, false, 1},
		{"ns/model", http.StatusServiceUnavailable, false, true, 1},
		{"ns/model", 0, true, false, 1},
	} {
		status.Store(tc.status)
		mounted, err := other.MountBlob(t.Context(), desc.Digest, tc.from)
		if mounted != tc.mounted || (err != nil) != tc.bad || tc.bad && !Unavailable(err) || deleted.Load() != tc.deleted {
			t.Errorf("%+v: mounted %v, %v, %d uploads cancelled", tc, mounted, err, deleted.Load())
		}
		_, err = other.BlobSize(t.Context(), desc.Digest)
		if !tc.mounted != errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	body, err := other.OpenRange(t.Context(), desc, 0, desc.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
