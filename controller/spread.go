package controller

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/controller/clusters"
)

// replicaName is the name of md's ModelReplica in every cluster.
func replicaName(md *v1alpha1.ModelDistribution) string { return md.Namespace + "." + md.Name }

// pullSecretName is the name of the Secret by which a cluster pulls it.
func pullSecretName(md *v1alpha1.ModelDistribution) string { return replicaName(md) + ".pull" }

// desiredReplica is what a cluster that pulls from p is asked to hold.
func desiredReplica(md *v1alpha1.ModelDistribution, o observed, p place) *shoalv1alpha1.ModelReplica {
	t := md.Spec.Targets.Clusters
	r := &shoalv1alpha1.ModelReplica{
		ObjectMeta: metav1.ObjectMeta{Name: replicaName(md)},
		Spec: shoalv1alpha1.ModelReplicaSpec{
			ModelName: md.Spec.ModelName, ModelVersion: md.Spec.ModelVersion, Reference: p.pinned(o.packed), Bytes: md.Status.Bytes,
			Volume: t.Volume, ClaimName: md.Name, PreloadConfig: t.PreloadConfig.DeepCopy(), Paused: md.Spec.Paused,
			Namespaces: []v1alpha1.NamespaceName{v1alpha1.NamespaceName(md.Namespace)},
		},
	}
	for _, n := range t.Namespaces {
		if !slices.Contains(r.Spec.Namespaces, n) {
			r.Spec.Namespaces = append(r.Spec.Namespaces, n)
		}
	}
	if p.secret != "" || p.instance != "" {
		r.Spec.PullSecret = v1alpha1.SecretName(pullSecretName(md))
	}
	return r
}

// observeClusters looks at the clusters that are chosen, and at those that still have a replica.
func (h *Hub) observeClusters(ctx context.Context, md *v1alpha1.ModelDistribution, o *observed) error {
	if h.cfg.Clusters == nil {
		return nil
	}
	chosen, err := h.cfg.Clusters.Match(md.Spec.Targets.Clusters)
	if err != nil {
		return err
	}
	have := haveImage(*o)
	for _, c := range chosen {
		seen := clusterObserved{name: c.Name, region: c.Region, chosen: true, failed: h.spreads.look(effortKey{md.UID, applying + c.Name}).Err}
		if c.Err != nil { // not a nil *Error in an interface
			seen.unreachable = c.Err
		}
		h.observeReplica(ctx, md, &seen)
		if i := pullFrom(*o, c.Region, have); seen.found != nil && o.packed != "" && i >= 0 {
			pull := h.pullFrom(ctx, md, o, i)
			seen.current = pull.err == nil && equality.Semantic.DeepEqual(seen.found.Spec, desiredReplica(md, *o, o.places[i]).Spec) &&
				h.spreads.look(effortKey{md.UID, applying + c.Name}).Result == hashOf(pull.Secret) // a hub that has just begun applies once
		} else {
			seen.current = seen.found != nil && i < 0 // its registry is not there now: what it has stays
		}
		o.clusters = append(o.clusters, seen)
	}
	for _, was := range md.Status.Clusters {
		if slices.ContainsFunc(o.clusters, func(c clusterObserved) bool { return c.name == was.Name }) {
			continue
		}
		seen := clusterObserved{name: was.Name, failed: h.spreads.look(effortKey{md.UID, removing + was.Name}).Err}
		h.observeReplica(ctx, md, &seen)
		if seen.replica {
			o.clusters = append(o.clusters, seen)
		}
	}
	return nil
}

// observeReplica looks for md's replica in a cluster. In one that cannot be reached it is where it was.
func (h *Hub) observeReplica(ctx context.Context, md *v1alpha1.ModelDistribution, c *clusterObserved) {
	r, err := h.cfg.Clusters.Replica(ctx, c.name, replicaName(md))
	switch {
	case err == nil:
		c.replica, c.reference, c.found = true, r.Spec.Reference, r
	case apierrors.IsNotFound(err) || clusters.ReasonOf(err) == clusters.Unknown:
	default:
		if c.unreachable == nil {
			c.unreachable = err
		}
		c.replica = slices.ContainsFunc(md.Status.Clusters, func(s v1alpha1.ClusterStatus) bool { return s.Name == c.name && s.Replica != "" })
	}
}

// Beginnings of the names of efforts in clusters.
const applying, removing = "apply ", "remove "

// spread begins what is to be done in clusters.
func (h *Hub) spread(ctx context.Context, md *v1alpha1.ModelDistribution, o observed, do todo) {
	h.spreads.keep(md.UID, func(name string) bool {
		cluster, apply := strings.CutPrefix(name, applying)
		if apply {
			return slices.ContainsFunc(o.clusters, func(c clusterObserved) bool { return c.chosen && c.name == cluster })
		}
		return slices.Contains(do.remove, strings.TrimPrefix(name, removing))
	})
	for _, task := range do.apply {
		replica := desiredReplica(md, o, o.places[task.registry])
		pull := h.pullFrom(ctx, md, &o, task.registry)
		input, marshalErr := json.Marshal(replica.Spec)
		if marshalErr != nil {
			continue // a spec is nothing but strings, numbers and lists
		}
		h.spreads.ensure(effortKey{md.UID, applying + task.cluster}, string(input)+hashOf(pull.Secret), func(ctx context.Context, _ func(progress)) (any, error) { //nolint:contextcheck // it outlives this look
			if pull.err != nil {
				return nil, pull.err
			}
			return hashOf(pull.Secret), h.cfg.Clusters.Apply(ctx, task.cluster, replica, pull.Secret)
		})
	}
	name := replicaName(md)
	for _, cluster := range do.remove {
		h.spreads.ensure(effortKey{md.UID, removing + cluster}, "", func(ctx context.Context, _ func(progress)) (any, error) { //nolint:contextcheck // it outlives this look
			return nil, h.cfg.Clusters.Remove(ctx, cluster, name)
		})
	}
}

// pullSecret is the Secret by which clusters pull from a place, nil where they need none, or why there is none.
type pullSecret struct {
	*corev1.Secret
	err error
}

// pullFrom returns the Secret for place i. It is read once for o.
func (h *Hub) pullFrom(ctx context.Context, md *v1alpha1.ModelDistribution, o *observed, i int) pullSecret {
	if p, ok := o.pulls[i]; ok {
		return p
	}
	if o.pulls == nil {
		o.pulls = map[int]pullSecret{}
	}
	var p pullSecret
	p.Secret, p.err = h.makePullSecret(ctx, md, o.places[i])
	o.pulls[i] = p
	return p
}

// makePullSecret puts the credentials for this one registry, and no others that the push Secret may have, into a
// Secret.
func (h *Hub) makePullSecret(ctx context.Context, md *v1alpha1.ModelDistribution, p place) (*corev1.Secret, error) {
	if p.secret == "" && p.instance == "" {
		return nil, nil //nolint:nilnil // none is needed
	}
	find, err := h.packer.access.credentials(ctx, md.Namespace, p)
	if err != nil {
		return nil, err
	}
	found, err := find(ctx, p.host)
	if err != nil {
		return nil, err
	}
	raw, err := dockerConfigOf(p.host, found)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: pullSecretName(md)}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: raw},
	}, nil
}

// dockerConfigOf is a docker configuration with the credentials for one registry.
func dockerConfigOf(host string, c auth.Credential) ([]byte, error) {
	if c.Username == "" || c.Password == "" {
		return nil, errors.New("the credentials of " + host + " are no user name and password: clusters cannot pull with others")
	}
	entry := map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))}
	return json.Marshal(map[string]any{"auths": map[string]any{host: entry}})
}

func hashOf(s *corev1.Secret) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(s.Data[corev1.DockerConfigJsonKey]))
}

// describeClusters writes down how far the clusters are. What is not known stays as it was.
func describeClusters(o observed, status *v1alpha1.ModelDistributionStatus) {
	before := status.Clusters
	status.Clusters = nil
	for _, c := range o.clusters {
		s := v1alpha1.ClusterStatus{Name: c.name}
		if k := slices.IndexFunc(before, func(b v1alpha1.ClusterStatus) bool { return b.Name == c.name }); k >= 0 {
			s = before[k]
		}
		s.Message = ""
		switch {
		case c.found != nil:
			s.Replica, s.Reference, s.Nodes = c.found.Name, c.found.Spec.Reference, *c.found.Status.Nodes.DeepCopy()
			s.Ready, s.Message = replicaReady(c.found)
		case c.unreachable == nil:
			s.Replica, s.Reference, s.Ready, s.Nodes = "", "", false, v1alpha1.NodesStatus{}
			s.Message = "it has no replica yet"
		}
		switch {
		case c.unreachable != nil:
			s.Ready, s.Message = false, oneLine(c.unreachable)
		case c.failed != nil:
			s.Message = oneLine(c.failed)
		case !c.chosen:
			s.Ready, s.Message = false, "the replica is being removed"
		}
		status.Clusters = append(status.Clusters, s)
	}
}

// replicaReady reports whether a cluster says that Pods can use the model, and why not.
func replicaReady(r *shoalv1alpha1.ModelReplica) (bool, string) {
	ready := apimeta.FindStatusCondition(r.Status.Conditions, shoalv1alpha1.ConditionReady)
	switch {
	case ready == nil || ready.ObservedGeneration < r.Generation:
		return false, "the cluster has not said yet how far it is"
	case ready.Status != metav1.ConditionTrue:
		return false, ready.Message
	}
	return true, ""
}

// concerned are the objects to look at after a change in a cluster.
func (h *Hub) concerned(ctx context.Context, c clusters.Change) []ctrl.Request {
	var list v1alpha1.ModelDistributionList
	if err := h.client.List(ctx, &list); err != nil {
		return nil // the periodic look finds it
	}
	var out []ctrl.Request
	for i := range list.Items {
		if md := &list.Items[i]; c.Replica == "" || replicaName(md) == c.Replica {
			out = append(out, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(md)})
		}
	}
	return out
}
