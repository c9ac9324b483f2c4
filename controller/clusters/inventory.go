// Package clusters knows the clusters that a hub serves, and does in them what a hub does: it writes
// ModelReplicas with the Secrets by which they are pulled, and hears of their status.
//
// The clusters are the hub itself and one for each Secret of a namespace that carries Argo CD's or
// multicluster-runtime's label (docs/members.md). They come, go and change while an Inventory runs. Each is
// watched on its own: one that is down costs its retries and nothing else, and says since when and why.
//
// The reconciler of ModelDistribution calls Match for the clusters, Apply, Remove and Replica for what is in
// them, and watches Source. Nothing here touches an object in a cluster that another hub made, runs a program,
// or reads a file that a Secret names; no credentials are logged or part of an error.
package clusters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// Cluster is a cluster that the hub knows.
type Cluster struct {
	Name   string
	Region string            // "" where nobody says
	Labels map[string]string // the Secret's; of the hub, those of Config
	Hub    bool              // it is the hub itself
	Secret string            // NAMESPACE/NAME of the Secret; "" for the hub

	// Insecure: whoever stands between the hub and the cluster can read and change everything, because the
	// Secret tells not to check the certificate.
	Insecure bool
	// Err is why it cannot be used now; nil where it can.
	Err *Error
	// Since is when Err became what it is.
	Since time.Time
}

// Config is what an Inventory is made of.
type Config struct {
	// REST is the way to the hub's API server. Needed.
	REST *rest.Config
	// ID marks what this hub makes in clusters, as the value of the label shoal.dev/hub: two hubs with one ID
	// would undo each other's work, and a hub with another ID leaves it all alone. Needed, and for ever; the
	// UID of the hub's namespace kube-system is a good one.
	ID string
	// Namespace is that of the Secrets which describe clusters. Needed.
	Namespace string
	// Hub is the hub as one of the clusters: Name, Region and Labels. nil: it is none.
	Hub *Cluster
	// MemberNamespace is Shoal's own in each cluster, where pull Secrets go. "": shoal-system.
	MemberNamespace string
	// Log gets a line whenever a cluster comes, goes, or changes its state. nil: nothing is logged.
	Log *slog.Logger
}

// Inventory is the clusters that a hub knows, while Run runs.
type Inventory struct {
	cfg   Config
	hub   *entry
	kinds kinds

	stale  chan struct{} // 1: Secrets have changed since they were last read
	synced chan struct{} // closed once the Secrets were read

	mu        sync.RWMutex
	entries   []entry            // sorted by name
	members   map[string]*member // by place; of the entries with a connection
	listeners map[*listener]bool
}

// New returns an Inventory that knows no cluster before it runs. Its errors are about cfg.
func New(cfg Config) (*Inventory, error) {
	switch {
	case cfg.REST == nil:
		return nil, errors.New("clusters: no way to the hub's API server")
	case cfg.Namespace == "":
		return nil, errors.New("clusters: no namespace of the Secrets that describe clusters")
	case cfg.ID == "" || len(validation.IsValidLabelValue(cfg.ID)) > 0:
		return nil, fmt.Errorf("clusters: the hub's ID %q is no label value", cfg.ID)
	case cfg.Hub != nil && !clusterName.MatchString(cfg.Hub.Name):
		return nil, fmt.Errorf("clusters: the hub's name %q has to be lower-case letters, digits, '-' and '.'", cfg.Hub.Name)
	}
	if cfg.MemberNamespace == "" {
		cfg.MemberNamespace = "shoal-system"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	i := &Inventory{
		cfg: cfg, kinds: newKinds(), stale: make(chan struct{}, 1), synced: make(chan struct{}), listeners: map[*listener]bool{},
	}
	if h := cfg.Hub; h != nil {
		i.hub = &entry{
			Cluster: Cluster{Name: h.Name, Region: h.Region, Labels: maps.Clone(h.Labels), Hub: true},
			named:   true, connection: cfg.REST,
		}
	}
	return i, nil
}

// Run follows the Secrets and the clusters until ctx ends, and returns when every goroutine and idle
// connection of them has ended. It is called once.
func (i *Inventory) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	var stores []cache.Cache
	hub, err := dial(i.cfg.REST, true)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	defer hub.close()
	for _, c := range conventions() { // one label selector cannot say "or"
		store, err := i.kinds.cache(i.cfg.REST, hub.wrapped, map[client.Object]cache.ByObject{&corev1.Secret{}: {
			Namespaces: map[string]cache.Config{i.cfg.Namespace: {LabelSelector: labels.SelectorFromSet(labels.Set{c.label: c.value})}},
		}}, func(err error) {
			i.cfg.Log.Warn("Secrets of clusters are not watched, and that is tried again", slog.String("namespace", i.cfg.Namespace), slog.Any("error", err))
		})
		if err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		informer, err := store.GetInformer(ctx, &corev1.Secret{}, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		if _, err := informer.AddEventHandler(onEvery(func(string) { i.touch() })); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		stores = append(stores, store)
		group.Go(func() error { return store.Start(ctx) })
	}
	group.Go(func() error { return i.follow(ctx, stores) })
	return group.Wait()
}

// touch makes follow look at the Secrets again.
func (i *Inventory) touch() {
	select {
	case i.stale <- struct{}{}:
	default:
	}
}

// follow keeps one member for each cluster.
func (i *Inventory) follow(ctx context.Context, stores []cache.Cache) error {
	defer func() { i.settle(ctx, nil) }()
	for _, s := range stores {
		if !s.WaitForCacheSync(ctx) {
			return nil
		}
	}
	for first := true; ; first = false {
		secrets := map[string]corev1.Secret{} // by namespace and name: one may have both labels
		for _, s := range stores {
			var some corev1.SecretList
			if err := s.List(ctx, &some); err != nil {
				return fmt.Errorf("hub: Secrets of clusters: %w", err)
			}
			for _, secret := range some.Items {
				secrets[secret.Namespace+"/"+secret.Name] = secret
			}
		}
		i.settle(ctx, roster(i.hub, slices.Collect(maps.Values(secrets))))
		if first {
			close(i.synced)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-i.stale:
		}
	}
}

// settle makes the members those of entries: it stops the ones that are gone or have other credentials, and
// starts the new ones.
func (i *Inventory) settle(ctx context.Context, entries []entry) {
	next, fresh := map[string]*member{}, []*member{}
	for n := range entries {
		e := &entries[n]
		if e.connection == nil {
			continue
		}
		m := i.members[e.Secret]
		if m == nil || m.sum != e.sum {
			var err error
			if m, err = i.newMember(e); err != nil {
				e.Err = problem(e.Name, Invalid, "Secret %s cannot be used: %v", e.Secret, err)
				continue
			}
			fresh = append(fresh, m)
		}
		next[e.Secret] = m
	}
	var leaving sync.WaitGroup
	for place, m := range i.members {
		if next[place] != m {
			leaving.Go(m.stop)
		}
	}
	leaving.Wait()

	i.mu.Lock()
	before := i.list()
	i.carry(entries)
	i.entries, i.members = entries, next
	after := i.list()
	i.mu.Unlock()

	for _, m := range fresh {
		m.start(ctx)
	}
	if ctx.Err() != nil {
		return // there is nobody left to tell
	}
	for name := range differing(before, after) {
		i.tell(Change{Cluster: name})
	}
}

// carry keeps the time of an Err that is as it was. It is called with mu held.
func (i *Inventory) carry(entries []entry) {
	old := map[string]entry{}
	for _, e := range i.entries {
		old[e.Secret] = e
	}
	for n := range entries {
		e := &entries[n]
		if e.Since = time.Now(); sameError(e.Err, old[e.Secret].Err) {
			e.Since = old[e.Secret].Since
		}
	}
}

// differing returns the names of clusters that are not the same in both lists.
func differing(before, after []Cluster) map[string]bool {
	names, old := map[string]bool{}, map[string]Cluster{}
	for _, c := range before {
		old[c.Secret] = c
	}
	for _, c := range after {
		if was, ok := old[c.Secret]; !ok || !same(was, c) {
			names[c.Name] = true
			if ok {
				names[was.Name] = true
			}
		}
		delete(old, c.Secret)
	}
	for _, c := range old {
		names[c.Name] = true
	}
	return names
}

func same(a, b Cluster) bool {
	return a.Name == b.Name && a.Region == b.Region && a.Insecure == b.Insecure && maps.Equal(a.Labels, b.Labels) && sameError(a.Err, b.Err)
}

func sameError(a, b *Error) bool {
	return a == b || a != nil && b != nil && a.Message == b.Message
}

// List returns all clusters, sorted by name, also those that cannot be used. Where several Secrets give one
// name, there are several of it, of which all but one have an Err that names the one.
func (i *Inventory) List() []Cluster {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.list()
}

// list is List with mu held.
func (i *Inventory) list() []Cluster {
	all := make([]Cluster, 0, len(i.entries))
	for _, e := range i.entries {
		all = append(all, i.state(e))
	}
	return all
}

// state returns an entry's cluster as it is now. It is called with mu held.
func (i *Inventory) state(e entry) Cluster {
	c := e.Cluster
	c.Labels = maps.Clone(c.Labels)
	if m := i.members[e.Secret]; m != nil {
		c.Err, c.Since = m.state()
	}
	return c
}

// Match returns the clusters that t chooses, sorted by name: none where t is nil. A name that no cluster has
// is among them, with an Err of reason Unknown. The error is about t.selector.
func (i *Inventory) Match(t *v1alpha1.ClusterTargets) ([]Cluster, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	named := make([]Cluster, 0, len(i.entries))
	for _, e := range i.entries {
		if e.named {
			named = append(named, i.state(e))
		}
	}
	return match(named, t)
}

func match(all []Cluster, t *v1alpha1.ClusterTargets) ([]Cluster, error) {
	switch {
	case t == nil:
		return nil, nil
	case t.AllClusters:
		return all, nil
	case t.Selector != nil:
		selector, err := metav1.LabelSelectorAsSelector(t.Selector)
		if err != nil {
			return nil, fmt.Errorf("targets.clusters.selector: %w", err)
		}
		return slices.DeleteFunc(all, func(c Cluster) bool { return !selector.Matches(labels.Set(c.Labels)) }), nil
	}
	var chosen []Cluster
	for _, name := range t.Names {
		n := slices.IndexFunc(all, func(c Cluster) bool { return c.Name == string(name) })
		if n < 0 {
			chosen = append(chosen, Cluster{Name: string(name), Err: unknown(string(name))})
			continue
		}
		chosen = append(chosen, all[n])
	}
	slices.SortFunc(chosen, func(a, b Cluster) int { return strings.Compare(a.Name, b.Name) })
	return chosen, nil
}

func unknown(name string) *Error {
	return problem(name, Unknown, "the hub knows no cluster of this name: correct it, or join the cluster (docs/members.md)")
}

// Client returns a client of the cluster for ModelReplicas and Secrets, and nothing else, that reads from its
// API server. The error is an *Error: the cluster is Unknown, or has an Err. A client whose credentials were
// changed, or whose cluster left, refuses every request: ask for another one each time.
func (i *Inventory) Client(name string) (client.Client, error) {
	m, err := i.member(name)
	if err != nil {
		return nil, err
	}
	return m.client, nil
}

// member returns the cluster of a name, if it can be used.
func (i *Inventory) member(name string) (*member, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	for _, e := range i.entries {
		if e.Name != name || !e.named {
			continue
		}
		if c := i.state(e); c.Err != nil {
			return nil, c.Err
		}
		return i.members[e.Secret], nil
	}
	return nil, unknown(name)
}

// onEvery calls f with the key of every object that an informer tells of.
func onEvery(f func(key string)) toolscache.ResourceEventHandler {
	told := func(o any) {
		if key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil { // objects of an informer have names
			f(key)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{AddFunc: told, UpdateFunc: func(_, o any) { told(o) }, DeleteFunc: told}
}
