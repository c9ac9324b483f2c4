package clusters

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/connrotation"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
)

const (
	// patience is how long one request may take that is no watch. An API server answers within a second, and
	// gives up on its own after 60; less than that keeps a reconciler's worker from a cluster that hangs.
	patience = 30 * time.Second
	// qps and burst are what a hub may ask of a cluster in a second: a few hundred ModelReplicas after its start,
	// and little beside the some thousand that an API server bears.
	qps, burst = 20, 40
)

// member is one cluster that is watched. Its RoundTrip carries every request to it: what becomes of those that
// list and watch ModelReplicas is the cluster's state. The library tells of failures in several ways, and of
// none while it waits for a refused connection; here they all pass.
type member struct {
	Cluster
	sum    [sha256.Size]byte
	id     string // of this hub
	space  string // namespace of pull Secrets
	host   string // for messages
	source string // of the credentials, for messages
	client client.Client
	cache  cache.Cache
	link   *link
	log    *slog.Logger
	tell   func(Change)

	heardOf toolscache.ResourceEventHandlerRegistration
	writing chan struct{} // holds 1 while Apply or Remove is at work
	left    atomic.Bool
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	heard  *Error    // of the last request
	synced bool      // its ModelReplicas are known
	err    *Error    // heard, or that it is not synced
	since  time.Time // of err
}

// newMember prepares a cluster; nothing is sent before it starts.
func (i *Inventory) newMember(e *entry) (*member, error) {
	cfg := rest.CopyConfig(e.connection)
	cfg.QPS, cfg.Burst, cfg.UserAgent = qps, burst, "shoal-hub"
	m := &member{
		Cluster: e.Cluster, sum: e.sum, id: i.cfg.ID, space: i.cfg.MemberNamespace, host: host(cfg.Host), tell: i.tell,
		log: i.cfg.Log.With(slog.String("cluster", e.Name)), writing: make(chan struct{}, 1),
		source: "the hub's own configuration", err: connecting(e.Name), since: time.Now(),
	}
	if !e.Hub {
		m.source = "Secret " + e.Secret
	}
	var err error
	if m.link, err = dial(cfg, e.Hub); err != nil {
		return nil, err
	}
	m.client, err = client.New(cfg, client.Options{
		HTTPClient: &http.Client{Transport: m, Timeout: patience}, Scheme: i.kinds.scheme, Mapper: i.kinds.mapper,
	})
	if err != nil {
		return nil, err
	}
	ours := labels.SelectorFromSet(labels.Set{HubLabel: m.id})
	m.cache, err = i.kinds.cache(cfg, m, map[client.Object]cache.ByObject{&shoalv1alpha1.ModelReplica{}: {Label: ours}}, func(error) {}) // RoundTrip has them all
	return m, err
}

// start watches the cluster until ctx ends or it is stopped.
func (m *member) start(ctx context.Context) {
	ctx, m.cancel = context.WithCancel(ctx)
	m.log.InfoContext(ctx, "cluster joins", slog.String("region", m.Region), slog.String("host", m.host))
	if m.Insecure {
		m.log.WarnContext(ctx, "the cluster's certificate is not checked: put its CA into the Secret", slog.String("secret", m.Secret))
	}
	informer, err := m.cache.GetInformer(ctx, &shoalv1alpha1.ModelReplica{}, cache.BlockUntilSynced(false))
	if err == nil {
		m.heardOf, err = informer.AddEventHandler(onEvery(func(name string) { m.tell(Change{Cluster: m.Name, Replica: name}) }))
	}
	if err != nil {
		m.become(func() { m.heard = problem(m.Name, Invalid, "it cannot be watched: %v", err) })
		return
	}
	m.running.Go(func() { _ = m.cache.Start(ctx) }) // ends with ctx, and then alone
	m.running.Go(func() {
		if toolscache.WaitForCacheSync(ctx.Done(), m.heardOf.HasSynced) {
			m.become(func() { m.synced = true })
		}
	})
}

// stop ends all that goes on with the cluster, and waits for it. Clients that were given out refuse from now on.
func (m *member) stop() {
	m.left.Store(true)
	m.cancel()
	m.running.Wait()
	m.link.close()
	m.log.Info("cluster leaves")
}

// RoundTrip implements http.RoundTripper.
func (m *member) RoundTrip(r *http.Request) (*http.Response, error) {
	if m.left.Load() {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, errors.New("these credentials are not used any more")
	}
	answer, err := m.link.wrapped.RoundTrip(r)
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/modelreplicas") && r.Context().Err() == nil {
		heard := (*Error)(nil)
		if err != nil {
			heard = m.unanswered(err)
		} else {
			heard = m.refused(answer.StatusCode)
		}
		m.become(func() { m.heard = heard })
	}
	return answer, err
}

// become changes what is known of the cluster, and tells where that makes its state another.
func (m *member) become(change func()) {
	m.mu.Lock()
	change()
	err := m.heard
	if err == nil && !m.synced {
		err = connecting(m.Name)
	}
	if sameError(m.err, err) {
		m.mu.Unlock()
		return
	}
	m.err, m.since = err, time.Now()
	m.mu.Unlock()

	if err != nil {
		m.log.Info("cluster cannot be used", slog.String("reason", string(err.Reason)), slog.String("error", err.Message))
	} else {
		m.log.Info("cluster is ready")
	}
	m.tell(Change{Cluster: m.Name})
}

func connecting(name string) *Error { return problem(name, Connecting, "it has not answered yet") }

// state returns why the cluster cannot be used, nil where it can, and since when that is so.
func (m *member) state() (*Error, time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err, m.since
}

// host returns the host and port of an API server's URL.
func host(server string) string {
	if u, err := url.Parse(server); err == nil && u.Host != "" {
		return u.Host
	}
	return server
}

// link is the connections to one API server.
type link struct {
	wrapped http.RoundTripper // sends the credentials
	close   func()
}

// dial prepares connections; it connects to nothing. With shared, they are the library's, which keeps them for
// ever and reads what files and programs cfg names: right for the hub, whose cfg its operator made. Others are
// our own, so that they can be closed with the credentials that they were made for.
func dial(cfg *rest.Config, shared bool) (*link, error) {
	if shared {
		wrapped, err := rest.TransportFor(cfg)
		return &link{wrapped: wrapped, close: func() { utilnet.CloseIdleConnectionsFor(wrapped) }}, err
	}
	trust, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return nil, err
	}
	dialer := connrotation.NewDialer((&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
	base := utilnet.SetTransportDefaults(&http.Transport{ // among them a ping over HTTP/2, which finds a peer that is silent
		Proxy: cfg.Proxy, TLSClientConfig: trust, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second,
		DialContext:        dialer.DialContext,
		DisableCompression: cfg.DisableCompression,
	})
	wrapped, err := rest.HTTPWrappersForConfig(cfg, base)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	return &link{wrapped: wrapped, close: func() {
		base.CloseIdleConnections()
		dialer.CloseAll() // a watch that was just ended still holds its connection
	}}, nil
}

// kinds are ModelReplica and Secret: what a hub reads and writes. Their places in the API are written here, so
// that a cluster is not asked for all that it has.
type kinds struct {
	scheme *runtime.Scheme
	mapper meta.RESTMapper
}

func newKinds() kinds {
	scheme := runtime.NewScheme()
	mapper := meta.NewDefaultRESTMapper(nil)
	replicas := shoalv1alpha1.GroupVersion()
	_ = shoalv1alpha1.AddToScheme(scheme) // never fails
	_ = corev1.AddToScheme(scheme)        // nor does this
	mapper.Add(replicas.WithKind("ModelReplica"), meta.RESTScopeRoot)
	for _, kind := range []string{"Secret", "SecretList"} { // a cache of one namespace asks for the list's scope
		mapper.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	return kinds{scheme, mapper}
}

// cache returns a cache of the given objects alone. failed hears of errors after which it tries again.
func (k kinds) cache(cfg *rest.Config, through http.RoundTripper, objects map[client.Object]cache.ByObject, failed func(error)) (cache.Cache, error) {
	return cache.New(cfg, cache.Options{
		HTTPClient: &http.Client{Transport: through}, Scheme: k.scheme, Mapper: k.mapper, ByObject: objects,
		DefaultTransform: cache.TransformStripManagedFields(), ReaderFailOnMissingInformer: true,
		DefaultWatchErrorHandler: func(_ context.Context, _ *toolscache.Reflector, err error) { failed(err) },
	})
}
