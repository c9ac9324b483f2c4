package acr

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

const algorithm = "ACS3-HMAC-SHA256"

// sign adds the signature of Alibaba Cloud's OpenAPI, version 3 ("Request syntax and signature method V3"), to a request
// that has its X-Acs- headers, X-Acs-Content-Sha256 among them. It covers these, the host, the content type and the
// query, so nothing of them may change afterwards.
func sign(req *http.Request, keys Keys) {
	names := []string{"host"}
	for name := range req.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-acs-") || lower == "content-type" {
			names = append(names, lower)
		}
	}
	slices.Sort(names)
	var text strings.Builder
	text.WriteString(req.Method + "\n" + req.URL.EscapedPath() + "\n" + canonicalQuery(req.URL.Query()) + "\n")
	for _, name := range names {
		value := req.Host
		if name != "host" {
			value = strings.TrimSpace(req.Header.Get(name))
		}
		text.WriteString(name + ":" + value + "\n")
	}
	signed := strings.Join(names, ";")
	text.WriteString("\n" + signed + "\n" + req.Header.Get("X-Acs-Content-Sha256"))

	mac := hmac.New(sha256.New, []byte(keys.Secret))
	mac.Write([]byte(algorithm + "\n" + hexSHA256(text.String())))
	req.Header.Set("Authorization", algorithm+" Credential="+keys.ID+",SignedHeaders="+signed+",Signature="+hex.EncodeToString(mac.Sum(nil)))
}

// canonicalQuery sorts by name and escapes all but RFC 3986's unreserved characters: Go's "+" for a space is "%20"
// there.
func canonicalQuery(query url.Values) string {
	return strings.ReplaceAll(query.Encode(), "+", "%20")
}

func hexSHA256(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}
