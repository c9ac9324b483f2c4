package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Targets are the registries and clusters that get the model.
type Targets struct {
	// The registries, at least one. The model is packed and pushed once; the others get copies.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:rule=`self.all(r, self.exists_one(o, has(o.registry) == has(r.registry) && (!has(o.registry) || o.registry == r.registry) && has(o.__namespace__) == has(r.__namespace__) && (!has(o.__namespace__) || o.__namespace__ == r.__namespace__) && has(o.repository) == has(r.repository) && (!has(o.repository) || o.repository == r.repository) && has(o.options.instanceName) == has(r.options.instanceName) && (!has(o.options.instanceName) || o.options.instanceName == r.options.instanceName) && (o.options.type == 'Generic' || has(o.options.region) == has(r.options.region) && (!has(o.options.region) || o.options.region == r.options.region))))`,message="two registries are the same place: remove one of them"
	Registries []RegistryTarget `json:"registries"`
	// The clusters. Without it the model ends in the registries.
	// +optional
	Clusters *ClusterTargets `json:"clusters,omitempty"`
}

// RegistryTarget is a repository of a registry. The image's reference is
//
//	ACR:     instanceName-registry[-vpc].region.cr.aliyuncs.com/namespace/modelName:modelVersion
//	Generic: registry/[namespace/]modelName:modelVersion
//
// and with repository in the place of namespace/modelName, where it is given.
//
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'ACR' || has(self.options.instanceName) && has(self.options.region)`,message="an ACR registry is found by its instance: give options.instanceName and options.region"
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'ACR' || has(self.secret) || has(self.options.instanceId)`,message="without a secret, ACR is asked for a temporary token of the instance: give options.instanceId or secret"
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'ACR' || has(self.__namespace__) || has(self.repository)`,message="ACR keeps repositories in namespaces: give namespace"
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'ACR' || !has(self.registry) && !(has(self.insecure) && self.insecure)`,message="an ACR registry's address follows from options.instanceName and options.region: remove registry and insecure, or set options.type to Generic"
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'Generic' || has(self.registry)`,message="a Generic registry is found by its host: give registry, for example registry.example.com:5000"
// +kubebuilder:validation:XValidation:rule=`self.options.type != 'Generic' || !has(self.options.instanceId) && !has(self.options.instanceName) && !(has(self.options.vpc) && self.options.vpc)`,message="options.instanceId, options.instanceName and options.vpc are for ACR: remove them, or set options.type to ACR"
// +kubebuilder:validation:XValidation:rule=`!has(self.__namespace__) || !has(self.repository)`,message="repository is the whole name, with its namespace: give namespace or repository"
type RegistryTarget struct {
	// The namespace (in Harbor: the project) of the repository namespace/modelName.
	// +optional
	Namespace RepositoryName `json:"namespace,omitempty"`
	// The Secret (kubernetes.io/dockerconfigjson) by which the image is pushed. Without it: for ACR a
	// temporary token by the controller's own identity, else anonymously.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
	// Ours. The host of a Generic registry, with its port if that is not 443.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[[][0-9A-Fa-f:]+[]])(:[0-9]{1,5})?$')`,message="give the registry's host and, if it is not 443, port, without https:// and namespace, for example registry.example.com:5000"
	Registry string `json:"registry,omitempty"`
	// Ours. The repository's whole name, in the place of namespace/modelName.
	// +optional
	Repository RepositoryName `json:"repository,omitempty"`
	// Ours. Whether the registry's certificate is not checked, and plain HTTP is spoken where it has no TLS.
	// +optional
	Insecure bool `json:"insecure,omitempty"`
	// What kind of registry it is, and where.
	Options RegistryOptions `json:"options"`
}

// RepositoryName is an OCI repository's name, or the beginning of one.
//
// +kubebuilder:validation:MaxLength=180
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)*$')`,message="namespace and repository are part of an image's name: use lower-case letters and digits, joined by '.', '_', '-' or '/', for example team/models"
type RepositoryName string

// RegistryOptions say what kind of registry it is, and where.
type RegistryOptions struct {
	// ACR, or (ours) Generic: any registry that speaks the OCI distribution API.
	Type RegistryType `json:"type"`
	// The ACR instance's id, for example cri-xxxxx. Temporary tokens are asked for by it.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule=`self.matches('^cri-[A-Za-z0-9]+$')`,message="give the instance's id as ACR shows it: cri- and letters or digits"
	InstanceID string `json:"instanceId,omitempty"`
	// The ACR instance's name, which its host begins with.
	// +optional
	// +kubebuilder:validation:MaxLength=50
	// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')`,message="give the instance's name as ACR shows it (lower-case letters, digits and '-'), without -registry and the domain"
	InstanceName string `json:"instanceName,omitempty"`
	// The registry's region. A cluster pulls from the registry of its own region, where there is one.
	// +optional
	Region Region `json:"region,omitempty"`
	// Ours. Whether the controller pushes to the ACR instance's VPC endpoint, and clusters pull from it.
	// +optional
	VPC bool `json:"vpc,omitempty"`
}

// RegistryType is a kind of registry.
//
// +kubebuilder:validation:Enum=ACR;Generic
type RegistryType string

const (
	// RegistryACR is an instance of ACR Enterprise Edition.
	RegistryACR RegistryType = "ACR"
	// RegistryGeneric is any registry that speaks the OCI distribution API.
	RegistryGeneric RegistryType = "Generic"
)

// ClusterTargets are the clusters that get the model, and in what form.
//
// +kubebuilder:validation:XValidation:rule=`[has(self.allClusters) && self.allClusters, has(self.names), has(self.selector)].filter(given, given).size() == 1`,message="say which clusters, in one way: allClusters: true, names, or selector"
type ClusterTargets struct {
	// Every cluster that the hub knows, also those that join later.
	// +optional
	AllClusters bool `json:"allClusters,omitempty"`
	// Ours. The clusters of these names.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=256
	Names []ClusterName `json:"names,omitempty"`
	// Ours. The clusters whose labels match, also those that join or are labelled later.
	// +optional
	// +kubebuilder:validation:XValidation:rule=`has(self.matchLabels) || has(self.matchExpressions)`,message="an empty selector would be every cluster: give matchLabels or matchExpressions, or use allClusters: true"
	// +kubebuilder:validation:XValidation:rule=`!has(self.matchExpressions) || self.matchExpressions.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && e.values.size() > 0 : e.operator in ['Exists', 'DoesNotExist'] && !has(e.values))`,message="a matchExpression is In or NotIn with values, or Exists or DoesNotExist without"
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// Ours. Further namespaces of each cluster that get a PVC, beside that of this object.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Namespaces []NamespaceName `json:"namespaces,omitempty"`
	// Ours. How Pods mount it.
	// +optional
	// +kubebuilder:default=CSI
	Volume VolumeKind `json:"volume,omitempty"`
	// Which nodes get it before a Pod asks. Without it: none, and the first Pod on a node waits for it.
	// +optional
	PreloadConfig *PreloadConfig `json:"preloadConfig,omitempty"`
}

// ClusterName is the name by which the hub knows a cluster.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=253
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="give a cluster's name as the hub shows it: lower-case letters, digits, '-' and '.'"
type ClusterName string

// NamespaceName is the name of a namespace.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')`,message="give a namespace's name: lower-case letters, digits and '-'"
type NamespaceName string

// VolumeKind is how Pods mount a model.
//
// +kubebuilder:validation:Enum=CSI;ImageVolume;Fluid
type VolumeKind string

const (
	// VolumeCSI is a PVC of Shoal's own CSI driver: one copy on a node's disk, shared by all its Pods.
	VolumeCSI VolumeKind = "CSI"
	// VolumeImage is no PVC: Pods name the image as a volume (Kubernetes 1.35, or its gate ImageVolume).
	VolumeImage VolumeKind = "ImageVolume"
	// VolumeFluid is a PVC of a Fluid Dataset, for clusters that have Fluid.
	VolumeFluid VolumeKind = "Fluid"
)

// PreloadConfig says which nodes of a cluster get the model before a Pod asks for it. The zero value is all
// nodes that run Shoal.
type PreloadConfig struct {
	// Labels that a node must have. Without it: every node that runs Shoal.
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	NodeSelector map[string]LabelValue `json:"nodeSelector,omitempty"`
	// Ours. Disk, or Memory: the files are also kept in the page cache as far as the node's memory allows.
	// +optional
	// +kubebuilder:default=Memory
	Tier Tier `json:"tier,omitempty"`
	// Ours. How many of the matching nodes of each cluster get it. Without it: all.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	Nodes *int32 `json:"nodes,omitempty"`
	// Ours. Models of higher priority arrive first, and are the last to lose their place.
	// +optional
	// +kubebuilder:validation:Minimum=-1000
	// +kubebuilder:validation:Maximum=1000
	Priority int32 `json:"priority,omitempty"`
}

// LabelValue is the value of a label.
//
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$')`,message="no node can have this label value: letters and digits, with '-', '_' and '.' between them"
type LabelValue string

// Tier is where a node holds a model.
//
// +kubebuilder:validation:Enum=Disk;Memory
type Tier string

const (
	// TierDisk is the node's disk.
	TierDisk Tier = "Disk"
	// TierMemory is the node's disk and its page cache.
	TierMemory Tier = "Memory"
)
