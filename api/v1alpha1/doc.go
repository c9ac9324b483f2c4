// Package v1alpha1 is what a user writes: ModelDistribution, of the group ack.alibabacloud.com. The fields
// of ACK One's own object keep their names and meaning; the others are ours, and each says so ("Ours").
// docs/modeldistribution.md explains all of them to a user; package api/shoal/v1alpha1 holds what a cluster
// is asked for.
//
// The API server checks everything that one object alone can show (rules in CEL, with a message that says
// what to do). That no other object has the same modelName and modelVersion with other bytes is the
// controller's to check.
//
// Deep copies and charts/shoal/crds are made by make generate.
//
// +kubebuilder:object:generate=true
// +groupName=ack.alibabacloud.com
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion returns the group and version of this package.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "ack.alibabacloud.com", Version: "v1alpha1"}
}

// AddToScheme makes the types of this package known to s. It never fails: the error is for
// runtime.NewSchemeBuilder.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &ModelDistribution{}, &ModelDistributionList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}
