package osstest

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/aliyun/aliyun-oss-go-sdk/oss"
	"go.uber.org/goleak"

	"github.com/shoal-project/shoal/internal/faults"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// document reads the error that a HEAD carries in its header.
func document(t *testing.T, w *httptest.ResponseRecorder) (e Error) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(w.Header().Get("X-Oss-Err"))
	if err == nil {
		err = xml.Unmarshal(raw, &e)
	}
	if err != nil {
		t.Fatalf("status %d with the document %q: %v", w.Code, raw, err)
	}
	return e
}

// client is the SDK, connected to s whatever the endpoint's name.
func client(t *testing.T, s *Server, endpoint string, options ...oss.ClientOption) *oss.Bucket {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	transport := &http.Transport{Dial: func(string, string) (net.Conn, error) {
		return net.Dial("tcp", server.Listener.Addr().String())
	}}
	t.Cleanup(transport.CloseIdleConnections)
	options = append([]oss.ClientOption{oss.HTTPClient(&http.Client{Transport: transport}), oss.Region("cn-hangzhou"), oss.SecurityToken("TOK")}, options...)
	c, err := oss.New(endpoint, "ak", "sk", options...)
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := c.Bucket("mybucket")
	if err != nil {
		t.Fatal(err)
	}
	return bucket
}

var keys = map[string]Key{"ak": {Secret: "sk", Token: "TOK"}}

// TestSDK reads with both signatures and in both styles.
func TestSDK(t *testing.T) {
	for name, version := range map[string]oss.AuthVersionType{"v1": oss.AuthV1, "v4": oss.AuthV4} {
		for _, endpoint := range []string{"http://127.0.0.1", "http://oss-cn-hangzhou.aliyuncs.com", "http://oss-cn-hangzhou-internal.aliyuncs.com"} {
			t.Run(name+" "+endpoint, func(t *testing.T) {
				s := New(Config{Keys: keys, MaxKeys: 2})
				content := map[string]string{"v1/a b+c.txt": "hello", "v1/中文&<x>?.bin": "world", "v1/d%2Fe": "", "v1/e": "e", "v10/x": "x"}
				for key, text := range content {
					s.Put("mybucket", key, Bytes([]byte(text)))
				}
				bucket := client(t, s, endpoint, oss.AuthVersion(version))
				var found int
				for token := ""; ; {
					page, err := bucket.ListObjectsV2(oss.Prefix("v1/"), oss.ContinuationToken(token), oss.MaxKeys(1000))
					if err != nil {
						t.Fatal(err)
					}
					for _, o := range page.Objects {
						found++
						if text, ok := content[o.Key]; !ok || o.Size != int64(len(text)) {
							t.Errorf("listed %q of %d bytes", o.Key, o.Size)
						}
						body, err := bucket.GetObject(o.Key, oss.IfMatch(o.ETag))
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(body)
						body.Close()
						if err != nil || string(got) != content[o.Key] {
							t.Errorf("%q holds %q, %v", o.Key, got, err)
						}
					}
					if token = page.NextContinuationToken; !page.IsTruncated {
						break
					}
				}
				if found != 4 || s.Requests()[ListObjects] != 2 {
					t.Errorf("%d objects found by %v", found, s.Requests())
				}
				header, err := bucket.GetObjectDetailedMeta("v1/a b+c.txt")
				if err != nil || header.Get("X-Oss-Hash-Crc64ecma") == "" || header.Get("Content-Length") != "5" {
					t.Errorf("head: %v, %v", header, err)
				}
			})
		}
	}
}

func TestRanges(t *testing.T) {
	s := New(Config{Keys: keys})
	s.Put("mybucket", "k", Bytes([]byte("123456789")))
	bucket := client(t, s, "http://127.0.0.1", oss.AuthVersion(oss.AuthV4))
	for name, tc := range map[string]struct {
		of, behavior string
		status       int
		body, extent string
	}{
		"inside":                 {"2-4", "", 206, "345", "bytes 2-4/9"},
		"from":                   {"7-", "", 206, "89", "bytes 7-8/9"},
		"suffix":                 {"-2", "", 206, "89", "bytes 7-8/9"},
		"past the end":           {"7-20", "", 200, "123456789", ""},
		"past the end, standard": {"7-20", "standard", 206, "89", "bytes 7-8/9"},
		"beyond":                 {"9-20", "", 200, "123456789", ""},
		"beyond, standard":       {"9-20", "standard", 416, "", ""},
		"nonsense":               {"x-y", "standard", 200, "123456789", ""},
	} {
		got, err := bucket.DoGetObject(&oss.GetObjectRequest{ObjectKey: "k"}, []oss.Option{oss.NormalizedRange(tc.of), oss.RangeBehavior(tc.behavior)})
		if refused, ok := errors.AsType[oss.ServiceError](err); ok {
			if refused.StatusCode != tc.status || refused.Code != "InvalidRange" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(got.Response.Body)
		got.Response.Body.Close()
		if err != nil || got.Response.StatusCode != tc.status || string(body) != tc.body || got.Response.Headers.Get("Content-Range") != tc.extent {
			t.Errorf("%s: status %d, %q, %q, %v", name, got.Response.StatusCode, body, got.Response.Headers.Get("Content-Range"), err)
		}
		// The check value of CRC-64/XZ, on ranged answers too.
		if crc := got.Response.Headers.Get("X-Oss-Hash-Crc64ecma"); crc != "11051210869376104954" {
			t.Errorf("%s: CRC64 %s", name, crc)
		}
	}
}

func TestRefusals(t *testing.T) {
	var fault Fault
	s := New(Config{Keys: keys, Faults: func(*http.Request) Fault { return fault }})
	s.Put("mybucket", "k", Bytes([]byte("123456789")))
	archived := Bytes([]byte("x"))
	archived.StorageClass = "ColdArchive"
	s.Put("mybucket", "archived", archived)
	bucket := client(t, s, "http://127.0.0.1", oss.AuthVersion(oss.AuthV4))
	get := func(key string, options ...oss.Option) error {
		body, err := bucket.GetObject(key, options...)
		if err == nil {
			_, err = io.ReadAll(body)
			body.Close()
		}
		return err
	}
	_, noKey := bucket.GetObjectDetailedMeta("none")
	for code, err := range map[string]error{
		"NoSuchKey":          noKey,
		"InvalidObjectState": get("archived"),
		"PreconditionFailed": get("k", oss.IfMatch(`"other"`)),
	} {
		refused, ok := errors.AsType[oss.ServiceError](err)
		if !ok || refused.Code != code || refused.RequestID == "" {
			t.Errorf("%v, want %s", err, code)
		}
	}
	before := s.Sent("mybucket", "k")
	fault = Fault{Fault: faults.Fault{At: 4, Cut: true}}
	if err := get("k"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body that was cut: %v", err)
	}
	if sent := s.Sent("mybucket", "k") - before; sent != 4 {
		t.Errorf("%d bytes counted of 4", sent)
	}
	fault = Fault{Fault: faults.Fault{Status: http.StatusServiceUnavailable}}
	refused, ok := errors.AsType[oss.ServiceError](get("k"))
	if !ok || refused.StatusCode != 503 || refused.Code != "ServiceUnavailable" {
		t.Errorf("503: %v", refused)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("bytes=0-9", "OSS ak:x")
	f.Add("bytes=-5", "OSS4-HMAC-SHA256 Credential=a/b/c/oss/aliyun_v4_request,AdditionalHeaders=a;b,Signature=x")
	f.Add("bytes=18446744073709551615-", "OSS4-HMAC-SHA256 ,")
	f.Fuzz(func(t *testing.T, byteRange, auth string) {
		parseAuthorization(auth)
		const size = 100
		if start, end, err := parseRange(byteRange, size); err == nil && (start < 0 || start > size || end < start) {
			t.Errorf("%s is %d to %d", strconv.Quote(byteRange), start, end)
		}
	})
}
