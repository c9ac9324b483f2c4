package clusters

import (
	"context"
	"fmt"

	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Change is what an Inventory tells: a cluster came, went or changed, or a ModelReplica in it did.
type Change struct {
	Cluster string
	Replica string // the ModelReplica's name; "": it is about the cluster itself
}

// Source returns what a controller watches to hear of changes. requests says what is to be reconciled after
// one; it is called from goroutines of the Inventory and must not wait. Since a queue holds a request once,
// however often it is added, changes take no memory while a reconciler is slow.
//
// The controller's workers start after the Secrets were read: before that, no cluster would look like a
// cluster that has left.
func (i *Inventory) Source(requests func(context.Context, Change) []reconcile.Request) source.SyncingSource {
	return changes{inventory: i, requests: requests}
}

type changes struct {
	inventory *Inventory
	requests  func(context.Context, Change) []reconcile.Request
}

// listener is one queue that hears of changes.
type listener struct{ hear func(Change) }

// Start implements source.Source.
func (s changes) Start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	l := &listener{hear: func(c Change) {
		for _, r := range s.requests(ctx, c) {
			queue.Add(r)
		}
	}}
	i := s.inventory
	i.mu.Lock()
	i.listeners[l] = true
	known := i.list()
	i.mu.Unlock()
	context.AfterFunc(ctx, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.listeners, l)
	})
	for _, c := range known { // what was told before it listened
		l.hear(Change{Cluster: c.Name})
	}
	return nil
}

// WaitForSync implements source.SyncingSource.
func (s changes) WaitForSync(ctx context.Context) error {
	select {
	case <-s.inventory.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the Secrets of clusters in namespace %s are not read yet: %w", s.inventory.cfg.Namespace, ctx.Err())
	}
}

// tell tells every listener. It must not be called with mu held: listeners ask the Inventory.
func (i *Inventory) tell(c Change) {
	i.mu.RLock()
	var all []*listener
	for l := range i.listeners {
		all = append(all, l)
	}
	i.mu.RUnlock()
	for _, l := range all {
		l.hear(c)
	}
}
