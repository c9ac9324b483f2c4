package osstest

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The vectors were computed by the SDK (aliyun-oss-go-sdk v3.0.2), the first is that of OSS's manual.
// Access key "ak", secret "sk".
func TestSignatures(t *testing.T) {
	const gmt = "Tue, 24 Nov 2026 00:27:17 GMT"
	with := func(more map[string]string) map[string]string {
		header := map[string]string{"Date": gmt, "X-Oss-Security-Token": "TOK"}
		maps.Copy(header, more)
		return header
	}
	v4 := map[string]string{"X-Oss-Content-Sha256": "UNSIGNED-PAYLOAD"}
	v4Range := map[string]string{"X-Oss-Content-Sha256": "UNSIGNED-PAYLOAD", "X-Oss-Range-Behavior": "standard", "Range": "bytes=0-9"}
	for name, tc := range map[string]struct {
		version        int
		method, target string
		header         map[string]string
		want           string
	}{
		"v1 put": {1, "PUT", "/examplebucket/nelson", map[string]string{
			"Date": "Wed, 28 Dec 2022 10:27:41 GMT", "X-Oss-Date": "Wed, 28 Dec 2022 10:27:41 GMT",
			"Content-Md5": "eB5eJF1ptWaXm4bijSPyxw==", "Content-Type": "text/html",
			"X-Oss-Meta-Author": "alice", "X-Oss-Meta-Magic": "abracadabra",
		}, "kSHKmLxlyEAKtZPkJhG9bZb5k7M="},
		"v1 list": {1, "GET", "/mybucket/?continuation-token=a%2Bb%3D&encoding-type=url&list-type=2&max-keys=2&prefix=qwen3-8b%2Fv1%2F",
			with(nil), "qzfeT/4weGU0RbXIXSY1n9SD+GI="},
		"v1 get":  {1, "GET", "/mybucket/qwen3-8b%2Fv1%2Fa%20b.txt", with(map[string]string{"X-Oss-Range-Behavior": "standard"}), "1DZvZE0ndJgDt5nkHuhFCELOug8="},
		"v1 head": {1, "HEAD", "/mybucket/x%2Fy", with(nil), "3IVrfNU9RFKGKXL8kwdRdNLfsU8="},
		"v4 list": {4, "GET", "/mybucket/?continuation-token=a%2Bb%3D&encoding-type=url&list-type=2&max-keys=2&prefix=qwen3-8b%2Fv1%2F",
			with(v4), "5676ee67478f8274ecd6204c6dee782d505b0a917b4611c6b8d9235fbbfa8955"},
		"v4 get":  {4, "GET", "/mybucket/qwen3-8b%2Fv1%2Fa%20b.txt", with(v4Range), "36a248d77d45fde361d25ac7ffe5460ffedc262b9dd3df9635b42dbc1b967041"},
		"v4 head": {4, "HEAD", "/mybucket/x%2Fy", with(v4), "881a727b7e1f3fb72c4b6611b6f00a33ecb7f9039d1d92605d62409d244c3a74"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "http://127.0.0.1"+tc.target, nil)
			for k, v := range tc.header {
				r.Header.Set(k, v)
			}
			c := &call{Request: r}
			var wrong *Error
			if c.bucket, c.key, wrong = New(Config{}).address(r); wrong != nil {
				t.Fatal(wrong)
			}
			got := signV1("sk", c.stringV1())
			if tc.version == 4 {
				auth := authorization{day: "20261124", region: "cn-hangzhou"}
				got = signV4("sk", auth, c.stringV4(auth))
			}
			if got != tc.want {
				t.Errorf("signature %s, want %s of\n%s\n%s", got, tc.want, c.stringV1(), c.stringV4(authorization{}))
			}
		})
	}
}

// TestVerify alters a good request in the ways that have to be noticed.
func TestVerify(t *testing.T) {
	at := time.Date(2026, 11, 24, 0, 27, 17, 0, time.UTC)
	const good = "OSS4-HMAC-SHA256 Credential=ak/20261124/cn-hangzhou/oss/aliyun_v4_request,Signature=881a727b7e1f3fb72c4b6611b6f00a33ecb7f9039d1d92605d62409d244c3a74"
	for name, tc := range map[string]struct {
		change func(*http.Request)
		config func(*Config)
		want   string
	}{
		"good": {want: "NoSuchBucket"},
		"v1": {change: func(r *http.Request) {
			r.Header.Set("Authorization", "OSS ak:3IVrfNU9RFKGKXL8kwdRdNLfsU8=")
			r.Header.Del("X-Oss-Content-Sha256")
		}, want: "NoSuchBucket"},
		"another key":      {change: func(r *http.Request) { r.URL.RawPath, r.URL.Path = "/mybucket/x%2Fz", "/mybucket/x/z" }, want: "SignatureDoesNotMatch"},
		"another header":   {change: func(r *http.Request) { r.Header.Set("X-Oss-Request-Payer", "me") }, want: "SignatureDoesNotMatch"},
		"a query":          {change: func(r *http.Request) { r.URL.RawQuery = "versionId=1" }, want: "SignatureDoesNotMatch"},
		"no signature":     {change: func(r *http.Request) { r.Header.Del("Authorization") }, want: "AccessDenied"},
		"nonsense":         {change: func(r *http.Request) { r.Header.Set("Authorization", "Basic x") }, want: "InvalidArgument"},
		"no token":         {change: func(r *http.Request) { r.Header.Del("X-Oss-Security-Token") }, want: "InvalidAccessKeyId"},
		"wrong token":      {change: func(r *http.Request) { r.Header.Set("X-Oss-Security-Token", "T") }, want: "InvalidSecurityToken"},
		"unknown key":      {config: func(c *Config) { c.Keys = nil }, want: "InvalidAccessKeyId"},
		"expired token":    {config: func(c *Config) { c.Keys["ak"] = Key{Secret: "sk", Token: "TOK", Expires: at.Add(-time.Second)} }, want: "SecurityTokenExpired"},
		"another secret":   {config: func(c *Config) { c.Keys["ak"] = Key{Secret: "s", Token: "TOK"} }, want: "SignatureDoesNotMatch"},
		"another region":   {config: func(c *Config) { c.Region = "cn-beijing" }, want: "InvalidArgument"},
		"clock behind":     {config: func(c *Config) { c.Now = func() time.Time { return at.Add(maxSkew + time.Second) } }, want: "RequestTimeTooSkewed"},
		"clock just right": {config: func(c *Config) { c.Now = func() time.Time { return at.Add(maxSkew) } }, want: "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Keys: map[string]Key{"ak": {Secret: "sk", Token: "TOK"}}, Now: func() time.Time { return at }}
			if tc.config != nil {
				tc.config(&cfg)
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodHead, "http://127.0.0.1/mybucket/x%2Fy", nil)
			for k, v := range map[string]string{
				"Date": at.Format(http.TimeFormat), "X-Oss-Security-Token": "TOK", "X-Oss-Content-Sha256": "UNSIGNED-PAYLOAD", "Authorization": good,
			} {
				r.Header.Set(k, v)
			}
			if tc.change != nil {
				tc.change(r)
			}
			w := httptest.NewRecorder()
			New(cfg).ServeHTTP(w, r)
			if got := document(t, w).Code; got != tc.want {
				t.Errorf("answered %q, want %q", got, tc.want)
			}
		})
	}
}
