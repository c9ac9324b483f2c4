package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// hubFlags say in which cluster the ModelDistributions are, as kubectl's flags do.
type hubFlags struct {
	kubeconfig, context, namespace string
}

func (f *hubFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file; without it $KUBECONFIG, then ~/.kube/config, then the Pod's own account")
	fl.StringVar(&f.context, "context", "", "context of the kubeconfig; without it the current one")
	fl.StringVarP(&f.namespace, "namespace", "n", "", "namespace; without it the context's, else default")
}

// hub is the cluster in which ModelDistributions are written and followed.
type hub struct {
	config        *rest.Config
	distributions dynamic.NamespaceableResourceInterface
	namespace     string // of what names none
	given         bool   // whether the user named it, and other namespaces are a mistake
}

// open reads the kubeconfig; it does not reach the cluster yet. The API server's warnings go to stderr.
func (f *hubFlags) open(stderr io.Writer) (*hub, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.context}
	overrides.Context.Namespace = f.namespace
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("no cluster is known: give --kubeconfig FILE, or set KUBECONFIG")
	} else if err != nil {
		return nil, err
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, err
	}
	config.WarningHandler = rest.NewWarningWriter(stderr, rest.WarningWriterOptions{Deduplicate: true})
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &hub{
		config:        config,
		distributions: client.Resource(v1alpha1.GroupVersion().WithResource("modeldistributions")),
		namespace:     namespace, given: f.namespace != "",
	}, nil
}

// selection is one ModelDistribution, or, without a name, all of a namespace; without that too, all.
type selection struct{ namespace, name string }

func (s selection) options() metav1.ListOptions {
	var o metav1.ListOptions
	if s.name != "" {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", s.name).String()
	}
	return o
}

// get returns one ModelDistribution.
func (h *hub) get(ctx context.Context, s selection) (*v1alpha1.ModelDistribution, error) {
	o, err := h.distributions.Namespace(s.namespace).Get(ctx, s.name, metav1.GetOptions{})
	if isNoObject(err) {
		return nil, fmt.Errorf("there is no ModelDistribution %s in namespace %s", s.name, s.namespace)
	}
	if err != nil {
		return nil, worded(err)
	}
	return distribution(o)
}

// find returns what s selects, or the API server's error.
func (h *hub) find(ctx context.Context, s selection) (*unstructured.UnstructuredList, error) {
	return h.distributions.Namespace(s.namespace).List(ctx, s.options())
}

// list returns what s selects, by namespace and name, and the version of the list for a watch.
func (h *hub) list(ctx context.Context, s selection) (all []*v1alpha1.ModelDistribution, version string, err error) {
	found, err := h.find(ctx, s)
	if err != nil {
		return nil, "", worded(err)
	}
	for i := range found.Items {
		d, err := distribution(&found.Items[i])
		if err != nil {
			return nil, "", err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, byName)
	return all, found.GetResourceVersion(), nil
}

// follow calls show with what s selects, by namespace and name, now and after each change, until show says
// that it is done or fails, or ctx ends, which is an error. A connection that breaks is made anew.
func (h *hub) follow(ctx context.Context, s selection, show func([]*v1alpha1.ModelDistribution) (done bool, err error)) error {
	for {
		all, version, err := h.list(ctx, s)
		if err != nil {
			return err
		}
		if done, err := show(all); done || err != nil {
			return err
		}
		if done, err := h.changes(ctx, s, all, version, show); done || err != nil {
			return err
		}
	}
}

// changes calls show after each change of all since version. It returns without error, and not done, when the
// API server no longer knows what happened since.
func (h *hub) changes(ctx context.Context, s selection, all []*v1alpha1.ModelDistribution, version string,
	show func([]*v1alpha1.ModelDistribution) (bool, error),
) (done bool, err error) {
	ctx = logr.NewContext(ctx, logr.Discard()) // the watcher logs what it mends itself
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, version, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = s.options().FieldSelector
			return h.distributions.Namespace(s.namespace).Watch(ctx, o)
		},
	})
	if err != nil {
		return false, err
	}
	defer func() {
		watcher.Stop()
		<-watcher.Done()
	}()
	known := map[selection]*v1alpha1.ModelDistribution{}
	for _, d := range all {
		known[selection{d.Namespace, d.Name}] = d
	}
	for event := range watcher.ResultChan() {
		o, ok := event.Object.(*unstructured.Unstructured)
		if !ok {
			if err := apierrors.FromObject(event.Object); !apierrors.IsGone(err) && !apierrors.IsResourceExpired(err) {
				return false, worded(err) // who may list, but not watch, must not list for ever
			}
			return false, nil
		}
		d, err := distribution(o)
		if err != nil {
			return false, err
		}
		if event.Type == watch.Deleted {
			delete(known, selection{d.Namespace, d.Name})
		} else {
			known[selection{d.Namespace, d.Name}] = d
		}
		if done, err := show(slices.SortedFunc(maps.Values(known), byName)); done || err != nil {
			return done, err
		}
	}
	return false, ctx.Err()
}

func byName(a, b *v1alpha1.ModelDistribution) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// distribution is o in Go, without what only API servers read.
func distribution(o *unstructured.Unstructured) (*v1alpha1.ModelDistribution, error) {
	var d v1alpha1.ModelDistribution
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &d); err != nil {
		return nil, fmt.Errorf("modeldistribution %s/%s: %w", o.GetNamespace(), o.GetName(), err)
	}
	d.ManagedFields = nil
	return &d, nil
}
