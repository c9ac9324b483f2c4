package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller/clusters"
	"github.com/shoal-project/shoal/model"
)

// Finalizer keeps an object until the clusters have lost their replicas.
const Finalizer = "shoal.dev/hub"

// OpenSource opens a source of files. secret returns the data of the Secret that the source names, nil where it names
// none; it is called again when credentials are needed anew.
type OpenSource func(ctx context.Context, s *v1alpha1.ModelSource, secret func(context.Context) (map[string][]byte, error)) (model.Source, error)

// HubConfig is what a Hub needs beside the API server.
type HubConfig struct {
	Sources OpenSource
	// Clusters are those that the hub knows; nil means none. It runs beside the manager.
	Clusters *clusters.Inventory
	// Reach says where hosts, of registries and of ACR's OpenAPI, are reached instead, as http(s)://HOST[:PORT].
	Reach map[string]string
	// Jobs has each model packed in a Job; nil means in this process.
	Jobs *JobConfig
	// StateDir keeps what a killed packing or copy of this process goes on from.
	StateDir string
	// Packs and Copies are how many run at once; 0 means 2, or 16 in Jobs, which wait for nodes too, and 8.
	Packs, Copies int
	// Recheck is how often a registry that has the image is asked again; 0 means 10 minutes.
	Recheck time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// Hub is the reconciler of ModelDistributions.
type Hub struct {
	cfg    HubConfig
	client client.Client
	events events.EventRecorder
	packer *packer
	jobs   *jobs // nil: the packer packs

	packs, copies, spreads *efforts
	changes                chan event.GenericEvent
}

// reportEvery is how often the status says how far something is that runs.
const reportEvery = 2 * time.Second

// AddHub gives the manager a Hub, which runs until the manager ends.
func AddHub(mgr ctrl.Manager, cfg HubConfig) error {
	if cfg.Sources == nil || cfg.StateDir == "" {
		return errors.New("controller: sources and a folder for state are needed")
	}
	if cfg.Packs <= 0 {
		cfg.Packs = 2
		if cfg.Jobs != nil {
			cfg.Packs = 16
		}
	}
	if cfg.Copies <= 0 {
		cfg.Copies = 8
	}
	if cfg.Recheck <= 0 {
		cfg.Recheck = 10 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{
		cfg: cfg, client: mgr.GetClient(), events: mgr.GetEventRecorder("shoal-hub"),
		packer:  &packer{&access{secret: secretsOf(mgr.GetAPIReader()), reach: cfg.Reach}, cfg.Sources, cfg.Log},
		changes: make(chan event.GenericEvent, 64),
	}
	if cfg.Jobs != nil {
		if cfg.Jobs.Image == "" {
			return errors.New("controller: Jobs need an image")
		}
		h.jobs = &jobs{cfg: *cfg.Jobs, access: h.packer.access, client: h.client, server: mgr.GetAPIReader(), reach: cfg.Reach}
	}
	life, end := context.WithCancel(context.Background())
	h.packs = newEfforts(life, cfg.Packs, cfg.Recheck, h.changed)
	h.copies = newEfforts(life, cfg.Copies, cfg.Recheck, h.changed)
	h.spreads = newEfforts(life, 16, 5*time.Second, h.changed)
	err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		<-ctx.Done()
		end()
		h.packs.wait()
		h.copies.wait()
		h.spreads.wait()
		h.packer.access.close()
		return nil
	}))
	if err != nil {
		end()
		return err
	}
	build := ctrl.NewControllerManagedBy(mgr).Named("modeldistribution").
		For(&v1alpha1.ModelDistribution{}).
		// Another object may be the rival of this one, or not be it any more.
		Watches(&v1alpha1.ModelDistribution{}, handler.EnqueueRequestsFromMapFunc(h.rivals)).
		WatchesRawSource(source.Channel(h.changes, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4})
	if h.jobs != nil {
		build = build.Owns(&batchv1.Job{}) // one that is not wanted is seen
	}
	if cfg.Clusters != nil {
		build = build.WatchesRawSource(cfg.Clusters.Source(h.concerned))
	}
	return build.Complete(h)
}

// changed asks for a reconciliation of the object with this UID, of which an effort has ended.
func (h *Hub) changed(uid types.UID) {
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(context.Background(), &list); err != nil {
		return // the periodic look finds it
	}
	for i := range list.Items {
		if list.Items[i].UID == uid {
			select {
			case h.changes <- event.GenericEvent{Object: &list.Items[i]}:
			default: // many wait: the periodic look finds it
			}
		}
	}
}

// rivals are the other objects of the same model and version.
func (h *Hub) rivals(ctx context.Context, o client.Object) []ctrl.Request {
	md, ok := o.(*v1alpha1.ModelDistribution)
	if !ok {
		return nil
	}
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(ctx, &list); err != nil {
		return nil
	}
	var out []ctrl.Request
	for i := range list.Items {
		if other := &list.Items[i]; other.UID != md.UID && sameVersion(other, md) {
			out = append(out, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(other)})
		}
	}
	return out
}

func sameVersion(a, b *v1alpha1.ModelDistribution) bool {
	return a.Spec.ModelName == b.Spec.ModelName && a.Spec.ModelVersion == b.Spec.ModelVersion
}

// Reconcile implements reconcile.Reconciler.
func (h *Hub) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var md v1alpha1.ModelDistribution
	if err := h.client.Get(ctx, req.NamespacedName, &md); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if md.DeletionTimestamp.IsZero() && controllerutil.AddFinalizer(&md, Finalizer) {
		if err := h.client.Update(ctx, &md); err != nil {
			return ctrl.Result{}, ignoreConflict(err)
		}
	}
	before := md.Status.DeepCopy()
	unwritten := h.absorb(&md)
	o, err := h.observe(ctx, &md)
	if err != nil {
		return ctrl.Result{}, err
	}
	do := plan(&md.Spec, o)
	for _, cluster := range do.forget {
		h.events.Eventf(&md, nil, corev1.EventTypeWarning, "ClusterGivenUp", "Delete",
			"the cluster %s could not be reached for %s and is given up: delete the ModelReplica %s there by hand", cluster, giveUpAfter, replicaName(&md))
	}
	if do.release {
		return ctrl.Result{}, h.release(ctx, &md)
	}
	if err := h.act(ctx, &md, o, do, unwritten); err != nil {
		return ctrl.Result{}, err
	}
	// What was just begun is looked at again for the status.
	if o, err = h.observe(ctx, &md); err != nil {
		return ctrl.Result{}, err
	}
	describe(&md, o, &md.Status)
	if !equality.Semantic.DeepEqual(before, &md.Status) {
		if err := h.client.Status().Update(ctx, &md); err != nil {
			return ctrl.Result{}, ignoreConflict(err)
		}
		h.tellEvents(&md, before)
	}
	if h.jobs != nil && do.pack < 0 {
		// Not before the result is in the status. What a packing goes on from is kept while it may.
		if err := h.jobs.end(ctx, &md, o.packed == "" && o.rival == ""); err != nil {
			return ctrl.Result{}, err
		}
	}
	return ctrl.Result{RequeueAfter: h.lookAgain(&md, o)}, nil
}

// ignoreConflict drops the error that says that our view of the object is old: a newer one is on its way.
func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// absorb takes what the packing has found into the status, and reports whether only the effort knows it so far.
func (h *Hub) absorb(md *v1alpha1.ModelDistribution) (unwritten bool) {
	pack := h.packs.look(effortKey{md.UID, packing})
	if done, ok := pack.Result.(packed); ok && md.Status.Digest == "" {
		describePacking(observed{packing: pack}, &md.Status)
		md.Status.Digest, md.Status.Revision, md.Status.Bytes = done.digest.String(), done.revision, done.bytes
		unwritten = true
	}
	for _, p := range places(&md.Spec) {
		if s, ok := h.copies.look(effortKey{md.UID, p.reference()}).Result.(synced); ok && s.bytes > 0 {
			md.Status.Bytes = s.bytes
		}
	}
	return unwritten
}

// Names of the efforts that are no syncs; those are named by the reference.
const packing, deleting = "pack", "delete"

// observe gathers what is known of md.
func (h *Hub) observe(ctx context.Context, md *v1alpha1.ModelDistribution) (observed, error) {
	o := observed{
		now: time.Now(), packed: digest.Digest(md.Status.Digest), places: places(&md.Spec), sourceRegion: sourceRegion(&md.Spec.ModelSource),
		packing: h.packs.look(effortKey{md.UID, packing}), memory: wantsMemory(&md.Spec),
		imagesDeleted: h.copies.look(effortKey{md.UID, deleting}).Ended,
	}
	if !md.DeletionTimestamp.IsZero() {
		o.deleting = md.DeletionTimestamp.Time
	}
	for _, p := range o.places {
		r := registryObserved{sync: h.copies.look(effortKey{md.UID, p.reference()})}
		if k := slices.IndexFunc(md.Status.Registries, func(s v1alpha1.RegistryStatus) bool { return s.Reference == p.reference() }); k >= 0 {
			r.was = md.Status.Registries[k].State
		}
		o.registries = append(o.registries, r)
	}
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(ctx, &list); err != nil {
		return o, err
	}
	o.rival = rivalOf(md, list.Items)
	return o, h.observeClusters(ctx, md, &o)
}

// rivalOf is the object that was first with the model and version of md, where its bytes are others; "" for none.
func rivalOf(md *v1alpha1.ModelDistribution, all []v1alpha1.ModelDistribution) string {
	first := md
	for i := range all {
		if other := &all[i]; sameVersion(other, md) && other.DeletionTimestamp.IsZero() && before(other, first) {
			first = other
		}
	}
	if md.Status.Digest != "" || sameSource(first, md) {
		return ""
	}
	return first.Namespace + "/" + first.Name
}

// before reports whether a was there first: one that is packed, else the older one.
func before(a, b *v1alpha1.ModelDistribution) bool {
	if packedA, packedB := a.Status.Digest != "", b.Status.Digest != ""; packedA != packedB {
		return packedA
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.UID < b.UID
}

// sameSource reports whether two objects have the same bytes. A claim's name is another volume in another namespace.
func sameSource(a, b *v1alpha1.ModelDistribution) bool {
	return sourceIdentity(&a.Spec.ModelSource) == sourceIdentity(&b.Spec.ModelSource) && (a.Spec.ModelSource.PVC == nil || a.Namespace == b.Namespace)
}

// act begins what is to be done and ends what is not wanted any more. A result that is unwritten is kept: the write may
// be refused, or the next look may still see the object from before it, and either would pack again.
func (h *Hub) act(ctx context.Context, md *v1alpha1.ModelDistribution, o observed, do todo, unwritten bool) error {
	h.packs.keep(md.UID, func(string) bool { return do.pack >= 0 || unwritten })
	h.copies.keep(md.UID, func(name string) bool {
		return slices.ContainsFunc(do.sync, func(c copyTask) bool { return o.places[c.to].reference() == name }) || do.deleteImages && name == deleting
	})
	h.spread(ctx, md, o, do)
	spec := md.DeepCopy()
	if do.pack >= 0 {
		to := o.places[do.pack]
		previous, err := h.previous(ctx, md, to)
		if err != nil {
			return err
		}
		h.packs.ensure(effortKey{md.UID, packing}, packInput(&md.Spec)+string(o.packed), func(ctx context.Context, tell func(progress)) (any, error) { //nolint:contextcheck // it outlives this look
			if h.jobs != nil {
				return h.jobs.pack(ctx, spec, do.pack, previous, tell)
			}
			return h.packer.pack(ctx, packTask{spec.Namespace, &spec.Spec.ModelSource, to, previous, h.stateDir(spec)}, tell)
		})
	}
	for _, task := range do.sync {
		to := o.places[task.to]
		var from []place
		for _, k := range task.from {
			from = append(from, o.places[k])
		}
		h.copies.ensure(effortKey{md.UID, to.reference()}, fmt.Sprint(to, o.packed), func(ctx context.Context, tell func(progress)) (any, error) { //nolint:contextcheck // it outlives this look
			return h.sync(ctx, spec, o.packed, to, from, tell)
		})
	}
	if do.deleteImages {
		own, err := h.ownPlaces(ctx, md, o.places)
		if err != nil {
			return err
		}
		h.copies.ensure(effortKey{md.UID, deleting}, "", func(ctx context.Context, _ func(progress)) (any, error) { //nolint:contextcheck // it outlives this look
			return nil, h.deleteImages(ctx, spec, own)
		})
	}
	return nil
}

// ownPlaces are those that no other object names.
func (h *Hub) ownPlaces(ctx context.Context, md *v1alpha1.ModelDistribution, all []place) ([]place, error) {
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(ctx, &list); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(p place) bool {
		return slices.ContainsFunc(list.Items, func(other v1alpha1.ModelDistribution) bool {
			return other.UID != md.UID && slices.ContainsFunc(places(&other.Spec), func(q place) bool { return q.reference() == p.reference() })
		})
	}), nil
}

// packInput is all of the spec that a packing is for. Which registry it goes to first is not part of it.
func packInput(spec *v1alpha1.ModelDistributionSpec) string {
	raw, err := json.Marshal(v1alpha1.ModelDistributionSpec{ModelName: spec.ModelName, ModelVersion: spec.ModelVersion, ModelSource: spec.ModelSource})
	if err != nil { // a spec is nothing but strings, numbers and lists
		panic(err)
	}
	return string(raw)
}

// previous are the tags of other versions of the model in the same repository, whose layers need not be sent again.
func (h *Hub) previous(ctx context.Context, md *v1alpha1.ModelDistribution, to place) ([]string, error) {
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(ctx, &list); err != nil {
		return nil, err
	}
	return previousTags(md, list.Items, to), nil
}

// previousTags are those of other versions among all, the newest first.
func previousTags(md *v1alpha1.ModelDistribution, all []v1alpha1.ModelDistribution, to place) []string {
	all = slices.SortedFunc(slices.Values(all), func(a, b v1alpha1.ModelDistribution) int {
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	var tags []string
	for i := range all {
		other := &all[i]
		if other.UID == md.UID || other.Status.Digest == "" {
			continue
		}
		for _, p := range places(&other.Spec) {
			if p.host == to.host && p.repository == to.repository && len(tags) < maxPrevious {
				tags = append(tags, p.tag)
			}
		}
	}
	return tags
}

// maxPrevious is how many earlier versions are looked through for layers.
const maxPrevious = 8

// lookAgain is when to reconcile next without a reason.
func (h *Hub) lookAgain(md *v1alpha1.ModelDistribution, o observed) time.Duration {
	if h.packs.busy(md.UID) || h.copies.busy(md.UID) {
		return reportEvery
	}
	next := h.cfg.Recheck
	soon := func(at time.Time) {
		if !at.IsZero() {
			next = min(next, max(time.Until(at), 100*time.Millisecond))
		}
	}
	soon(o.packing.Next)
	for _, r := range o.registries {
		soon(r.sync.Next)
	}
	return next
}

// tellEvents says what has become true, or is newly wrong.
func (h *Hub) tellEvents(md *v1alpha1.ModelDistribution, before *v1alpha1.ModelDistributionStatus) {
	for _, c := range md.Status.Conditions {
		old := apimeta.FindStatusCondition(before.Conditions, c.Type)
		switch {
		case c.Status == metav1.ConditionTrue && (old == nil || old.Status != c.Status):
			h.events.Eventf(md, nil, corev1.EventTypeNormal, c.Type, "Reconcile", "%s", c.Message)
		case c.Type != v1alpha1.ConditionReady && c.Status != metav1.ConditionTrue && isWrong(c.Reason) && (old == nil || old.Reason != c.Reason):
			h.events.Eventf(md, nil, corev1.EventTypeWarning, c.Type+c.Reason, "Reconcile", "%s", c.Message)
		}
	}
}

func isWrong(reason string) bool {
	switch reason {
	case reasonWaiting, reasonRunning, reasonPaused, reasonIncomplete, reasonNotChosen:
		return false
	}
	return true
}

// release lets an object go for which nothing is left to do.
func (h *Hub) release(ctx context.Context, md *v1alpha1.ModelDistribution) error {
	h.packs.keep(md.UID, func(string) bool { return false })
	h.copies.keep(md.UID, func(string) bool { return false })
	h.spreads.keep(md.UID, func(string) bool { return false })
	if h.jobs != nil {
		if err := h.jobs.end(ctx, md, false); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(h.stateDir(md)); err != nil {
		h.cfg.Log.Warn("the state of a packing stays on the disk", "path", h.stateDir(md), "err", err)
	}
	if !controllerutil.RemoveFinalizer(md, Finalizer) {
		return nil
	}
	return ignoreConflict(client.IgnoreNotFound(h.client.Update(ctx, md)))
}
