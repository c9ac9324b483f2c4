package osstest

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxSkew is how far a client's clock may be off.
const maxSkew = 15 * time.Minute

const dateV4 = "20060102T150405Z"

// authorization is what the Authorization header says.
type authorization struct {
	version   int // 1 or 4
	keyID     string
	signature string
	// Version 4 only.
	day, region string
	additional  []string // names of more headers that are signed, in lower case
}

// parseAuthorization reads both versions' headers; false for any other.
func parseAuthorization(value string) (authorization, bool) {
	if rest, ok := strings.CutPrefix(value, "OSS "); ok {
		id, signature, ok := strings.Cut(rest, ":")
		return authorization{version: 1, keyID: id, signature: signature}, ok
	}
	rest, ok := strings.CutPrefix(value, "OSS4-HMAC-SHA256 ")
	if !ok {
		return authorization{}, false
	}
	a := authorization{version: 4}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			scope := strings.Split(value, "/")
			if len(scope) != 5 || scope[3] != "oss" || scope[4] != "aliyun_v4_request" {
				return a, false
			}
			a.keyID, a.day, a.region = scope[0], scope[1], scope[2]
		case "AdditionalHeaders":
			a.additional = strings.Split(strings.ToLower(value), ";")
		case "Signature":
			a.signature = value
		default:
			return a, false
		}
	}
	return a, a.keyID != "" && a.signature != ""
}

// verify checks who asks: the clock, the key, its token, the region and the signature.
func (s *Server) verify(c *call) *Error {
	forbidden := func(code, message, ec string) *Error {
		return &Error{Status: http.StatusForbidden, Code: code, Message: message, EC: ec}
	}
	header := c.Header.Get("Authorization")
	if header == "" {
		return forbidden("AccessDenied", "You have no right to access this object because of bucket acl.", "0003-00000001")
	}
	auth, ok := parseAuthorization(header)
	if !ok {
		return invalid("Authorization header is invalid.")
	}
	now := s.cfg.Now()
	date, err := c.date()
	if err != nil {
		return forbidden("AccessDenied", "OSS authentication requires a valid Date.", "")
	}
	if skew := now.Sub(date).Abs(); skew > maxSkew {
		return forbidden("RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", "0002-00000504")
	}
	key, known := s.cfg.Keys[auth.keyID]
	token := c.Header.Get("X-Oss-Security-Token")
	switch {
	case !known || key.Token != "" && token == "":
		return forbidden("InvalidAccessKeyId", "The OSS Access Key Id you provided does not exist in our records.", "0002-00000902")
	case token != key.Token:
		return forbidden("InvalidSecurityToken", "The security token you provided is invalid.", "0002-00000006")
	case !key.Expires.IsZero() && now.After(key.Expires):
		return forbidden("SecurityTokenExpired", "The security token you provided has expired.", "0002-00000007")
	case auth.version == 4 && auth.region != s.cfg.Region:
		e := invalid("Invalid signing region in Authorization header.")
		e.EC = "0002-00000226"
		return e
	case auth.version == 4 && auth.day != date.Format("20060102"):
		return invalid("Invalid signing date in Authorization header.")
	}
	toSign := c.stringV1()
	want := signV1(key.Secret, toSign)
	if auth.version == 4 {
		toSign = c.stringV4(auth)
		want = signV4(key.Secret, auth, toSign)
	}
	if !hmac.Equal([]byte(want), []byte(auth.signature)) {
		e := forbidden("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method.", "0002-00000040")
		e.OSSAccessKeyID, e.SignatureProvided, e.StringToSign = auth.keyID, auth.signature, toSign
		return e
	}
	return nil
}

// date is when the request was signed.
func (c *call) date() (time.Time, error) {
	if value := c.Header.Get("X-Oss-Date"); value != "" {
		if t, err := time.Parse(dateV4, value); err == nil {
			return t, nil
		}
		return http.ParseTime(value)
	}
	return http.ParseTime(c.Header.Get("Date"))
}

// ossHeaders are the x-oss-* headers, and those of more, each "name:value\n", sorted.
func (c *call) ossHeaders(more ...string) string {
	signed := map[string]string{}
	for name, values := range c.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-oss-") || slices.Contains(more, name) {
			signed[name] = strings.TrimSpace(values[0])
		}
	}
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(signed)) {
		lines.WriteString(name + ":" + signed[name] + "\n")
	}
	return lines.String()
}

// subresources are the query parameters that version 1 signs, of those that a read may have.
var subresources = []string{
	"acl", "continuation-token", "location", "objectMeta", "response-cache-control", "response-content-disposition",
	"response-content-encoding", "response-content-language", "response-content-type", "response-expires",
	"security-token", "stat", "symlink", "tagging", "versionId", "versions", "x-oss-process", "x-oss-traffic-limit",
}

// stringV1 is what version 1 signs.
func (c *call) stringV1() string {
	query := c.URL.Query()
	var signed []string
	for _, name := range subresources {
		if value, ok := query[name]; ok {
			signed = append(signed, parameter(name, value[0]))
		}
	}
	resource := "/" + c.bucket + "/" + c.key
	if len(signed) > 0 {
		resource += "?" + strings.Join(signed, "&")
	}
	return c.Method + "\n" + c.Header.Get("Content-Md5") + "\n" + c.Header.Get("Content-Type") + "\n" +
		c.Header.Get("Date") + "\n" + c.ossHeaders() + resource
}

// parameter is one of a query; an empty value goes without its equals sign.
func parameter(name, value string) string {
	if value == "" {
		return name
	}
	return name + "=" + value
}

func signV1(secret, toSign string) string {
	h := hmac.New(sha1.New, []byte(secret))
	h.Write([]byte(toSign))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// stringV4 is what version 4 signs.
func (c *call) stringV4(auth authorization) string {
	values := c.URL.Query()
	var query []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		query = append(query, parameter(escape(name), escape(values.Get(name))))
	}
	headers := c.ossHeaders(append([]string{"content-type", "content-md5"}, auth.additional...)...)
	request := strings.Join([]string{
		c.Method, "/" + c.bucket + "/" + strings.ReplaceAll(escape(c.key), "%2F", "/"), strings.Join(query, "&"),
		headers, strings.Join(auth.additional, ";"), "UNSIGNED-PAYLOAD",
	}, "\n")
	date := c.Header.Get("X-Oss-Date")
	if date == "" {
		date = c.Header.Get("Date") // signed as it stands
	}
	sum := sha256.Sum256([]byte(request))
	return strings.Join([]string{"OSS4-HMAC-SHA256", date, auth.scope(), hex.EncodeToString(sum[:])}, "\n")
}

func (a authorization) scope() string { return a.day + "/" + a.region + "/oss/aliyun_v4_request" }

func signV4(secret string, auth authorization, toSign string) string {
	key := []byte("aliyun_v4" + secret)
	for _, step := range []string{auth.day, auth.region, "oss", "aliyun_v4_request", toSign} {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(step))
		key = h.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// escape is RFC 3986's encoding of everything but unreserved characters.
func escape(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }
