package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	shoalv1alpha1 "github.com/shoal-project/shoal/api/shoal/v1alpha1"
	"github.com/shoal-project/shoal/api/v1alpha1"
)

const (
	// Driver is the CSI driver of Shoal's node agents.
	Driver = "csi.shoal.dev"
	// ReplicaLabel names the ModelReplica that a volume is of.
	ReplicaLabel = "shoal.dev/replica"
)

// volumes makes the volumes by which Pods mount r. The first error is about what a person has to mend, the second
// the API server's.
func (m *Member) volumes(ctx context.Context, r *shoalv1alpha1.ModelReplica) (wrong, err error) {
	switch r.Spec.Volume {
	case v1alpha1.VolumeImage:
		return nil, nil
	case v1alpha1.VolumeFluid:
		return fmt.Errorf("this version of Shoal makes no Fluid Datasets: set spec.targets.clusters.volume to %s or %s", v1alpha1.VolumeCSI, v1alpha1.VolumeImage), nil
	}
	for _, namespace := range r.Spec.Namespaces {
		if wrong, err := m.claim(ctx, r, string(namespace)); wrong != nil || err != nil {
			return wrong, err
		}
	}
	return nil, nil
}

// volumesWords says what Pods mount.
func volumesWords(r *shoalv1alpha1.ModelReplica) string {
	if r.Spec.Volume == v1alpha1.VolumeImage {
		return "Pods mount it as a volume of the image " + r.Spec.Reference
	}
	return fmt.Sprintf("Pods mount it by the PVC %s, in %s", r.Spec.ClaimName, count(len(r.Spec.Namespaces), "namespace", "namespaces"))
}

// claim makes the PV and the PVC of one namespace. They are bound to each other from the start: a claim that only names
// a class could be bound to an empty volume.
func (m *Member) claim(ctx context.Context, r *shoalv1alpha1.ModelReplica, namespace string) (wrong, err error) {
	pv, pvc := volumePair(r, namespace)
	for _, o := range []client.Object{pv, pvc} {
		if err := controllerutil.SetControllerReference(r, o, m.client.Scheme()); err != nil {
			return nil, err
		}
		err := m.client.Create(ctx, o)
		switch {
		case err == nil:
		case apierrors.IsAlreadyExists(err):
			if wrong, err := m.ours(ctx, r, o); wrong != nil || err != nil {
				return wrong, err
			}
		case apierrors.IsNotFound(err):
			return fmt.Errorf("this cluster has no namespace %s: create it", namespace), nil
		default:
			return nil, err
		}
	}
	return nil, nil
}

// ours tells of an object that has the name of one of r's and is somebody else's.
func (m *Member) ours(ctx context.Context, r *shoalv1alpha1.ModelReplica, o client.Object) (wrong, err error) {
	kind := "PersistentVolumeClaim"
	there := client.Object(&corev1.PersistentVolumeClaim{})
	if _, volume := o.(*corev1.PersistentVolume); volume {
		kind, there = "PersistentVolume", &corev1.PersistentVolume{}
	}
	// Not from a cache, which would hold every claim of the cluster.
	if err := m.live.Get(ctx, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, there); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if !metav1.IsControlledBy(there, r) {
		return fmt.Errorf("there is a %s %s already that is not of this model: delete it, or give the ModelDistribution another name", kind, client.ObjectKeyFromObject(o)), nil
	}
	return nil, nil
}

// volumePair is the PV and the PVC of r in a namespace.
func volumePair(r *shoalv1alpha1.ModelReplica, namespace string) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim) {
	name := r.Name + "." + namespace
	size := corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(max(r.Spec.Bytes, 1), resource.BinarySI)}
	access := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	none := "" // no class: nobody provisions or claims it
	label := map[string]string{ReplicaLabel: labelValue(r.Name)}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: label},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: access, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, StorageClassName: none,
			ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: namespace, Name: r.Spec.ClaimName},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: Driver, VolumeHandle: name, ReadOnly: true,
				VolumeAttributes: map[string]string{"replica": r.Name, "digest": digestOf(r)},
			}},
		},
	}
	pvc := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: r.Spec.ClaimName, Namespace: namespace, Labels: label},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: access, StorageClassName: &none, VolumeName: name, Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}
	return pv, pvc
}
