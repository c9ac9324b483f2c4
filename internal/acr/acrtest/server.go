// Package acrtest is a stand-in for what Alibaba Cloud Container Registry has beside the registry itself, for tests: the
// OpenAPI's GetAuthorizationToken (cr 2018-12-01) and the service that gives bearer tokens for its passwords. It
// verifies signatures for real, by an implementation of its own, and answers errors as Alibaba Cloud does.
package acrtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says whom the stand-in knows. Its zero value knows nobody.
type Config struct {
	// InstanceID is the one instance.
	InstanceID string
	// Keys are the secrets of access keys, SecurityTokens those tokens without which some of them are not taken.
	Keys, SecurityTokens map[string]string
	// Denied are access keys without the right to cr:GetAuthorizationToken.
	Denied []string
	// Life is how long temporary credentials are good, as the OpenAPI says: only Revoke ends them. 0 means an hour.
	Life time.Duration
}

// Server is an http.Handler. Its methods may be called from many goroutines.
type Server struct {
	cfg Config

	mu      sync.Mutex
	nonces  map[string]bool
	issued  int // passwords
	revoked int // the first so many
	asked   int // requests for a password
	faults  []Fault
	denied  []string
}

// Fault is an answer in the place of the OpenAPI's own.
type Fault struct {
	// Status and Code are answered; a Status of 0 breaks the connection off.
	Status int
	Code   string
	// Wait, if any, holds the answer up until it is closed or the client hangs up.
	Wait <-chan struct{}
}

// New makes a stand-in.
func New(cfg Config) *Server {
	if cfg.Life == 0 {
		cfg.Life = time.Hour
	}
	return &Server{cfg: cfg, nonces: map[string]bool{}, denied: slices.Clone(cfg.Denied)}
}

// Fail lets the next requests to the OpenAPI fail, one for each fault.
func (s *Server) Fail(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// Deny takes the right to cr:GetAuthorizationToken from an access key.
func (s *Server) Deny(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied = append(s.denied, key)
}

// Revoke ends all passwords and bearer tokens that were given so far.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = s.issued
}

// Issued is how many passwords were given, Asked how many requests for one there were.
func (s *Server) Issued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// Asked is how many requests there were to the OpenAPI.
func (s *Server) Asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// User is the user name of all temporary credentials.
const User = "cr_temp_user"

func password(number int) string { return fmt.Sprintf("temporary-password-%d", number) }

func bearer(number int) string { return fmt.Sprintf("bearer-token-%d", number) }

// valid reports whether one of those values that are not revoked is it.
func (s *Server) valid(it string, value func(int) string) (number int, ok bool) {
	for n := s.revoked + 1; n <= s.issued; n++ {
		if value(n) == it {
			return n, true
		}
	}
	return 0, false
}

// Admits reports whether a request to the registry has a bearer token that is good. Where not, challenge is for its
// WWW-Authenticate header; realm is where this handler's /auth is reached.
func (s *Server) Admits(r *http.Request, realm string) (challenge string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, ok := s.valid(token, bearer); ok {
		return "", true
	}
	return fmt.Sprintf(`Bearer realm=%q,service="registry.aliyuncs.com:test:1"`, realm), false
}

// ServeHTTP implements http.Handler: /auth gives bearer tokens, / is the OpenAPI.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/auth":
		s.serveBearer(w, r)
	case "/":
		s.serveOpenAPI(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *Server) serveBearer(w http.ResponseWriter, r *http.Request) {
	user, secret, _ := r.BasicAuth()
	s.mu.Lock()
	number, ok := s.valid(secret, password)
	s.mu.Unlock()
	if !ok || user != User {
		writeJSON(w, http.StatusUnauthorized, map[string]any{"errors": []any{map[string]string{"code": "UNAUTHORIZED", "message": "authentication required"}}})
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"token": bearer(number), "access_token": bearer(number)})
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked++
	var fault *Fault
	if len(s.faults) > 0 {
		fault, s.faults = &s.faults[0], s.faults[1:]
	}
	s.mu.Unlock()
	if fault != nil {
		if fault.Wait != nil {
			select {
			case <-fault.Wait:
			case <-r.Context().Done():
			}
		}
		if fault.Status == 0 {
			panic(http.ErrAbortHandler)
		}
		refuse(w, r, fault.Status, fault.Code, "A fault of the test.")
		return
	}
	status, code, message := s.judge(r)
	if code != "" {
		refuse(w, r, status, code, message)
		return
	}
	s.mu.Lock()
	s.issued++
	number := s.issued
	s.mu.Unlock()
	now := time.Now()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	writeJSON(w, http.StatusOK, map[string]any{
		"RequestId": requestID, "Code": "success", "IsSuccess": true,
		"TempUsername": User, "AuthorizationToken": password(number), "ExpireTime": now.Add(s.cfg.Life).UnixMilli(),
	})
}

// judge is in the order in which Alibaba Cloud's gateway checks: parameters, identity, time, signature, rights, instance.
func (s *Server) judge(r *http.Request) (status int, code, message string) {
	h := r.Header
	if h.Get("X-Acs-Version") != "2018-12-01" || h.Get("X-Acs-Action") != "GetAuthorizationToken" {
		return http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found, please check your url and method."
	}
	credential, signed, signature, ok := authorization(h.Get("Authorization"))
	if !ok {
		return http.StatusBadRequest, "IncompleteSignature", "The request signature does not conform to Aliyun standards."
	}
	secret, known := s.cfg.Keys[credential]
	if !known {
		return http.StatusNotFound, "InvalidAccessKeyId.NotFound", "Specified access key is not found."
	}
	if want := s.cfg.SecurityTokens[credential]; h.Get("X-Acs-Security-Token") != want {
		return http.StatusBadRequest, "InvalidSecurityToken.Malformed", "The specified SecurityToken is malformed."
	}
	at, err := time.Parse("2006-01-02T15:04:05Z", h.Get("X-Acs-Date"))
	if age := time.Since(at).Abs(); err != nil || age > 15*time.Minute {
		return http.StatusBadRequest, "InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."
	}
	want, toSign, err := signatureOf(r, secret, signed)
	if err != nil || !hmac.Equal([]byte(signature), []byte(want)) {
		return http.StatusBadRequest, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:" + toSign
	}
	nonce := h.Get("X-Acs-Signature-Nonce")
	s.mu.Lock()
	defer s.mu.Unlock()
	if nonce == "" || s.nonces[nonce] {
		return http.StatusBadRequest, "SignatureNonceUsed", "Specified signature nonce was used already."
	}
	s.nonces[nonce] = true
	if slices.Contains(s.denied, credential) {
		return http.StatusForbidden, "NoPermission", "You are not authorized to perform this action."
	}
	if r.URL.Query().Get("InstanceId") != s.cfg.InstanceID {
		return http.StatusOK, "INSTANCE_NOT_EXIST", "instance does not exist"
	}
	return 0, "", ""
}

// authorization reads "ACS3-HMAC-SHA256 Credential=...,SignedHeaders=a;b,Signature=...".
func authorization(value string) (credential string, signed []string, signature string, ok bool) {
	fields, isV3 := strings.CutPrefix(value, "ACS3-HMAC-SHA256 ")
	part := map[string]string{}
	for field := range strings.SplitSeq(fields, ",") {
		name, of, _ := strings.Cut(field, "=")
		part[name] = of
	}
	return part["Credential"], strings.Split(part["SignedHeaders"], ";"), part["Signature"], isV3 && len(part) == 3
}

// signatureOf calculates the signature of a request as it arrived, from its raw query. All of its X-Acs- headers and its
// host have to be signed, and its body has to be the one of X-Acs-Content-Sha256.
func signatureOf(r *http.Request, secret string, signed []string) (signature, toSign string, err error) {
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-acs-") && !slices.Contains(signed, lower) {
			return "", "", fmt.Errorf("%s is not signed", lower)
		}
	}
	if !slices.Contains(signed, "host") || !slices.IsSorted(signed) {
		return "", "", fmt.Errorf("signed headers %v", signed)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return "", "", err
	}
	bodySum := sha256.Sum256(body)
	if r.Header.Get("X-Acs-Content-Sha256") != hex.EncodeToString(bodySum[:]) {
		return "", "", fmt.Errorf("another body")
	}
	query := strings.Split(r.URL.RawQuery, "&")
	slices.Sort(query)
	lines := []string{r.Method, r.URL.EscapedPath(), strings.Join(query, "&")}
	for _, name := range signed {
		value := r.Host
		if name != "host" {
			value = strings.Join(r.Header.Values(name), ",")
		}
		lines = append(lines, name+":"+strings.TrimSpace(value))
	}
	lines = append(lines, "", strings.Join(signed, ";"), hex.EncodeToString(bodySum[:]))
	canonical := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	toSign = "ACS3-HMAC-SHA256\n" + hex.EncodeToString(canonical[:])
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(toSign))
	return hex.EncodeToString(mac.Sum(nil)), toSign, nil
}

const requestID = "E069EB86-E6AD-4A98-ADDE-0E993390239A"

func refuse(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	document := map[string]any{"RequestId": requestID, "HostId": r.Host, "Code": code, "Message": message, "Recommend": "https://api.aliyun.com/troubleshoot?q=" + code}
	if status == http.StatusOK {
		document["IsSuccess"] = false
	}
	writeJSON(w, status, document)
}

func writeJSON(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(document) // the client is gone where this fails
}
