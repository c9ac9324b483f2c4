package clusters

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
)

const (
	// HubLabel has the ID of the hub that an object in a cluster belongs to.
	HubLabel = "shoal.dev/hub"
	// fieldOwner owns the fields of those objects that a hub writes.
	fieldOwner = client.FieldOwner("shoal-hub")
)

// Apply makes the cluster's ModelReplica of that name have the spec, labels and annotations of replica, which is
// not changed, and its pull Secret the data of pull. A Secret that the ModelReplica named before, and none does
// now, is deleted. Where all of it is so already, nothing changes in the cluster.
//
// pull is of type kubernetes.io/dockerconfigjson and has the name in replica.Spec.PullSecret; its namespace does
// not matter, it goes to Shoal's own. Without pull, the Secret of that name is not looked at.
//
// The error is an *Error where the cluster cannot be used, refuses, lacks Shoal, or has such an object that is not
// this hub's (Foreign).
func (i *Inventory) Apply(ctx context.Context, cluster string, replica *shoalv1alpha1.ModelReplica, pull *corev1.Secret) error {
	if pull != nil && pull.Name != string(replica.Spec.PullSecret) {
		return fmt.Errorf("cluster %s: ModelReplica %s names the pull Secret %q, and that given is %q", cluster, replica.Name, replica.Spec.PullSecret, pull.Name)
	}
	return i.write(ctx, cluster, func(ctx context.Context, m *member) error {
		var was shoalv1alpha1.ModelReplica
		if err := m.own(ctx, client.ObjectKey{Name: replica.Name}, &was); err != nil {
			return err
		}
		if pull != nil {
			if err := m.applySecret(ctx, pull); err != nil {
				return err
			}
		}
		// Before the ModelReplica forgets its name: whatever fails now is found again by the next try.
		if old := string(was.Spec.PullSecret); old != string(replica.Spec.PullSecret) {
			if err := m.dropSecret(ctx, old, replica.Name); err != nil {
				return err
			}
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(replica)
		if err != nil {
			return fmt.Errorf("ModelReplica %s: %w", replica.Name, err)
		}
		return m.apply(ctx, &was, replica, map[string]any{
			"apiVersion": shoalv1alpha1.GroupVersion().String(), "kind": "ModelReplica", "spec": content["spec"],
		})
	})
}

// Remove deletes the cluster's ModelReplica of that name, and its pull Secret unless another ModelReplica of this
// hub uses it. It returns when the cluster has taken the order: the ModelReplica is gone when Replica finds none.
// Where there is none, or it is not this hub's, nothing is done. The error is as Apply's.
func (i *Inventory) Remove(ctx context.Context, cluster, replica string) error {
	return i.write(ctx, cluster, func(ctx context.Context, m *member) error {
		var was shoalv1alpha1.ModelReplica
		if err := m.own(ctx, client.ObjectKey{Name: replica}, &was); ReasonOf(err) == Foreign {
			return nil
		} else if err != nil {
			return err
		}
		if was.UID == "" {
			return nil
		}
		if err := m.dropSecret(ctx, string(was.Spec.PullSecret), replica); err != nil {
			return err
		}
		return m.delete(ctx, &was)
	})
}

// Replica returns the cluster's ModelReplica of that name as it was last heard of; the caller may change it. The
// error is apierrors.IsNotFound where there is none of this hub, and an *Error where the cluster cannot be used.
func (i *Inventory) Replica(ctx context.Context, cluster, name string) (*shoalv1alpha1.ModelReplica, error) {
	m, err := i.member(cluster)
	if err != nil {
		return nil, err
	}
	var r shoalv1alpha1.ModelReplica
	if err := m.cache.Get(ctx, client.ObjectKey{Name: name}, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// write lets one of Apply and Remove at a time into a cluster: which Secret is unused depends on all of them.
func (i *Inventory) write(ctx context.Context, cluster string, f func(context.Context, *member) error) error {
	m, err := i.member(cluster)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case m.writing <- struct{}{}:
		defer func() { <-m.writing }()
		return f(ctx, m)
	case <-ctx.Done():
		return fmt.Errorf("cluster %s: waited for its other changes: %w", cluster, ctx.Err())
	}
}

// own reads an object that this hub is about to write. Where there is none, it stays as it was. Another owner's
// is an *Error of reason Foreign. Two hubs that make one object within the same instant both succeed, and the
// second has it: that much the API leaves open.
func (m *member) own(ctx context.Context, key client.ObjectKey, o client.Object) error {
	what := kind(o) + " " + key.Name
	err := m.client.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return m.failed("read "+what, err)
	}
	switch owner := o.GetLabels()[HubLabel]; owner {
	case m.id:
		return nil
	case "":
		return problem(m.Name, Foreign, "%s is there and not made by a hub: delete it, or hand it over by the label %s=%s", what, HubLabel, m.id)
	default:
		return problem(m.Name, Foreign, "%s belongs to the hub %s: delete it there, or give the ModelDistribution another name or namespace", what, owner)
	}
}

// apply makes an object have what is in content and the labels and annotations of meta. was is what own found:
// if it was deleted since and made again by somebody, the API server refuses.
func (m *member) apply(ctx context.Context, was, meta client.Object, content map[string]any) error {
	o := &unstructured.Unstructured{Object: content}
	o.SetName(meta.GetName())
	o.SetAnnotations(meta.GetAnnotations())
	o.SetUID(was.GetUID())
	labels := map[string]string{HubLabel: m.id}
	for key, value := range meta.GetLabels() {
		if key != HubLabel {
			labels[key] = value
		}
	}
	o.SetLabels(labels)
	if o.GetKind() == "Secret" {
		o.SetNamespace(m.space)
	}
	if err := m.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), fieldOwner, client.ForceOwnership); err != nil {
		return m.failed("apply "+o.GetKind()+" "+o.GetName(), err)
	}
	return nil
}

func (m *member) applySecret(ctx context.Context, pull *corev1.Secret) error {
	var was corev1.Secret
	if err := m.own(ctx, client.ObjectKey{Namespace: m.space, Name: pull.Name}, &was); err != nil {
		return err
	}
	data := map[string][]byte{corev1.DockerConfigJsonKey: pull.Data[corev1.DockerConfigJsonKey]}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&corev1.Secret{Data: data})
	if err != nil {
		return errors.New("the pull Secret cannot be written") // the cause might quote it
	}
	return m.apply(ctx, &was, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: pull.Name}}, map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": string(corev1.SecretTypeDockerConfigJson), "data": content["data"],
	})
}

// dropSecret deletes a pull Secret of this hub unless a ModelReplica but that named uses it.
func (m *member) dropSecret(ctx context.Context, name, but string) error {
	if name == "" {
		return nil
	}
	var replicas shoalv1alpha1.ModelReplicaList // from the API server: what was just written may not have been heard of
	if err := m.client.List(ctx, &replicas, client.MatchingLabels{HubLabel: m.id}); err != nil {
		return m.failed("list ModelReplicas", err)
	}
	for _, r := range replicas.Items {
		if r.Name != but && string(r.Spec.PullSecret) == name {
			return nil
		}
	}
	var was corev1.Secret
	if err := m.own(ctx, client.ObjectKey{Namespace: m.space, Name: name}, &was); ReasonOf(err) == Foreign {
		return nil
	} else if err != nil {
		return err
	}
	return m.delete(ctx, &was)
}

// delete deletes the object that own found, and no other of its name.
func (m *member) delete(ctx context.Context, o client.Object) error {
	uid := o.GetUID()
	if uid == "" {
		return nil
	}
	err := m.client.Delete(ctx, o, client.Preconditions{UID: &uid}, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if err != nil && !apierrors.IsNotFound(err) {
		return m.failed("delete "+kind(o)+" "+o.GetName(), err)
	}
	return nil
}

func kind(o client.Object) string {
	if _, ok := o.(*corev1.Secret); ok {
		return "Secret"
	}
	return "ModelReplica"
}
