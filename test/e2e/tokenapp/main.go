// Command tokenapp gives the tokens of distribution's "token" authentication to those who know a password. Its
// argument is a JSON file with its configuration.
package main

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// server is the configuration, and who answers.
type server struct {
	Addr            string
	Key             []byte // SEC 1, of P-256; its name is "test"
	Issuer, Service string
	Users           map[string]string   // passwords
	May             map[string][]string // the repositories that a user may read and write

	key *ecdsa.PrivateKey
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "tokenapp:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s server
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	if s.key, err = x509.ParseECPrivateKey(s.Key); err != nil {
		return err
	}
	web := &http.Server{Addr: s.Addr, Handler: &s, ReadHeaderTimeout: time.Minute}
	return web.ListenAndServe()
}

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

// ServeHTTP implements http.Handler (distribution, "Token Authentication Specification").
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, password, basic := r.BasicAuth()
	if !basic { // OAuth2, by POST
		user, password = r.PostForm.Get("username"), r.PostForm.Get("password")
	}
	if user != "" && (s.Users[user] == "" || s.Users[user] != password) {
		http.Error(w, "wrong password", http.StatusUnauthorized)
		return
	}
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	for scope := range strings.FieldsSeq(strings.Join(r.Form["scope"], " ")) {
		if part := strings.Split(scope, ":"); len(part) == 3 && slices.Contains(s.May[user], part[1]) {
			granted = append(granted, access{part[0], part[1], strings.Split(part[2], ",")})
		}
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": s.Issuer, "sub": user, "aud": s.Service, "exp": now.Add(5 * time.Minute).Unix(),
		"nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(), "jti": rand.Text(), "access": granted,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	signed := b64([]byte(`{"typ":"JWT","alg":"ES256","kid":"test"}`)) + "." + b64(claims)
	sum := sha256.Sum256([]byte(signed))
	x, y, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	token := signed + "." + b64(append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...))
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300}`, token, token)
}
