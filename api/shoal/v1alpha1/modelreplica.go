package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// Conditions of a ModelReplica, in the order in which they become true. Each message says what to do where it
// is not.
const (
	// ConditionVolumesReady: Pods can mount the model in every namespace that is to have it.
	ConditionVolumesReady = "VolumesReady"
	// ConditionPreloaded: every node that is to hold the model does, at the tier that is wanted.
	ConditionPreloaded = "Preloaded"
	// ConditionReady: all of the others are true for this generation.
	ConditionReady = "Ready"
)

// ModelReplica is one version of one model, as one cluster is asked to hold it.
//
// Its name is NAMESPACE.NAME of the ModelDistribution on the hub: a namespace has no dot, so two of them never
// meet.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=mr
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.spec.modelName`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.modelVersion`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Warm",type=string,JSONPath=`.status.warm`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ModelReplica struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the hub asks of the cluster.
	Spec ModelReplicaSpec `json:"spec"`
	// How far the cluster is.
	// +optional
	Status ModelReplicaStatus `json:"status,omitzero"`
}

// ModelReplicaList is what a list of them is.
//
// +kubebuilder:object:root=true
type ModelReplicaList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ModelReplica `json:"items"`
}

// ModelReplicaSpec is what a cluster is asked to hold. The bytes of a replica never change: another digest is
// another replica.
//
// +kubebuilder:validation:XValidation:rule=`self.modelName == oldSelf.modelName && self.modelVersion == oldSelf.modelVersion && self.claimName == oldSelf.claimName && self.reference.split('@')[1] == oldSelf.reference.split('@')[1]`,message="a replica is one image under one name: delete it and create one for the other modelName, modelVersion, claimName or digest"
type ModelReplicaSpec struct {
	// The model's name.
	ModelName v1alpha1.ModelName `json:"modelName"`
	// The model's version.
	ModelVersion v1alpha1.ModelVersion `json:"modelVersion"`
	// The image as this cluster pulls it: host/repository@sha256:digest. The registry may change, the
	// digest not.
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9.-]+|[[][0-9A-Fa-f:]+[]])(:[0-9]{1,5})?(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+@sha256:[0-9a-f]{64}$')`,message="give the image by its digest, and without a tag: host/repository@sha256:digest"
	Reference string `json:"reference"`
	// The image's size in bytes; it becomes the volume's capacity.
	// +kubebuilder:validation:Minimum=0
	Bytes int64 `json:"bytes"`
	// The Secret (kubernetes.io/dockerconfigjson) in Shoal's own namespace by which the cluster pulls.
	// Without it: anonymously.
	// +optional
	PullSecret v1alpha1.SecretName `json:"pullSecret,omitempty"`
	// How Pods mount it.
	Volume v1alpha1.VolumeKind `json:"volume"`
	// The name of the PVC in each of the namespaces: that of the ModelDistribution.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="give the name of the PVC: lower-case letters, digits, '-' and '.'"
	ClaimName string `json:"claimName"`
	// The namespaces that get a PVC: that of the ModelDistribution, and targets.clusters.namespaces.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=65
	Namespaces []v1alpha1.NamespaceName `json:"namespaces"`
	// Which nodes get it before a Pod asks. Without it: none.
	// +optional
	PreloadConfig *v1alpha1.PreloadConfig `json:"preloadConfig,omitempty"`
	// Nothing new is begun while it is true; what is there stays, and is served.
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// ModelReplicaStatus is how far a cluster is. Its zero value is: nobody has looked yet.
type ModelReplicaStatus struct {
	// The generation of the spec that all of this is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// How many nodes hold the model.
	// +optional
	Nodes v1alpha1.NodesStatus `json:"nodes,omitzero"`
	// Nodes that hold the model at the wanted tier, of all that are to, for example 12/12.
	// +optional
	Warm string `json:"warm,omitempty"`
	// VolumesReady, Preloaded and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
