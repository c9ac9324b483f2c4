package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/rendezvous"
	tracker "github.com/shoal-project/shoal/tracker/client"
)

// MemberConfig is what a Member needs beside the API server.
type MemberConfig struct {
	// Tracker is the region's: nodes learn there what they should hold, and say what they do. Needed.
	Tracker *tracker.Client
	// Log may be nil.
	Log *slog.Logger
}

// Member is the reconciler of a cluster's ModelReplicas: all of them together, because the tracker takes what is
// wanted of its nodes as one set.
type Member struct {
	cfg    MemberConfig
	client client.Client
	live   client.Reader
}

const (
	// lookBusy and lookIdle are how often nodes are looked at while some have not all that they should, and else.
	lookBusy, lookIdle = 2 * time.Second, 10 * time.Second
	// trackerTime bounds one question to the tracker.
	trackerTime = 10 * time.Second
)

// AddMember gives the manager a Member.
func AddMember(mgr ctrl.Manager, cfg MemberConfig) error {
	if cfg.Tracker == nil {
		return errors.New("controller: a member needs its region's tracker")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Member{cfg: cfg, client: mgr.GetClient(), live: mgr.GetAPIReader()}
	all := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{{}} })
	return ctrl.NewControllerManagedBy(mgr).Named("modelreplica").
		Watches(&shoalv1alpha1.ModelReplica{}, all).
		// Also where there is none: a tracker that was started anew waits to hear what is desired.
		WatchesRawSource(source.Func(func(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			queue.Add(reconcile.Request{})
			return nil
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 1}).
		Complete(m)
}

// Reconcile implements reconcile.Reconciler. It looks at all ModelReplicas, whatever the request.
func (m *Member) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	var list shoalv1alpha1.ModelReplicaList
	var nodes corev1.NodeList
	if err := errors.Join(m.client.List(ctx, &list), m.client.List(ctx, &nodes)); err != nil {
		return ctrl.Result{}, err
	}
	replicas := slices.DeleteFunc(list.Items, func(r shoalv1alpha1.ModelReplica) bool { return !r.DeletionTimestamp.IsZero() })
	asked, cancel := context.WithTimeout(ctx, trackerTime)
	defer cancel()
	reports, trackerErr := m.cfg.Tracker.Progress(asked)
	wanted := map[string][]string{}
	for i := range replicas {
		wanted[replicas[i].Name] = wantedNodes(&replicas[i], nodes.Items, reports)
	}
	if trackerErr == nil {
		trackerErr = m.cfg.Tracker.SetDesired(asked, desiredSet(replicas, wanted))
	}
	next := lookIdle
	var failed error
	for i := range replicas {
		r := &replicas[i]
		volumes, err := m.volumes(ctx, r)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		before := r.Status.DeepCopy()
		describeReplica(r, wanted[r.Name], reports, volumes, trackerErr)
		if !apimeta.IsStatusConditionTrue(r.Status.Conditions, shoalv1alpha1.ConditionReady) {
			next = lookBusy
		}
		if !equality.Semantic.DeepEqual(before, &r.Status) {
			failed = errors.Join(failed, ignoreConflict(client.IgnoreNotFound(m.client.Status().Update(ctx, r))))
		}
	}
	return ctrl.Result{RequeueAfter: next}, failed
}

// wantedNodes are the nodes that are to hold r, by name.
func wantedNodes(r *shoalv1alpha1.ModelReplica, nodes []corev1.Node, reports []tracker.Progress) []string {
	p := r.Spec.PreloadConfig
	if p == nil {
		return nil
	}
	selector := labels.Set{}
	for key, value := range p.NodeSelector {
		selector[key] = string(value)
	}
	var names []string
	for i := range nodes {
		name := nodes[i].Name
		runs := slices.ContainsFunc(reports, func(r tracker.Progress) bool { return r.Node == name })
		if (len(selector) > 0 || runs) && labels.SelectorFromSet(selector).Matches(labels.Set(nodes[i].Labels)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if p.Nodes != nil && int(*p.Nodes) < len(names) {
		// The same ones whatever order they are listed in, and others for another model.
		names = rendezvous.Rank(digestOf(r), names)[:*p.Nodes]
		slices.Sort(names)
	}
	if r.Spec.Paused { // what is there stays
		names = slices.DeleteFunc(names, func(name string) bool { return reportOf(r, name, reports).State != stateReady })
	}
	return names
}

// digestOf is the digest of r's image, which its reference ends with.
func digestOf(r *shoalv1alpha1.ModelReplica) string {
	return r.Spec.Reference[strings.LastIndexByte(r.Spec.Reference, '@')+1:]
}

// labelValue makes a name fit into a label: a long one is told apart by a hash at its end.
func labelValue(name string) string {
	const most = 63
	if len(name) <= most {
		return name
	}
	sum := digest.FromString(name).Encoded()[:10]
	return strings.TrimRight(name[:most-len(sum)-1], "-._") + "-" + sum
}

// desiredSet is what the tracker is told: the replicas that some node is to hold.
func desiredSet(replicas []shoalv1alpha1.ModelReplica, wanted map[string][]string) tracker.Desired {
	set := tracker.Desired{Models: []tracker.DesiredModel{}}
	for i := range replicas {
		r := &replicas[i]
		if nodes := wanted[r.Name]; len(nodes) > 0 { // to the tracker, no nodes would be all
			set.Models = append(set.Models, tracker.DesiredModel{
				Name: r.Name, Reference: r.Spec.Reference, Nodes: nodes, Priority: int(r.Spec.PreloadConfig.Priority), Tier: string(r.Spec.PreloadConfig.Tier),
			})
		}
	}
	slices.SortFunc(set.Models, func(a, b tracker.DesiredModel) int { return strings.Compare(a.Name, b.Name) })
	return set
}

// States of a model on a node, as nodes report them.
const stateReady, stateFailed = "Ready", "Failed"

// reportOf is what a node says of r; its zero value where it has said nothing.
func reportOf(r *shoalv1alpha1.ModelReplica, node string, reports []tracker.Progress) tracker.ModelProgress {
	for _, p := range reports {
		if p.Node != node {
			continue
		}
		for _, m := range p.Models {
			if m.Name == r.Name && m.Reference == r.Spec.Reference {
				return m
			}
		}
	}
	return tracker.ModelProgress{}
}

// resident is the part of a model that has to be in a node's page cache for it to be in memory: what measures it looks
// at pages that come and go.
const resident = 0.99

// maxFailures is how many nodes a status tells why they fail.
const maxFailures = 16

// describeReplica writes down in r's status what is known of it. It looks at nothing else.
func describeReplica(r *shoalv1alpha1.ModelReplica, wanted []string, reports []tracker.Progress, volumes, trackerErr error) {
	s := &r.Status
	s.ObservedGeneration = r.Generation
	memory := r.Spec.PreloadConfig != nil && r.Spec.PreloadConfig.Tier == v1alpha1.TierMemory
	if trackerErr == nil { // else it stays as it was
		s.Nodes = countNodes(r, wanted, reports)
		s.Warm = ""
		if len(wanted) > 0 {
			s.Warm = fmt.Sprintf("%d/%d", warmNodes(s.Nodes, memory), len(wanted))
		}
	}
	set := func(kind string, ok bool, reason, message string) {
		state := metav1.ConditionFalse
		if ok {
			state = metav1.ConditionTrue
		}
		apimeta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: kind, Status: state, Reason: reason, Message: message, ObservedGeneration: r.Generation})
	}
	if volumes != nil {
		set(shoalv1alpha1.ConditionVolumesReady, false, reasonFailed, oneLine(volumes))
	} else {
		set(shoalv1alpha1.ConditionVolumesReady, true, reasonDone, volumesWords(r))
	}
	switch warm := warmNodes(s.Nodes, memory); {
	case trackerErr != nil:
		set(shoalv1alpha1.ConditionPreloaded, false, "TrackerUnreachable", "the region's tracker: "+oneLine(trackerErr))
	case r.Spec.PreloadConfig == nil:
		set(shoalv1alpha1.ConditionPreloaded, true, "NoneWanted", "no node is to hold it before a Pod asks")
	case len(wanted) == 0:
		set(shoalv1alpha1.ConditionPreloaded, false, "NoNodes", "no node has the labels of preloadConfig.nodeSelector and runs Shoal: label one, or correct the selector")
	case s.Nodes.Failed > 0:
		set(shoalv1alpha1.ConditionPreloaded, false, reasonFailed, fmt.Sprintf("%d of %d nodes cannot get on: %s: %s", s.Nodes.Failed, len(wanted), s.Nodes.Failures[0].Node, s.Nodes.Failures[0].Message))
	case int(warm) < len(wanted):
		set(shoalv1alpha1.ConditionPreloaded, false, reasonRunning, fmt.Sprintf("%d of %d nodes hold it", warm, len(wanted)))
	default:
		set(shoalv1alpha1.ConditionPreloaded, true, reasonDone, count(len(wanted), "node holds", "nodes hold")+" it")
	}
	for _, kind := range []string{shoalv1alpha1.ConditionVolumesReady, shoalv1alpha1.ConditionPreloaded} {
		if c := apimeta.FindStatusCondition(s.Conditions, kind); c.Status != metav1.ConditionTrue {
			set(shoalv1alpha1.ConditionReady, false, reasonIncomplete, kind+": "+c.Message)
			return
		}
	}
	set(shoalv1alpha1.ConditionReady, true, reasonDone, "Pods can use it")
}

// countNodes counts what the nodes that are to hold r say of it.
func countNodes(r *shoalv1alpha1.ModelReplica, wanted []string, reports []tracker.Progress) v1alpha1.NodesStatus {
	n := v1alpha1.NodesStatus{Wanted: int32(len(wanted))} //nolint:gosec // as many as nodes
	for _, name := range wanted {
		p := reportOf(r, name, reports)
		switch p.State {
		case stateReady:
			n.OnDisk++
			if p.ResidentBytes >= 0 && float64(p.ResidentBytes) >= resident*float64(p.Total) {
				n.InMemory++
			}
		case stateFailed:
			n.Failed++
			if len(n.Failures) < maxFailures {
				n.Failures = append(n.Failures, v1alpha1.NodeFailure{Node: name, Reason: "TransferFailed", Message: p.Error})
			}
		}
	}
	return n
}
