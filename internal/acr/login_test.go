package acr_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/acr"
	"github.com/shoal-project/shoal/internal/acr/acrtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	instance = "cri-kmsiwlxxdcvaduwb"
	host     = "models-registry.cn-hangzhou.cr.aliyuncs.com"
)

func knows() acrtest.Config {
	return acrtest.Config{InstanceID: instance, Keys: map[string]string{"AKID": "topsecret", "STS.1": "topsecret"}, SecurityTokens: map[string]string{"STS.1": "sts+token/="}}
}

// inside is a transport that needs no network, so that the time of a synctest bubble goes on while it is used.
type inside struct{ http.Handler }

// RoundTrip implements http.RoundTripper.
func (t inside) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	defer func() {
		if recover() != nil {
			resp, err = nil, io.ErrUnexpectedEOF
		}
		if req.Context().Err() != nil {
			resp, err = nil, context.Cause(req.Context())
		}
	}()
	w := httptest.NewRecorder()
	t.ServeHTTP(w, req)
	return w.Result(), nil
}

func static(keys acr.Keys) acr.KeySource {
	return func(context.Context) (acr.Keys, error) { return keys, nil }
}

func open(t *testing.T, server http.Handler, change ...func(*acr.Config)) *acr.Login {
	t.Helper()
	cfg := acr.Config{
		InstanceID: instance, Region: "cn-hangzhou", Endpoint: "https://cr.test",
		Keys: static(acr.Keys{ID: "AKID", Secret: "topsecret", From: "test"}), Client: &http.Client{Transport: inside{server}},
	}
	for _, c := range change {
		c(&cfg)
	}
	login, err := acr.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(login.Close)
	return login
}

// password gets the password, "" where there is an error.
func password(t *testing.T, login *acr.Login) string {
	t.Helper()
	found, err := login.For(host)(t.Context(), host)
	if err != nil {
		return ""
	}
	if found.Username != acrtest.User {
		t.Errorf("user name %q", found.Username)
	}
	return found.Password
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := acrtest.New(knows())
		registry := prometheus.NewRegistry()
		login := open(t, server, func(c *acr.Config) { c.Registerer = registry })
		if server.Asked() != 0 {
			t.Error("asked before anybody needed credentials")
		}
		for _, step := range []struct {
			after       time.Duration
			fault       acrtest.Fault
			faultsFirst int
			want        string
			asked       int // afterwards
		}{
			{want: "temporary-password-1", asked: 1},
			{after: 35 * time.Minute, want: "temporary-password-1", asked: 1},
			{after: 14 * time.Minute, want: "temporary-password-1", asked: 2}, // 49 min: the old one, while the new one comes
			{want: "temporary-password-2", asked: 2},
			// It fails from now on: the last one is used to its end, and no longer.
			{after: 50 * time.Minute, want: "temporary-password-2", asked: 5, fault: acrtest.Fault{Status: 503, Code: "ServiceUnavailable"}, faultsFirst: 3},
			{after: 8 * time.Minute, want: "temporary-password-2", asked: 8, fault: acrtest.Fault{}, faultsFirst: 3},
			{after: 2 * time.Minute, want: "", asked: 11, fault: acrtest.Fault{Status: 400, Code: "Throttling.User"}, faultsFirst: 3},
			{after: time.Minute, want: "temporary-password-3", asked: 12},
		} {
			time.Sleep(step.after)
			for range step.faultsFirst {
				server.Fail(step.fault)
			}
			if got := password(t, login); got != step.want {
				t.Errorf("after %v: password %q, want %q", step.after, got, step.want)
			}
			// The tries of a flight are told apart from the next step's by its end.
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if got := server.Asked(); got != step.asked {
				t.Errorf("after %v: asked %d times, want %d", step.after, got, step.asked)
			}
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				if family.GetName() == "shoal_acr_renewals_total" {
					got[metric.GetLabel()[1].GetValue()] = metric.GetCounter().GetValue()
				}
			}
		}
		if got["ok"] != 3 || got["error"] != 3 {
			t.Errorf("renewals %v", got)
		}
	})
}

// A pause grows from failure to failure, and a success ends the row.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := acrtest.New(knows())
		login := open(t, server)
		var longest time.Duration
		for range 12 {
			server.Fail(acrtest.Fault{Status: 403, Code: "Forbidden.RAM"})
			before := server.Asked()
			start := time.Now()
			for server.Asked() == before {
				if password(t, login) != "" {
					t.Fatal("a password in spite of the fault")
				}
				time.Sleep(100 * time.Millisecond)
			}
			longest = max(longest, time.Since(start))
		}
		if longest < 30*time.Second || longest > time.Minute+time.Second {
			t.Errorf("the longest pause was %v", longest)
		}
		time.Sleep(time.Minute)
		if got := password(t, login); got != "temporary-password-1" {
			t.Errorf("password %q", got)
		}
	})
}

func TestOneRequestForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := acrtest.New(knows())
		hold := make(chan struct{})
		server.Fail(acrtest.Fault{Status: 502, Wait: hold})
		login := open(t, server)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		var wait sync.WaitGroup
		for n := range 50 {
			wait.Go(func() {
				mine := t.Context()
				if n == 0 {
					mine = ctx
				}
				found, err := login.For(host)(mine, host)
				if n == 0 && !errors.Is(err, gone) || n > 0 && found.Password != "temporary-password-1" {
					t.Errorf("%d: %q, %v", n, found.Password, err)
				}
			})
		}
		synctest.Wait()
		cancel(gone) // whoever began it: the others get theirs
		synctest.Wait()
		close(hold)
		wait.Wait()
		if server.Asked() != 2 || server.Issued() != 1 {
			t.Errorf("asked %d times for %d passwords", server.Asked(), server.Issued())
		}
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := acrtest.New(knows())
		server.Fail(acrtest.Fault{Status: 500, Wait: make(chan struct{})})
		login := open(t, server)
		failed := make(chan error)
		go func() {
			_, err := login.For(host)(t.Context(), host)
			failed <- err
		}()
		synctest.Wait()
		go login.Close()
		if err := <-failed; !errors.Is(err, acr.ErrClosed) {
			t.Errorf("error %v", err)
		}
		if _, err := login.For(host)(t.Context(), host); !errors.Is(err, acr.ErrClosed) {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestOnlyItsHost(t *testing.T) {
	server := acrtest.New(knows())
	login := open(t, server)
	for _, other := range []string{"evil.test", host + ":444", ""} {
		if found, err := login.For(host)(t.Context(), other); err != nil || found != auth.EmptyCredential {
			t.Errorf("%q: %v", other, err)
		}
	}
	if server.Asked() != 0 {
		t.Error("asked for another host's sake")
	}
}

func TestSecurityToken(t *testing.T) {
	server := acrtest.New(knows())
	login := open(t, server, func(c *acr.Config) {
		c.Keys = static(acr.Keys{ID: "STS.1", Secret: "topsecret", Token: "sts+token/="})
	})
	if got := password(t, login); got != "temporary-password-1" {
		t.Errorf("password %q", got)
	}
}

// Each error is one sentence that names instance and region and says what to do, without secrets.
func TestErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		keys    acr.Keys
		noKeys  error
		other   string // instance
		fault   acrtest.Fault
		want    string
		refused bool
		asked   int
	}{
		"denied":         {fault: acrtest.Fault{Status: 403, Code: "NoPermission"}, want: "the keys from test may not do that; allow the action cr:GetAuthorizationToken in a RAM policy (NoPermission, request E069EB86", refused: true, asked: 1},
		"denied by RAM":  {fault: acrtest.Fault{Status: 400, Code: "Forbidden.RAM"}, want: "allow the action cr:GetAuthorizationToken", refused: true, asked: 1},
		"unknown key":    {keys: acr.Keys{ID: "AKXX", Secret: "topsecret", From: "env"}, want: "the access key from env does not exist", refused: true, asked: 1},
		"wrong secret":   {keys: acr.Keys{ID: "AKID", Secret: "topsecret2", From: "env"}, want: "the access key's secret from env is wrong", refused: true, asked: 1},
		"wrong token":    {keys: acr.Keys{ID: "STS.1", Secret: "topsecret", Token: "topsecret3", From: "oidc"}, want: "the security token from oidc has expired", refused: true, asked: 1},
		"wrong instance": {other: "cri-other", want: "check instanceId and region (INSTANCE_NOT_EXIST", refused: true, asked: 1},
		"wrong clock":    {fault: acrtest.Fault{Status: 400, Code: "InvalidTimeStamp.Expired"}, want: "set this machine's clock", refused: true, asked: 1},
		"another code":   {fault: acrtest.Fault{Status: 400, Code: "Odd.Code"}, want: "status 400; look the code up in the API's documentation (Odd.Code", refused: true, asked: 1},
		"throttled":      {fault: acrtest.Fault{Status: 400, Code: "Throttling.User"}, want: "limits the rate (status 400)", asked: 3},
		"too many":       {fault: acrtest.Fault{Status: 429, Code: "Throttling"}, want: "limits the rate (status 429)", asked: 3},
		"fails":          {fault: acrtest.Fault{Status: 500, Code: "InternalError"}, want: "it is asked again", asked: 3},
		"broken off":     {fault: acrtest.Fault{Status: 0}, want: "the OpenAPI does not answer; check the endpoint (cr-vpc.cn-hangzhou.aliyuncs.com inside a VPC)", asked: 3},
		"no keys":        {noKeys: errors.New("nowhere"), want: "no Alibaba Cloud keys: set ALIBABA_CLOUD_ACCESS_KEY_ID"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := acrtest.New(knows())
				if tc.fault != (acrtest.Fault{}) || name == "broken off" {
					server.Fail(tc.fault, tc.fault, tc.fault)
				}
				id := instance
				login := open(t, server, func(c *acr.Config) {
					if tc.other != "" {
						c.InstanceID, id = tc.other, tc.other
					}
					if tc.keys != (acr.Keys{}) {
						c.Keys = static(tc.keys)
					}
					if tc.noKeys != nil {
						c.Keys = func(context.Context) (acr.Keys, error) { return acr.Keys{}, tc.noKeys }
					}
				})
				_, err := login.For(host)(t.Context(), host)
				var told *acr.Error
				if !errors.As(err, &told) {
					t.Fatalf("error %v", err)
				}
				text := err.Error()
				if !strings.HasPrefix(text, "ACR instance "+id+" in cn-hangzhou gives no temporary credentials: ") || !strings.Contains(text, tc.want) ||
					strings.Contains(text, "topsecret") || strings.Contains(text, "\n") {
					t.Errorf("error %q, want one with %q", text, tc.want)
				}
				if told.Refused() != tc.refused || server.Asked() != tc.asked {
					t.Errorf("refused %v, asked %d times; want %v, %d", told.Refused(), server.Asked(), tc.refused, tc.asked)
				}
			})
		})
	}
}

// What is no answer of the OpenAPI's is an error, and not a password.
func TestOddAnswers(t *testing.T) {
	for name, body := range map[string]string{
		"no JSON":     "<html>",
		"nothing":     "",
		"no password": `{"IsSuccess":true,"Code":"success","TempUsername":"u","ExpireTime":1}`,
		"too long":    `{"IsSuccess":true,"x":"` + strings.Repeat("x", 1<<20) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				login := open(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
				if _, err := login.For(host)(t.Context(), host); err == nil || len(err.Error()) > 400 {
					t.Errorf("error %v", err)
				}
			})
		})
	}
}

func TestNewChecks(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  acr.Config
		want string
	}{
		"a name":          {acr.Config{InstanceID: "models", Region: "cn-hangzhou"}, "not its name"},
		"no region":       {acr.Config{InstanceID: instance}, "such as cn-hangzhou"},
		"a host's region": {acr.Config{InstanceID: instance, Region: "x.evil.com/"}, "such as cn-hangzhou"},
		"an endpoint":     {acr.Config{InstanceID: instance, Region: "cn-hangzhou", Endpoint: "cr.cn-hangzhou.aliyuncs.com"}, "want http(s)://HOST"},
		"a path":          {acr.Config{InstanceID: instance, Region: "cn-hangzhou", Endpoint: "https://a/b"}, "want http(s)://HOST"},
	} {
		if _, err := acr.New(tc.cfg); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, tc.want)
		}
	}
	if _, err := acr.New(acr.Config{InstanceID: instance, Region: "cn-hangzhou", Endpoint: "https://cr.test/"}); err != nil {
		t.Error(err)
	}
}

// A redirect would show the signature to another host.
func TestNoRedirect(t *testing.T) {
	var reached bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	defer other.Close()
	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	login := open(t, nil, func(c *acr.Config) { c.Client, c.Endpoint = nil, server.URL })
	if _, err := login.For(host)(t.Context(), host); err == nil || reached {
		t.Errorf("error %v, the other host was reached: %v", err, reached)
	}
}
