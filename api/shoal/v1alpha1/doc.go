// Package v1alpha1 is what a cluster is asked for: ModelReplica, of the group shoal.dev. The controller on
// the hub writes its spec into each cluster that a ModelDistribution (package api/v1alpha1) chooses; the
// controller in that cluster writes its status. Users only read it.
//
// Deep copies and charts/shoal/crds are made by make generate.
//
// +kubebuilder:object:generate=true
// +groupName=shoal.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion returns the group and version of this package.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "shoal.dev", Version: "v1alpha1"}
}

// AddToScheme makes the types of this package known to s. It never fails: the error is for
// runtime.NewSchemeBuilder.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &ModelReplica{}, &ModelReplicaList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
