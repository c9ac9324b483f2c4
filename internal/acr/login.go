// Package acr gets temporary credentials for instances of Alibaba Cloud Container Registry (enterprise edition) from
// its OpenAPI, and knows ACR's host names. The mirror reads with them, the controller pushes with them.
//
// A Login asks once an hour or so: when its credentials are needed and their end comes near. Who needs them
// meanwhile gets the last ones, as long as they are good; a failing OpenAPI is asked again with growing pauses. User
// names and passwords go to the one registry that they are for, and neither they nor keys are in errors or logs.
package acr

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"oras.land/oras-go/v2/registry/remote/auth"
)

// Config says for which instance credentials are got, and as whom. InstanceID and Region are needed.
type Config struct {
	// InstanceID is the instance's id, cri-...; Region its region, such as cn-hangzhou.
	InstanceID, Region string
	// Endpoint is the OpenAPI, http(s)://HOST[:PORT]; empty means Endpoint(Region, false).
	Endpoint string
	// Keys signs the requests; nil means DefaultKeys.
	Keys KeySource
	// Client sends them; nil means one that follows no redirect.
	Client *http.Client
	// Registerer gets the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Endpoint is the address of a region's OpenAPI for ACR, on the internet or inside a VPC.
func Endpoint(region string, vpc bool) string {
	if vpc {
		return "https://cr-vpc." + region + ".aliyuncs.com"
	}
	return "https://cr." + region + ".aliyuncs.com"
}

var (
	instancePattern = regexp.MustCompile(`^cri-[a-z0-9]+$`)
	regionPattern   = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)+$`)
)

func (c *Config) check() error {
	if !instancePattern.MatchString(c.InstanceID) {
		return fmt.Errorf("ACR instance %q: want its id, such as cri-kmsiwlxxdcvaduwb, not its name (the console shows both)", c.InstanceID)
	}
	if !regionPattern.MatchString(c.Region) {
		return fmt.Errorf("ACR instance %s: region %q: want one such as cn-hangzhou", c.InstanceID, c.Region)
	}
	if c.Endpoint == "" {
		c.Endpoint = Endpoint(c.Region, false)
	}
	u, err := url.Parse(c.Endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("ACR instance %s: endpoint: want http(s)://HOST[:PORT], such as %s", c.InstanceID, Endpoint(c.Region, true))
	}
	c.Endpoint = u.Scheme + "://" + u.Host
	return nil
}

const (
	// tries is how often the OpenAPI is asked before those who wait are told of a failure that may pass.
	tries = 3
	// askTime bounds these tries together.
	askTime = 20 * time.Second
	// maxPause bounds the pause after failures: somebody may just have set the rights right.
	maxPause = time.Minute
)

// Login holds the temporary credentials of one instance. Its methods may be called from many goroutines.
type Login struct {
	cfg      Config
	renewals *prometheus.CounterVec // by result
	expires  prometheus.Gauge       // seconds since 1970

	mu     sync.Mutex
	token  token   // the last good one
	flight *flight // nil: the OpenAPI is not being asked
	failed error   // of the last flight; nil after a success
	row    int     // failures in a row
	next   time.Time
	closed bool
	wait   sync.WaitGroup // for the flight
}

// token is a pair of temporary credentials. It is renewed when it is needed after renew, and not used after ends.
type token struct {
	user, password string
	renew, ends    time.Time
}

// flight is one question to the OpenAPI, for all who wait. token and err are set once done is closed.
type flight struct {
	done   chan struct{}
	cancel context.CancelFunc
	token  token
	err    error
}

// New checks cfg. Nothing is asked before credentials are needed; Close is to be called at the end.
func New(cfg Config) (*Login, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Keys == nil {
		cfg.Keys = DefaultKeys()
	}
	if cfg.Client == nil {
		cfg.Client = newClient()
	}
	labels := prometheus.Labels{"instance_id": cfg.InstanceID}
	l := &Login{
		cfg: cfg,
		renewals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_acr_renewals_total", Help: "Requests for temporary credentials of ACR, by result (ok, error).", ConstLabels: labels,
		}, []string{"result"}),
		expires: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_acr_expiry_timestamp_seconds", Help: "When the temporary credentials of ACR end; 0 before the first.", ConstLabels: labels,
		}),
	}
	if cfg.Registerer != nil {
		if err := errors.Join(cfg.Registerer.Register(l.renewals), cfg.Registerer.Register(l.expires)); err != nil {
			return nil, fmt.Errorf("ACR instance %s: %w", cfg.InstanceID, err)
		}
	}
	return l, nil
}

// Close ends a question to the OpenAPI and waits for that end.
func (l *Login) Close() {
	l.mu.Lock()
	l.closed = true
	if l.flight != nil {
		l.flight.cancel()
	}
	l.mu.Unlock()
	l.wait.Wait()
}

// For finds the credentials for the registry's host[:port], and none for any other. Its errors are *Error, ErrClosed or
// the caller's own context's.
func (l *Login) For(host string) auth.CredentialFunc {
	return func(ctx context.Context, asked string) (auth.Credential, error) {
		if !strings.EqualFold(asked, host) {
			return auth.EmptyCredential, nil
		}
		t, err := l.get(ctx)
		if err != nil {
			return auth.EmptyCredential, err
		}
		return auth.Credential{Username: t.user, Password: t.password}, nil
	}
}

// get returns a good token. It waits for the OpenAPI only where there is none.
func (l *Login) get(ctx context.Context) (token, error) {
	l.mu.Lock()
	now := time.Now()
	good := now.Before(l.token.ends)
	rest := now.Before(l.next) // after a failure
	switch {
	case good && (now.Before(l.token.renew) || rest || l.closed):
		defer l.mu.Unlock()
		return l.token, nil
	case l.closed:
		defer l.mu.Unlock()
		return token{}, ErrClosed
	case rest:
		defer l.mu.Unlock()
		return token{}, l.failed
	}
	if l.flight == nil {
		l.start(ctx)
	}
	t, f := l.token, l.flight
	l.mu.Unlock()
	if good {
		return t, nil
	}
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return token{}, context.Cause(ctx)
	}
}

// start begins a flight. It outlives the caller, who is not the only one to wait for it. l.mu is held.
func (l *Login) start(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	f := &flight{done: make(chan struct{}), cancel: cancel}
	l.flight = f
	l.wait.Go(func() {
		defer cancel()
		t, err := l.renew(ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil && l.closed {
			err = ErrClosed
		}
		f.token, f.err = t, err
		l.flight, l.failed = nil, err
		if err != nil {
			l.next = time.Now().Add(pause(l.row))
			l.row++
			l.renewals.WithLabelValues("error").Inc()
		} else {
			l.token, l.row, l.next = t, 0, time.Time{}
			l.renewals.WithLabelValues("ok").Inc()
			l.expires.Set(float64(t.ends.Unix()))
		}
		close(f.done)
	})
}

// renew asks until there is an answer, or no use in it.
func (l *Login) renew(ctx context.Context) (token, error) {
	for try := 0; ; try++ {
		keys, err := l.cfg.Keys(ctx)
		if err != nil {
			return token{}, &Error{Instance: l.cfg.InstanceID, Region: l.cfg.Region, Err: err}
		}
		if keys.From == "" {
			keys.From = "the configuration"
		}
		t, life, err := l.ask(ctx, keys)
		if err == nil {
			t.renew, t.ends = schedule(time.Now(), life, rand.Float64())
			return t, nil
		}
		if e, ok := errors.AsType[*Error](err); !ok || !e.transient() || try+1 == tries {
			return token{}, err
		}
		timer := time.NewTimer(pause(try) / 2)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return token{}, err
		}
	}
}

// schedule says when credentials that are good for life are renewed and when they are no longer used. dice is in [0, 1):
// it spreads the mirrors that were started together. A fifth of the life is left for tries, and the last 30 seconds, or
// tenth, for what begins with them. Those that end at once serve whoever waits for them.
func schedule(now time.Time, life time.Duration, dice float64) (renew, ends time.Time) {
	life = max(life, 0)
	renew = now.Add(time.Duration(float64(life) * (0.6 + 0.2*dice)))
	return renew, now.Add(life - min(life/10, 30*time.Second))
}

// pause is the wait after the row-th failure in a row, from 0: one second, then twice as long each time, shortened by a
// random part of up to a half.
func pause(row int) time.Duration {
	wait := min(time.Second<<min(row, 10), maxPause)
	return wait - rand.N(wait/2+1)
}
