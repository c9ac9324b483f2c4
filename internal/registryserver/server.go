// Package registryserver is a real OCI registry (distribution v3) inside this process, for the demo,
// the bench and tests. Its uplink can be limited, so that a wide-area link is felt; it counts what it
// sends, so that "each byte is read from the registry once" can be shown; and tests inject faults.
//
// It promises the behaviour of distribution v3 with the filesystem or the in-memory driver, deletes
// enabled and without a referrers API (clients fall back to tags).
package registryserver

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // by name below
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"   // by name below

	"github.com/shoal-project/shoal/internal/faults"
)

// Config describes a registry. Its zero value keeps everything in memory and serves plain HTTP on
// a free port of 127.0.0.1.
type Config struct {
	// Dir keeps the content; it is made where it does not exist. Empty means memory.
	Dir string
	// Listener accepts the connections; Run closes it. Nil means 127.0.0.1 and a free port.
	Listener net.Listener
	// TLS makes it https.
	TLS *tls.Config
	// UplinkBytesPerSecond bounds all responses together, headers and TLS included; 0 means no bound.
	UplinkBytesPerSecond int64
	// Users are names and passwords for HTTP basic authentication; none means open to everyone.
	Users map[string]string
	// Faults is asked once a request, from many goroutines; nil means no faults.
	Faults func(*http.Request) Fault
	// Logger gets distribution's own log at debug level; nil means silence.
	Logger *slog.Logger
}

// Server is a registry. Its counters may be read at any time.
type Server struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	app      *handlers.App
	server   *http.Server
	stop     context.CancelFunc // ends what waits: the limiter and faults
	counters counters
	requests atomic.Int64
}

// New prepares a registry; its listener queues connections until Run. A configuration that
// distribution does not accept, or a Dir that cannot be written, is an error.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Logger, listener: cfg.Listener}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.UplinkBytesPerSecond < 0 {
		return nil, fmt.Errorf("registry: an uplink of %d bytes a second; use 0 for no limit", cfg.UplinkBytesPerSecond)
	}
	appConfig, err := appConfig(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	ctx = withLogger(ctx, s.log)
	s.stop = stop
	if s.app, err = newApp(ctx, appConfig); err != nil {
		stop()
		return nil, err
	}
	if s.listener == nil {
		if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			stop()
			return nil, errors.Join(fmt.Errorf("registry: %w", err), s.app.Shutdown())
		}
	}
	s.server = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	return s, nil
}

// appConfig is distribution's configuration for content in dir.
func appConfig(dir string) (*configuration.Configuration, error) {
	config := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"delete": {"enabled": true},
			// The purger is a goroutine that nothing stops.
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.Log.AccessLog.Disabled = true
	if dir == "" {
		config.Storage["inmemory"] = configuration.Parameters{}
		config.HTTP.Secret = newSecret()
		return config, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	secret, err := loadSecret(dir)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	config.Storage["filesystem"] = configuration.Parameters{"rootdirectory": dir}
	config.HTTP.Secret = secret
	return config, nil
}

// loadSecret keeps the key that signs upload locations in dir: with a new one after a restart, no
// upload could go on.
func loadSecret(dir string) (string, error) {
	name := filepath.Join(dir, "upload-secret")
	raw, err := os.ReadFile(name)
	if err == nil && len(raw) > 0 {
		return string(raw), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	secret := newSecret()
	return secret, os.WriteFile(name, []byte(secret), 0o600)
}

func newSecret() string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	return hex.EncodeToString(raw[:])
}

// newApp turns the panics by which distribution refuses a configuration into errors.
func newApp(ctx context.Context, config *configuration.Configuration) (app *handlers.App, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("registry: distribution refuses its configuration: %v", cause)
		}
	}()
	return handlers.NewApp(ctx, config), nil
}

// Addr is the address that it listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Run serves until ctx ends; then running requests get five seconds. It is called once. The error
// is that of the listener.
func (s *Server) Run(ctx context.Context) error {
	listener := s.listener
	if rateLimit := s.cfg.UplinkBytesPerSecond; rateLimit > 0 {
		listener = &limitedListener{listener, s.server.BaseContext(nil), newLimiter(rateLimit)}
	}
	if s.cfg.TLS != nil {
		listener = tls.NewListener(listener, s.cfg.TLS)
	}
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(listener) }()
	var err error
	select {
	case err = <-failed:
		s.stop()
		err = errors.Join(err, s.server.Close())
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if s.server.Shutdown(grace) != nil {
			err = s.server.Close()
		}
		s.stop()
		<-failed // http.ErrServerClosed
	}
	return errors.Join(err, s.app.Shutdown())
}

// serve counts and answers one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	var fault Fault
	if s.cfg.Faults != nil {
		fault = s.cfg.Faults(r)
	}
	out := &faults.Writer{ResponseWriter: w, Request: r, Fault: fault, Counter: s.counters.of(r)}
	if r.Body != nil {
		r.Body = &countedBody{r.Body, &s.counters.received}
	}
	out.Begin()
	switch {
	case fault.Status != 0:
		maps.Copy(w.Header(), fault.Header)
		refuse(out, fault.Status, "UNKNOWN", "injected fault")
	case !s.admits(r):
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		refuse(out, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	default:
		s.app.ServeHTTP(out, r)
	}
	if out.Status >= 500 && fault.Status == 0 {
		s.log.WarnContext(r.Context(), "registry request failed", slog.String("path", r.URL.Path), slog.Int("status", out.Status))
	}
}

func (s *Server) admits(r *http.Request) bool {
	if len(s.cfg.Users) == 0 {
		return true
	}
	name, password, ok := r.BasicAuth()
	want, known := s.cfg.Users[name]
	return ok && known && subtle.ConstantTimeCompare([]byte(password), []byte(want)) == 1
}

// refuse answers with an error document (distribution-spec, "Error codes").
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`+"\n", code, message)
}
