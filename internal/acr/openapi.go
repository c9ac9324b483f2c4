package acr

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// maxAnswer is the longest answer in bytes; a real one has about 2 KiB.
const maxAnswer = 64 << 10

// newClient carries one request an hour: no connection is kept.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 10 * time.Second,
			DisableKeepAlives:     true,
		},
		// A signature is for one host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// answer is that of GetAuthorizationToken (cr 2018-12-01), or an error's.
type answer struct {
	RequestID string `json:"RequestId"`
	Code      string
	IsSuccess bool
	User      string `json:"TempUsername"`
	Password  string `json:"AuthorizationToken"`
	Expires   int64  `json:"ExpireTime"` // ms since 1970
}

// ask gets a user name, a password, and for how long they are good. Errors are *Error.
func (l *Login) ask(ctx context.Context, keys Keys) (t token, life time.Duration, err error) {
	fail := func(err error) error {
		return &Error{Instance: l.cfg.InstanceID, Region: l.cfg.Region, Identity: keys.From, Err: err}
	}
	query := url.Values{"InstanceId": {l.cfg.InstanceID}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.cfg.Endpoint+"/?"+canonicalQuery(query), http.NoBody)
	if err != nil {
		return token{}, 0, fail(err)
	}
	now := time.Now()
	req.Header = http.Header{
		"Accept":                {"application/json"},
		"User-Agent":            {"shoal"},
		"X-Acs-Action":          {"GetAuthorizationToken"},
		"X-Acs-Version":         {"2018-12-01"},
		"X-Acs-Date":            {now.UTC().Format("2006-01-02T15:04:05Z")},
		"X-Acs-Signature-Nonce": {rand.Text()},
		"X-Acs-Content-Sha256":  {hexSHA256("")},
	}
	if keys.Token != "" {
		req.Header.Set("X-Acs-Security-Token", keys.Token)
	}
	sign(req, keys)
	resp, err := l.cfg.Client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // the address is known
		}
		return token{}, 0, fail(err)
	}
	defer resp.Body.Close()
	var a answer
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return token{}, 0, fail(err)
	}
	broken := json.Unmarshal(raw, &a)
	if resp.StatusCode != http.StatusOK || broken == nil && !a.IsSuccess {
		if broken != nil || a.Code == "" {
			a.Code = http.StatusText(resp.StatusCode)
		}
		return token{}, 0, &Error{
			Instance: l.cfg.InstanceID, Region: l.cfg.Region, Identity: keys.From,
			Status: resp.StatusCode, Code: a.Code, RequestID: a.RequestID,
		}
	}
	if broken != nil || a.User == "" || a.Password == "" {
		return token{}, 0, fail(fmt.Errorf("request %q was answered without a user name and a password", a.RequestID))
	}
	// The service's own clock where it tells it, in whole seconds: this machine's may be wrong.
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		now = at.Add(time.Second)
	}
	return token{user: a.User, password: a.Password}, time.UnixMilli(a.Expires).Sub(now), nil
}
