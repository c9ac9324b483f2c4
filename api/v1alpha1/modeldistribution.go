package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// What would change the bytes is immutable once status.digest is set: one rule for the names, one for the
// patterns, and one a kind of source, which must stay the kind that it was. They stand at the root because
// status can be seen from nowhere else, and are this long because equality of optional values, unlike that of
// bounded strings, is beyond the cost that an API server allows.
//
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || self.spec.modelName == oldSelf.spec.modelName && self.spec.modelVersion == oldSelf.spec.modelVersion`,message="the model is packaged under this modelName and modelVersion, and they cannot change: create another ModelDistribution"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.include) == has(oldSelf.spec.modelSource.include) && (!has(self.spec.modelSource.include) || self.spec.modelSource.include == oldSelf.spec.modelSource.include) && has(self.spec.modelSource.exclude) == has(oldSelf.spec.modelSource.exclude) && (!has(self.spec.modelSource.exclude) || self.spec.modelSource.exclude == oldSelf.spec.modelSource.exclude)`,message="the model is packaged, and what it was read from cannot change: create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.oss) == has(oldSelf.spec.modelSource.oss) && (!has(self.spec.modelSource.oss) || self.spec.modelSource.oss.bucket == oldSelf.spec.modelSource.oss.bucket && has(self.spec.modelSource.oss.path) == has(oldSelf.spec.modelSource.oss.path) && (!has(self.spec.modelSource.oss.path) || self.spec.modelSource.oss.path == oldSelf.spec.modelSource.oss.path))`,message="the model is packaged, and what it was read from cannot change (secret and endpoint may): create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.modelScope) == has(oldSelf.spec.modelSource.modelScope) && (!has(self.spec.modelSource.modelScope) || self.spec.modelSource.modelScope.model == oldSelf.spec.modelSource.modelScope.model && has(self.spec.modelSource.modelScope.revision) == has(oldSelf.spec.modelSource.modelScope.revision) && (!has(self.spec.modelSource.modelScope.revision) || self.spec.modelSource.modelScope.revision == oldSelf.spec.modelSource.modelScope.revision))`,message="the model is packaged, and what it was read from cannot change (secret and endpoint may): create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.huggingFace) == has(oldSelf.spec.modelSource.huggingFace) && (!has(self.spec.modelSource.huggingFace) || self.spec.modelSource.huggingFace.model == oldSelf.spec.modelSource.huggingFace.model && has(self.spec.modelSource.huggingFace.revision) == has(oldSelf.spec.modelSource.huggingFace.revision) && (!has(self.spec.modelSource.huggingFace.revision) || self.spec.modelSource.huggingFace.revision == oldSelf.spec.modelSource.huggingFace.revision))`,message="the model is packaged, and what it was read from cannot change (secret and endpoint may): create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.s3) == has(oldSelf.spec.modelSource.s3) && (!has(self.spec.modelSource.s3) || self.spec.modelSource.s3.bucket == oldSelf.spec.modelSource.s3.bucket && has(self.spec.modelSource.s3.prefix) == has(oldSelf.spec.modelSource.s3.prefix) && (!has(self.spec.modelSource.s3.prefix) || self.spec.modelSource.s3.prefix == oldSelf.spec.modelSource.s3.prefix) && has(self.spec.modelSource.s3.endpoint) == has(oldSelf.spec.modelSource.s3.endpoint) && (!has(self.spec.modelSource.s3.endpoint) || self.spec.modelSource.s3.endpoint == oldSelf.spec.modelSource.s3.endpoint))`,message="the model is packaged, and what it was read from cannot change (secret may): create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.registry) == has(oldSelf.spec.modelSource.registry) && (!has(self.spec.modelSource.registry) || self.spec.modelSource.registry.reference == oldSelf.spec.modelSource.registry.reference)`,message="the model is packaged, and what it was read from cannot change (secret may): create another ModelDistribution with another modelVersion"
// +kubebuilder:validation:XValidation:rule=`!has(oldSelf.status) || !has(oldSelf.status.digest) || has(self.spec.modelSource.pvc) == has(oldSelf.spec.modelSource.pvc) && (!has(self.spec.modelSource.pvc) || self.spec.modelSource.pvc.claimName == oldSelf.spec.modelSource.pvc.claimName && has(self.spec.modelSource.pvc.path) == has(oldSelf.spec.modelSource.pvc.path) && (!has(self.spec.modelSource.pvc.path) || self.spec.modelSource.pvc.path == oldSelf.spec.modelSource.pvc.path))`,message="the model is packaged, and what it was read from cannot change: create another ModelDistribution with another modelVersion"

// ModelDistribution is one version of one model: where its files lie, and the registries and clusters
// that are to have it.
//
// The object's name becomes the PVC's, and part of label values.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=md
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.spec.modelName`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.modelVersion`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Packed",type=string,JSONPath=`.status.summary.packed`
// +kubebuilder:printcolumn:name="Registries",type=string,JSONPath=`.status.summary.registries`
// +kubebuilder:printcolumn:name="Clusters",type=string,JSONPath=`.status.summary.clusters`
// +kubebuilder:printcolumn:name="Warm",type=string,JSONPath=`.status.summary.warm`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule=`self.metadata.name.size() <= 63`,message="metadata.name becomes the name of the PVC and a label: use at most 63 characters"
type ModelDistribution struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What is wanted.
	Spec ModelDistributionSpec `json:"spec"`
	// How far it is. Written by the controller.
	// +optional
	Status ModelDistributionStatus `json:"status,omitzero"`
}

// ModelDistributionList is what a list of them is.
//
// +kubebuilder:object:root=true
type ModelDistributionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ModelDistribution `json:"items"`
}

// ModelDistributionSpec is what a user wants. Once the model is packaged (status.digest), what would change
// its bytes cannot be changed: modelName, modelVersion, and modelSource but for its secrets and endpoints.
type ModelDistributionSpec struct {
	// The model's name; it becomes the last part of the repository in every registry.
	ModelName ModelName `json:"modelName"`
	// The model's version; it becomes the image's tag. Quote it: "1.0" is text, 1.0 a number.
	ModelVersion ModelVersion `json:"modelVersion"`
	// Where the model's files come from.
	ModelSource ModelSource `json:"modelSource"`
	// Which registries and clusters get it.
	Targets Targets `json:"targets"`
	// Ours. Nothing new is begun while it is true; what is there stays, and is served.
	// +optional
	Paused bool `json:"paused,omitempty"`
	// Ours. What becomes of the images when this object is deleted. Volumes and the nodes' copies always go.
	// +optional
	// +kubebuilder:default=Retain
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// ModelName is one component of an OCI repository's name.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=64
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*$')`,message="modelName becomes part of an image's name: use lower-case letters and digits, joined by '.', '_' or '-', for example qwen3-8b"
type ModelName string

// ModelVersion is an OCI tag, short enough that the tag of the ModelPack manifest (package model's
// ModelPackSuffix, 10 bytes) fits into a tag's 128 bytes too.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=118
// +kubebuilder:validation:XValidation:rule=`self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')`,message="modelVersion becomes an image's tag: use letters, digits, '_', '.' and '-', and begin with none of '.' and '-', for example v1"
// +kubebuilder:validation:XValidation:rule=`!self.endsWith('-modelpack') && !self.matches('^sha256-[0-9a-f]{64}$')`,message="tags that end in -modelpack, or are sha256- and a digest, are written beside each image: use another modelVersion"
type ModelVersion string

// DeletionPolicy says what becomes of the images in the registries.
//
// +kubebuilder:validation:Enum=Retain;Delete
type DeletionPolicy string

const (
	// DeletionRetain leaves the images where they are.
	DeletionRetain DeletionPolicy = "Retain"
	// DeletionDelete deletes the tags that were pushed for this object from every registry.
	DeletionDelete DeletionPolicy = "Delete"
)

// SecretName is the name of a Secret in the namespace of the object that names it.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="give the name of a Secret in this object's namespace: lower-case letters, digits, '-' and '.'"
type SecretName string
