package model_test

import (
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"go.uber.org/goleak"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
)

func TestMain(m *testing.M) {
	// distribution never stops the broadcaster of its notifications.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// testRegistry is distribution v3 on loopback with a place to put faults in front of it.
type testRegistry struct {
	t    *testing.T
	host string
	app  http.Handler

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request) bool // true: the answer was given
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	config := &configuration.Configuration{
		Version: "0.1",
		Storage: configuration.Storage{
			"filesystem":  {"rootdirectory": t.TempDir()},
			"delete":      {"enabled": true},
			"maintenance": {"uploadpurging": map[any]any{"enabled": false}},
		},
	}
	config.Log.AccessLog.Disabled = true
	config.Log.Level = "error"
	config.HTTP.Secret = "test"
	app := handlers.NewApp(t.Context(), config)
	reg := &testRegistry{t: t, app: app}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		fault := reg.fault
		reg.mu.Unlock()
		if fault == nil || !fault(w, r) {
			app.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(os.Stderr, "registry: ", 0)
	server.Start()
	t.Cleanup(func() {
		server.Close()
		if err := app.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	reg.host = strings.TrimPrefix(server.URL, "http://")
	return reg
}

func (r *testRegistry) setFault(fault func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

func (r *testRegistry) open(name string) *registry.Repository {
	r.t.Helper()
	repo, err := registry.Open(r.host+"/"+name, registry.Config{
		PlainHTTP:  true,
		Credential: auth.StaticCredential("", auth.EmptyCredential),
		Retry:      registry.Retry{Tries: 4, Base: time.Millisecond, Max: 10 * time.Millisecond},
		Stall:      5 * time.Second,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(repo.Close)
	return repo
}
