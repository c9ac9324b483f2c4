package oss

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/faults"
	"github.com/shoal-project/shoal/internal/osstest"
	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

func TestMain(m *testing.M) {
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

const bucket = "mybucket"

// good are the credentials that the server knows.
var good = Credentials{AccessKeyID: "ak", AccessKeySecret: "THE-SECRET", SecurityToken: "THE-TOKEN"}

func using(c Credentials) func() (Credentials, error) {
	return func() (Credentials, error) { return c, nil }
}

// bed is a server on loopback and a way to it.
type bed struct {
	*osstest.Server
	url   string
	fault atomic.Pointer[func(*http.Request) osstest.Fault]
}

func newBed(t *testing.T, change ...func(*osstest.Config)) *bed {
	t.Helper()
	b := &bed{}
	cfg := osstest.Config{
		Keys: map[string]osstest.Key{good.AccessKeyID: {Secret: good.AccessKeySecret, Token: good.SecurityToken}},
		Faults: func(r *http.Request) osstest.Fault {
			if f := b.fault.Load(); f != nil {
				return (*f)(r)
			}
			return osstest.Fault{}
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	b.Server = osstest.New(cfg)
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

func (b *bed) set(f func(*http.Request) osstest.Fault) { b.fault.Store(&f) }

// open is a source of the directory m/v1 with small parts and short pauses.
func (b *bed) open(t *testing.T, change ...func(*Config)) *Source {
	t.Helper()
	cfg := Config{
		Endpoint: b.url, Region: "cn-hangzhou", Insecure: true, Bucket: bucket, Path: "/m/v1",
		Credentials: using(good), Parts: 3, PartBytes: 1000,
		Retry: retry.Policy{Tries: 4, Base: time.Millisecond, Max: 2 * time.Millisecond},
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// put gives the directory m/v1 its files.
func (b *bed) put(files map[string]string) {
	for name, content := range files {
		b.Put(bucket, "m/v1/"+name, osstest.Bytes([]byte(content)))
	}
}

func noise(seed byte, n int) []byte {
	content := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content) // never fails
	return content
}

// only brings f into the requests of a method whose URL has part in it, the first times of them.
func only(method, part string, times int64, f osstest.Fault) func(*http.Request) osstest.Fault {
	var seen atomic.Int64
	return func(r *http.Request) osstest.Fault {
		if r.Method != method || !strings.Contains(r.RequestURI, part) || seen.Add(1) > times {
			return osstest.Fault{}
		}
		return f
	}
}

const forever = 1 << 40

// explained fails unless err has all the parts, where it is about, and nothing of the credentials.
func explained(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q, want %q in it", err, part)
		}
	}
	if text := err.Error(); strings.Contains(text, "THE-") || strings.Contains(text, "\n") {
		t.Errorf("error %q has credentials or lines in it", text)
	}
}

func paths(files []model.File) []string {
	var names []string
	for _, f := range files {
		names = append(names, f.Path)
	}
	return names
}

func TestList(t *testing.T) {
	b := newBed(t, func(c *osstest.Config) { c.MaxKeys = 2 })
	b.put(map[string]string{
		"": "", "sub/": "", "sub/a b+c%2F.txt": "hello", "模型.safetensors": "123456789",
		".gitattributes": "x", "empty": "", "&<x>?.json": "{}",
	})
	b.Put(bucket, "m/v10/other", osstest.Bytes([]byte("x")))
	b.Put(bucket, "m/v1", osstest.Bytes([]byte("x")))
	old := osstest.Bytes([]byte("old"))
	old.CRC64 = ""
	b.Put(bucket, "m/v1/old", old)

	for name, tc := range map[string]struct {
		files source.Globs
		want  []string
	}{
		"all":      {want: []string{"&<x>?.json", ".gitattributes", "empty", "old", "sub/a b+c%2F.txt", "模型.safetensors"}},
		"included": {source.Globs{Include: []string{"*.safetensors", "sub/**"}}, []string{"sub/a b+c%2F.txt", "模型.safetensors"}},
		"excluded": {source.Globs{Exclude: []string{".*", "old"}}, []string{"&<x>?.json", "empty", "sub/a b+c%2F.txt", "模型.safetensors"}},
	} {
		files, err := b.open(t, func(c *Config) { c.Files = tc.files }).List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, paths(files)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		for _, f := range files {
			want := map[string]string{"模型.safetensors": "crc64-ecma:11051210869376104954", "old": "etag:" + old.ETag}[f.Path]
			if want != "" && f.Checksum != want || f.Revision == "" {
				t.Errorf("%s: listed %+v, want the checksum %s", name, f, want)
			}
		}
	}
}

func TestListRefuses(t *testing.T) {
	link := osstest.Bytes(nil)
	link.Type = "Symlink"
	for name, tc := range map[string]struct {
		key    string
		object osstest.Object
		files  source.Globs
		want   string
	}{
		"nothing there":   {"other/x", osstest.Bytes(nil), source.Globs{}, "there is no object"},
		"only a mark":     {"m/v1/", osstest.Bytes(nil), source.Globs{}, "none of its 1 objects"},
		"nothing chosen":  {"m/v1/x", osstest.Bytes(nil), source.Globs{Include: []string{"*.bin"}}, "check include and exclude"},
		"leaves the tree": {"m/v1/../x", osstest.Bytes(nil), source.Globs{}, "leaves the tree"},
		"absolute":        {"m/v1//x", osstest.Bytes(nil), source.Globs{}, "is absolute"},
		"a line break":    {"m/v1/a\nb", osstest.Bytes(nil), source.Globs{}, "control character"},
		"a whiteout":      {"m/v1/.wh.x", osstest.Bytes(nil), source.Globs{}, "whiteout"},
		"a full mark":     {"m/v1/x/", osstest.Bytes([]byte("x")), source.Globs{}, "shortest form"},
		"a link":          {"m/v1/link", link, source.Globs{}, "symbolic link"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.Put(bucket, tc.key, tc.object)
			s := b.open(t, func(c *Config) { c.Files = tc.files })
			_, err := s.List(t.Context())
			explained(t, err, tc.want, "oss://mybucket/", s.endpoint)
		})
	}
	t.Run("excluded", func(t *testing.T) {
		b := newBed(t)
		b.put(map[string]string{"x": "x", "../y": "y"})
		files, err := b.open(t, func(c *Config) { c.Files.Exclude = []string{"../**"} }).List(t.Context())
		if err != nil || len(files) != 1 {
			t.Errorf("%v, %v", files, err)
		}
	})
}

// TestEndpointStyles reads by https from an endpoint without a scheme, bucket in the host's name.
func TestEndpointStyles(t *testing.T) {
	b := newBed(t)
	b.put(map[string]string{"a/b": "hello"})
	server := httptest.NewTLSServer(b)
	defer server.Close()
	to := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the name is not the server's
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
	}
	defer to.CloseIdleConnections()
	for _, endpoint := range []string{"", "oss-cn-hangzhou.aliyuncs.com", "https://oss-cn-hangzhou-internal.aliyuncs.com/"} {
		s := b.open(t, func(c *Config) { c.Endpoint, c.Insecure, c.Transport = endpoint, false, to })
		if got := read(t, s, "a/b", 1); got != "ello" {
			t.Errorf("%q: read %q", endpoint, got)
		}
	}
}

// read lists and reads one file from offset on.
func read(t *testing.T, s *Source, path string, offset int64) string {
	t.Helper()
	if _, err := s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := readAll(t.Context(), s, path, offset)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func readAll(ctx context.Context, s *Source, path string, offset int64) ([]byte, error) {
	r, err := s.Open(ctx, path, offset)
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	return got, errors.Join(err, r.Close())
}

func TestRead(t *testing.T) {
	b := newBed(t)
	for _, size := range []int{0, 1, 999, 1000, 1001, 3000, 10_500} {
		content := noise(1, size)
		b.Put(bucket, "m/v1/f", osstest.Bytes(content))
		for _, offset := range []int{0, 1, 999, 1000, 5000, size - 1, size} {
			if offset < 0 || offset > size {
				continue
			}
			before := b.Sent(bucket, "m/v1/f")
			if got := read(t, b.open(t), "f", int64(offset)); got != string(content[offset:]) {
				t.Errorf("%d bytes from %d: read %d other ones", size, offset, len(got))
			}
			if sent := b.Sent(bucket, "m/v1/f") - before; sent != int64(size-offset) {
				t.Errorf("%d bytes from %d: %d were sent", size, offset, sent)
			}
		}
	}
	s := b.open(t)
	if _, err := s.Open(t.Context(), "f", 0); err == nil {
		t.Error("a file that was not listed was opened")
	}
	read(t, s, "f", 0)
	for _, offset := range []int64{-1, 10_501} {
		if _, err := s.Open(t.Context(), "f", offset); err == nil {
			t.Errorf("opened at %d", offset)
		}
	}
}

// TestReadAhead stops reading: no more than the parts of one open file may have been asked for.
func TestReadAhead(t *testing.T) {
	b := newBed(t)
	b.Put(bucket, "m/v1/f", osstest.Bytes(noise(1, 100_000)))
	s := b.open(t)
	read(t, s, "f", 99_999)
	before := b.Sent(bucket, "m/v1/f")
	r, err := s.Open(t.Context(), "f", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 5500)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if sent := b.Sent(bucket, "m/v1/f") - before; sent < 5500 || sent > 5000+3*1000 {
		t.Errorf("%d bytes sent for 5500 read with 3 parts of 1000", sent)
	}
}

func TestReadOverFaults(t *testing.T) {
	content := noise(2, 10_500)
	status := func(status int) osstest.Fault {
		return osstest.Fault{Fault: faults.Fault{Status: status, Header: http.Header{"Retry-After": {"0"}}}}
	}
	cut := osstest.Fault{Fault: faults.Fault{At: 400, Cut: true}}
	stuck := osstest.Fault{Fault: faults.Fault{At: 400, Wait: make(chan struct{})}}
	for name, tc := range map[string]struct {
		fault func(*http.Request) osstest.Fault
		exact bool // no byte is sent twice
	}{
		"500 for a while":      {only("GET", "v1%2Ff", 3, status(500)), true},
		"503 for a while":      {only("GET", "v1%2Ff", 3, status(503)), true},
		"429 for a while":      {only("GET", "v1%2Ff", 3, status(429)), true},
		"503 of the listing":   {only("GET", "list-type", 3, status(503)), true},
		"503 of the checksums": {only("HEAD", "v1%2Ff", 3, status(503)), true},
		"bodies break off":     {only("GET", "v1%2Ff", 6, cut), true},
		"bodies get stuck":     {only("GET", "v1%2Ff", 2, stuck), false},
		"no answer":            {only("GET", "v1%2Ff", 3, osstest.Fault{Fault: faults.Fault{Cut: true}}), true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.Put(bucket, "m/v1/f", osstest.Bytes(content))
			b.set(tc.fault)
			s := b.open(t, func(c *Config) {
				if !tc.exact {
					c.Stall, c.Retry.Tries = 200*time.Millisecond, 8
				}
			})
			if got := read(t, s, "f", 0); got != string(content) {
				t.Errorf("read %d other bytes", len(got))
			}
			if sent := b.Sent(bucket, "m/v1/f"); tc.exact && sent != int64(len(content)) {
				t.Errorf("%d bytes sent of %d", sent, len(content))
			}
		})
	}
}

// TestErrors looks at what a user is told.
func TestErrors(t *testing.T) {
	refuse := func(status int, code string) osstest.Fault {
		return osstest.Fault{Fault: faults.Fault{Status: status, Header: http.Header{"Retry-After": {"0"}}}, Code: code}
	}
	archived := osstest.Bytes(noise(1, 5000))
	archived.StorageClass = "Archive"
	elsewhere := refuse(403, "AccessDenied")
	elsewhere.Endpoint = "oss-cn-beijing.aliyuncs.com"
	closed := httptest.NewServer(nil)
	closed.Close()
	object, directory := "oss://mybucket/m/v1/f at http://127.0.0.1:", "oss://mybucket/m/v1/ at http://127.0.0.1:"
	for name, tc := range map[string]struct {
		config func(*Config)
		server func(*osstest.Config)
		object osstest.Object
		fault  func(*http.Request) osstest.Fault
		want   []string
	}{
		"unknown key": {config: func(c *Config) { c.Credentials = using(Credentials{AccessKeyID: "no", AccessKeySecret: "THE-"}) },
			want: []string{directory, "does not know this access key ID", "InvalidAccessKeyId"}},
		"wrong secret": {config: func(c *Config) {
			c.Credentials = using(Credentials{AccessKeyID: "ak", AccessKeySecret: "THE-", SecurityToken: "THE-TOKEN"})
		}, want: []string{directory, "secret does not fit", "SignatureDoesNotMatch"}},
		"wrong token": {config: func(c *Config) {
			c.Credentials = using(Credentials{AccessKeyID: "ak", AccessKeySecret: "THE-SECRET", SecurityToken: "THE-"})
		}, want: []string{directory, "all three"}},
		"expired token": {server: func(c *osstest.Config) {
			c.Keys["ak"] = osstest.Key{Secret: "THE-SECRET", Token: "THE-TOKEN", Expires: time.Unix(1, 0)}
		}, want: []string{directory, "expired", "renew"}},
		"missing bucket": {config: func(c *Config) { c.Bucket = "nobucket" },
			want: []string{"oss://nobucket/m/v1/", "no such bucket", "status 404"}},
		"another region": {config: func(c *Config) { c.Region = "cn-beijing" },
			want: []string{directory, "region that was signed"}},
		"another endpoint":     {fault: only("GET", "list-type", forever, elsewhere), want: []string{directory, "use the endpoint oss-cn-beijing.aliyuncs.com"}},
		"may not list":         {fault: only("GET", "list-type", forever, refuse(403, "AccessDenied")), want: []string{directory, "oss:ListObjects"}},
		"may not ask":          {fault: only("HEAD", "v1%2Ff", forever, refuse(403, "AccessDenied")), want: []string{object, "oss:GetObject"}},
		"may not read":         {fault: only("GET", "v1%2Ff", forever, refuse(403, "AccessDenied")), want: []string{object, "oss:GetObject"}},
		"archived":             {object: archived, want: []string{object, "archived: restore it", "InvalidObjectState"}},
		"clock":                {server: func(c *osstest.Config) { c.Now = func() time.Time { return time.Now().Add(time.Hour) } }, want: []string{directory, "clock", "NTP"}},
		"500 for ever":         {fault: only("GET", "v1%2Ff", forever, refuse(500, "")), want: []string{object, "try again later", "InternalError", "4 tries"}},
		"503 for ever":         {fault: only("GET", "list-type", forever, refuse(503, "")), want: []string{directory, "overloaded", "4 tries"}},
		"429 for ever":         {fault: only("GET", "v1%2Ff", forever, refuse(429, "")), want: []string{object, "limits the rate"}},
		"bodies break off":     {fault: only("GET", "v1%2Ff", forever, osstest.Fault{Fault: faults.Fault{At: 10, Cut: true}}), want: []string{object, "broke off again and again", "4 tries"}},
		"bodies get stuck":     {config: func(c *Config) { c.Stall = 200 * time.Millisecond }, fault: only("GET", "v1%2Ff", forever, osstest.Fault{Fault: faults.Fault{At: 10, Wait: make(chan struct{})}}), want: []string{object, "no byte came for 200ms"}},
		"no server":            {config: func(c *Config) { c.Endpoint = closed.URL }, want: []string{"oss://mybucket/m/v1/ at " + closed.URL, "no answer", "refused"}},
		"an unknown code":      {fault: only("GET", "v1%2Ff", forever, refuse(400, "Odd")), want: []string{object, "OSS refuses: injected fault", "Odd"}},
		"a redirection":        {fault: only("GET", "v1%2Ff", forever, refuse(302, "")), want: []string{object, "OSS refuses", "status 302"}},
		"expired by the clock": {config: func(c *Config) { c.Credentials = expiring() }, want: []string{"expired at", "renew"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			if tc.server != nil {
				b = newBed(t, tc.server)
			}
			if tc.object.Content == nil {
				tc.object = osstest.Bytes(noise(1, 5000))
			}
			b.Put(bucket, "m/v1/f", tc.object)
			if tc.fault != nil {
				b.set(tc.fault)
			}
			s := b.open(t, func(c *Config) {
				if tc.config != nil {
					tc.config(c)
				}
			})
			_, err := s.List(t.Context())
			if err == nil {
				_, err = readAll(t.Context(), s, "f", 0)
			}
			explained(t, err, tc.want...)
			if errors.Is(err, source.ErrChanged) {
				t.Errorf("%v is said to be a change", err)
			}
		})
	}
}

// expiring returns credentials that are good once, and have expired by the next request.
func expiring() func() (Credentials, error) {
	var asked atomic.Int64
	return func() (Credentials, error) {
		c := good
		if asked.Add(1) > 1 {
			c.Expiration = time.Unix(1, 0)
		}
		return c, nil
	}
}

// TestRenewal takes new credentials between two requests.
func TestRenewal(t *testing.T) {
	b := newBed(t)
	b.put(map[string]string{"f": "hello"})
	var current atomic.Pointer[Credentials]
	current.Store(&good)
	s := b.open(t, func(c *Config) { c.Credentials = func() (Credentials, error) { return *current.Load(), nil } })
	read(t, s, "f", 0)
	current.Store(&Credentials{AccessKeyID: "ak", AccessKeySecret: "THE-", SecurityToken: "THE-TOKEN"})
	if _, err := readAll(t.Context(), s, "f", 0); err == nil {
		t.Error("the old credentials are still in use")
	}
	current.Store(&good)
	read(t, s, "f", 0)
}

// TestChange replaces or deletes the object at every point between the listing and the last byte.
func TestChange(t *testing.T) {
	content := noise(1, 10_000)
	for name, change := range map[string]func(*bed){
		"replaced":  func(b *bed) { b.Put(bucket, "m/v1/f", osstest.Bytes(noise(2, 10_000))) },
		"truncated": func(b *bed) { b.Put(bucket, "m/v1/f", osstest.Bytes(content[:50])) },
		"deleted":   func(b *bed) { b.Delete(bucket, "m/v1/f") },
	} {
		for _, when := range []struct {
			method, part string
			request      int64
		}{{"HEAD", "f", 1}, {"GET", "f", 1}, {"GET", "f", 9}} {
			b := newBed(t)
			b.Put(bucket, "m/v1/f", osstest.Bytes(content))
			var seen atomic.Int64
			b.set(func(r *http.Request) osstest.Fault {
				if r.Method == when.method && !strings.Contains(r.RequestURI, "list-type") && seen.Add(1) == when.request {
					change(b)
				}
				return osstest.Fault{}
			})
			s := b.open(t)
			_, err := s.List(t.Context())
			if err == nil {
				_, err = readAll(t.Context(), s, "f", 0)
			}
			if !errors.Is(err, source.ErrChanged) {
				t.Errorf("%s at %v: %v", name, when, err)
			}
			explained(t, err, "oss://mybucket/m/v1/f at ", "pack it again")
		}
	}
	t.Run("under the same ETag", func(t *testing.T) {
		for _, other := range [][]byte{noise(2, 10_000), noise(1, 10_001)} {
			b := newBed(t)
			b.Put(bucket, "m/v1/f", osstest.Bytes(content))
			s := b.open(t)
			read(t, s, "f", 0)
			o := osstest.Bytes(other)
			o.ETag = osstest.Bytes(content).ETag
			b.Put(bucket, "m/v1/f", o)
			if _, err := readAll(t.Context(), s, "f", 0); !errors.Is(err, source.ErrChanged) {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("an empty object", func(t *testing.T) {
		b := newBed(t)
		b.put(map[string]string{"f": ""})
		s := b.open(t)
		read(t, s, "f", 0)
		b.put(map[string]string{"f": "x"})
		if _, err := readAll(t.Context(), s, "f", 0); !errors.Is(err, source.ErrChanged) {
			t.Errorf("%v", err)
		}
	})
}

func TestCancel(t *testing.T) {
	b := newBed(t)
	b.Put(bucket, "m/v1/f", osstest.Bytes(noise(1, 10_000)))
	s := b.open(t)
	read(t, s, "f", 0)
	for name, fault := range map[string]osstest.Fault{
		"waiting for a body":    {Fault: faults.Fault{At: 10, Wait: make(chan struct{})}},
		"waiting for an answer": {Fault: faults.Fault{Wait: make(chan struct{})}},
		"waiting to try again":  {Fault: faults.Fault{Status: 503, Header: http.Header{"Retry-After": {"100000"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			s.cfg.Retry.Max = time.Hour
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b.set(func(*http.Request) osstest.Fault {
				cancel()
				return fault
			})
			if _, err := readAll(ctx, s, "f", 0); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	s := newBed(t).open(t, func(c *Config) { c.Retry = retry.Policy{Tries: 3, Base: time.Second, Max: time.Minute} })
	for value, want := range map[string]time.Duration{"7": 7 * time.Second, "3600": time.Minute, "0": 0} {
		if got := s.pause(0, &refusal{status: 503, retryAfter: value}); got != want {
			t.Errorf("Retry-After %s: %v, want %v", value, got, want)
		}
	}
	if got := s.pause(0, io.ErrUnexpectedEOF); got < time.Second/2 || got > time.Second {
		t.Errorf("a pause of %v", got)
	}
}

// TestStrangers answers like something that is not OSS.
func TestStrangers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		want   string
	}{
		"a page":         {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>hello</html>")) }, "html"},
		"an empty one":   {func(http.ResponseWriter, *http.Request) {}, "broke off"},
		"without an end": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.Copy(w, endless{}) }, "too large"},
		"a page for 404": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "nothing here", http.StatusNotFound) }, "Not Found"},
		"a loop of pages": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"))
		}, "does not go on"},
		"another's keys": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("<ListBucketResult><Contents><Key>x</Key></Contents></ListBucketResult>"))
		}, "another prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(tc.answer))
			defer server.Close()
			s := newBed(t).open(t, func(c *Config) { c.Endpoint = server.URL })
			_, err := s.List(t.Context())
			explained(t, err, tc.want, server.URL)
			s.Close()
		})
	}
	// A proxy that drops Range.
	b := newBed(t)
	b.Put(bucket, "m/v1/f", osstest.Bytes(noise(1, 5000)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		b.ServeHTTP(w, r)
	}))
	defer server.Close()
	s := b.open(t, func(c *Config) { c.Endpoint = server.URL })
	if _, err := s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := readAll(t.Context(), s, "f", 0)
	explained(t, err, "asked for bytes 0-999/5000", "status 200")
	s.Close()
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestResolveEndpoint(t *testing.T) {
	for _, tc := range []struct {
		endpoint, region string
		insecure         bool
		base, signed     string
		want             string // part of the error
	}{
		{endpoint: "oss-cn-hangzhou-internal.aliyuncs.com", base: "https://oss-cn-hangzhou-internal.aliyuncs.com", signed: "cn-hangzhou"},
		{endpoint: "https://oss-us-west-1.aliyuncs.com/", base: "https://oss-us-west-1.aliyuncs.com", signed: "us-west-1"},
		{endpoint: "cn-hangzhou.oss.aliyuncs.com", base: "https://cn-hangzhou.oss.aliyuncs.com", signed: "cn-hangzhou"},
		{region: "oss-cn-beijing", base: "https://oss-cn-beijing.aliyuncs.com", signed: "cn-beijing"},
		{endpoint: "oss-accelerate.aliyuncs.com", region: "cn-beijing", base: "https://oss-accelerate.aliyuncs.com", signed: "cn-beijing"},
		{endpoint: "http://127.0.0.1:9000", region: "cn-x", insecure: true, base: "http://127.0.0.1:9000", signed: "cn-x"},
		{endpoint: "127.0.0.1:9000", region: "cn-x", insecure: true, base: "https://127.0.0.1:9000", signed: "cn-x"},
		{endpoint: "http://oss-cn-hangzhou.aliyuncs.com", want: "not encrypted"},
		{endpoint: "oss-accelerate-overseas.aliyuncs.com", want: "name the region"},
		{endpoint: "oss-cn-hangzhou.aliyuncs.com", region: "cn-beijing", want: "have to fit"},
		{endpoint: "ftp://oss-cn-hangzhou.aliyuncs.com", want: "https or http"},
		{endpoint: "https://oss-cn-hangzhou.aliyuncs.com/bucket", want: "no host"},
		{endpoint: "https://", want: "no host"},
		{want: "endpoint or its region"},
	} {
		base, signed, err := resolveEndpoint(tc.endpoint, tc.region, tc.insecure)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q in %q: error %v, want %q", tc.endpoint, tc.region, err, tc.want)
		}
		if base != tc.base || signed != tc.signed {
			t.Errorf("%q in %q: %q, %q", tc.endpoint, tc.region, base, signed)
		}
	}
}

func TestParseURL(t *testing.T) {
	for url, want := range map[string][]string{
		"oss://b/a/b%20 c?#": {"b", "a/b%20 c?#"}, "oss://b": {"b", ""}, "oss://b/": {"b", ""},
		"oss:///x": nil, "oss://": nil, "s3://b/x": nil,
	} {
		bucket, path, err := ParseURL(url)
		if (err == nil) != (want != nil) || want != nil && !slices.Equal(want, []string{bucket, path}) {
			t.Errorf("%s: %q, %q, %v", url, bucket, path, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no bucket":          func(c *Config) { c.Bucket = "" },
		"no bucket's name":   func(c *Config) { c.Bucket = "A/b" },
		"an odd pattern":     func(c *Config) { c.Files.Include = []string{"["} },
		"a path that climbs": func(c *Config) { c.Path = "/a/../b" },
		"failing credentials": func(c *Config) {
			c.Credentials = func() (Credentials, error) { return Credentials{}, errors.New("no") }
		},
	} {
		cfg := Config{Region: "cn-hangzhou", Bucket: bucket, Credentials: using(good)}
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

func FuzzRefusal(f *testing.F) {
	f.Add(403, "", "<Error><Code>AccessDenied</Code><Message>no</Message><Endpoint>e</Endpoint></Error>")
	f.Add(404, "PEVycm9yPjxDb2RlPk5vU3VjaEtleTwvQ29kZT48L0Vycm9yPg==", "")
	f.Add(500, "!", "\x00")
	f.Fuzz(func(t *testing.T, status int, header, body string) {
		r := newRefusal(status, http.Header{"X-Oss-Err": {header}, "X-Oss-Request-Id": {body}}, []byte(body))
		s := &Source{endpoint: "e", prefix: "p/"}
		text := s.explain("p/k", 1, r).Error()
		if len(text) > 4000 || bytes.ContainsAny([]byte(text), "\r\n\x00\x1b") {
			t.Errorf("a refusal is told as %q", text)
		}
	})
}

// recorder remembers the Authorization of the last request and answers none.
type recorder struct{ authorization string }

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.authorization = req.Header.Get("Authorization")
	return nil, errors.New("nobody answers")
}

// TestAnonymous: without credentials nothing is signed.
func TestAnonymous(t *testing.T) {
	for _, find := range []func() (Credentials, error){nil, func() (Credentials, error) {
		return Credentials{AccessKeyID: "id", AccessKeySecret: "secret"}, nil
	}} {
		seen := &recorder{}
		s, err := New(Config{Bucket: "models", Region: "cn-hangzhou", Credentials: find, Transport: seen, Retry: retry.Policy{Tries: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.List(t.Context()); err == nil {
			t.Error("a list without an answer")
		}
		if signed := seen.authorization != ""; signed != (find != nil) {
			t.Errorf("credentials %v, Authorization %q", find != nil, seen.authorization)
		}
	}
}
