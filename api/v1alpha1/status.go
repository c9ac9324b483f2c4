package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Conditions of a ModelDistribution, in the order in which they become true. Each message says what to do
// where it is not.
const (
	// ConditionSourceResolved: the source was found, and its revision cannot change any more.
	ConditionSourceResolved = "SourceResolved"
	// ConditionPackaged: the image is whole in one registry.
	ConditionPackaged = "Packaged"
	// ConditionSynced: every registry has the image.
	ConditionSynced = "Synced"
	// ConditionDistributed: every cluster has its ModelReplica, with volumes that Pods can mount.
	ConditionDistributed = "Distributed"
	// ConditionPreloaded: every node that is to hold the model does, at the tier that is wanted.
	ConditionPreloaded = "Preloaded"
	// ConditionReady: all of the others are true for this generation.
	ConditionReady = "Ready"
)

// ModelDistributionStatus is how far a ModelDistribution is. Its zero value is: nobody has looked yet.
type ModelDistributionStatus struct {
	// The generation of the spec that all of this is about.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// What is being done, in one word. Conditions say more.
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// What the source was resolved to: a hub's commit, the digest of an image, or one of the list of all files
	// with their sizes and checksums.
	// +optional
	Revision string `json:"revision,omitempty"`
	// The digest of the image's index, the same in every registry: sha256: and 64 hex digits. It is set once
	// the image is whole in one registry; from then on what would change it is immutable in the spec.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Digest string `json:"digest,omitempty"`
	// The image's size in bytes: all blobs that a registry holds of it.
	// +optional
	Bytes int64 `json:"bytes,omitempty"`
	// How far the packing is.
	// +optional
	Packing *PackingStatus `json:"packing,omitempty"`
	// The registries, as the spec lists them.
	// +optional
	// +listType=map
	// +listMapKey=reference
	Registries []RegistryStatus `json:"registries,omitempty"`
	// The clusters, by name; also one that should lose the model and cannot be reached.
	// +optional
	// +listType=map
	// +listMapKey=name
	Clusters []ClusterStatus `json:"clusters,omitempty"`
	// All of it in a few words.
	// +optional
	Summary Summary `json:"summary,omitzero"`
	// SourceResolved, Packaged, Synced, Distributed, Preloaded and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Phase is what is being done. It says nothing that the conditions do not.
//
// +kubebuilder:validation:Enum=Pending;Packing;Syncing;Distributing;Preloading;Ready;Failed;Paused;Deleting
type Phase string

const (
	// PhasePending: the source is not resolved yet.
	PhasePending Phase = "Pending"
	// PhasePacking: the source is read and pushed to the first registry.
	PhasePacking Phase = "Packing"
	// PhaseSyncing: some registry lacks the image still.
	PhaseSyncing Phase = "Syncing"
	// PhaseDistributing: some cluster has no volumes yet.
	PhaseDistributing Phase = "Distributing"
	// PhasePreloading: some node lacks the model still.
	PhasePreloading Phase = "Preloading"
	// PhaseReady: all is as the spec wants it.
	PhaseReady Phase = "Ready"
	// PhaseFailed: something has to be mended first; the conditions say what.
	PhaseFailed Phase = "Failed"
	// PhasePaused: spec.paused is true.
	PhasePaused Phase = "Paused"
	// PhaseDeleting: replicas, and images if so wanted, are being removed.
	PhaseDeleting Phase = "Deleting"
)

// PackingStatus is how far the packing is: DoneBytes + ReusedBytes of TotalBytes, all of them bytes of the
// model's files.
type PackingStatus struct {
	// All files together.
	// +optional
	TotalBytes int64 `json:"totalBytes,omitempty"`
	// Read, packed and pushed.
	// +optional
	DoneBytes int64 `json:"doneBytes,omitempty"`
	// In layers of an earlier version: neither read nor sent.
	// +optional
	ReusedBytes int64 `json:"reusedBytes,omitempty"`
	// Bytes a second, lately; 0 when nothing moves.
	// +optional
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
}

// RegistryStatus is how far one registry is.
type RegistryStatus struct {
	// The image there, as host/repository:tag.
	Reference string `json:"reference"`
	// The digest that the tag has there: sha256: and 64 hex digits.
	// +optional
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Digest string `json:"digest,omitempty"`
	// How many of status.bytes it has.
	// +optional
	Bytes int64 `json:"bytes,omitempty"`
	// How far it is, in one word.
	State RegistryState `json:"state"`
	// What holds it back, and what to do.
	// +optional
	Message string `json:"message,omitempty"`
}

// RegistryState is how far one registry is.
//
// +kubebuilder:validation:Enum=Pending;Pushing;Copying;Synced;Failed
type RegistryState string

const (
	// RegistryPending: nothing was sent to it yet.
	RegistryPending RegistryState = "Pending"
	// RegistryPushing: the packed layers are pushed to it.
	RegistryPushing RegistryState = "Pushing"
	// RegistryCopying: it gets what it lacks from another registry.
	RegistryCopying RegistryState = "Copying"
	// RegistrySynced: it has the image and what refers to it.
	RegistrySynced RegistryState = "Synced"
	// RegistryFailed: it is tried again; the message says what is wrong.
	RegistryFailed RegistryState = "Failed"
)

// ClusterStatus is how far one cluster is.
type ClusterStatus struct {
	// The name by which the hub knows the cluster.
	Name string `json:"name"`
	// The name of the ModelReplica in the cluster; empty until it was made.
	// +optional
	Replica string `json:"replica,omitempty"`
	// The image that the cluster pulls, as host/repository@digest.
	// +optional
	Reference string `json:"reference,omitempty"`
	// Whether Pods can use it there.
	// +optional
	Ready bool `json:"ready,omitempty"`
	// What holds it back, and what to do.
	// +optional
	Message string `json:"message,omitempty"`
	// How many of its nodes hold the model.
	// +optional
	Nodes NodesStatus `json:"nodes,omitzero"`
}

// NodesStatus counts the nodes of one cluster that are to hold the model.
type NodesStatus struct {
	// That are to hold it.
	// +optional
	Wanted int32 `json:"wanted,omitempty"`
	// That have all of it on disk, verified.
	// +optional
	OnDisk int32 `json:"onDisk,omitempty"`
	// That have all of it in the page cache too, as measured.
	// +optional
	InMemory int32 `json:"inMemory,omitempty"`
	// That cannot get on without help.
	// +optional
	Failed int32 `json:"failed,omitempty"`
	// Why, for the first 16 of them.
	// +optional
	// +listType=map
	// +listMapKey=node
	// +kubebuilder:validation:MaxItems=16
	Failures []NodeFailure `json:"failures,omitempty"`
}

// NodeFailure is why a node does not get on.
type NodeFailure struct {
	// The node's name.
	Node string `json:"node"`
	// Why, in one CamelCase word, for example DiskFull.
	Reason string `json:"reason"`
	// What happened, and what to do.
	// +optional
	Message string `json:"message,omitempty"`
}

// Summary is what kubectl get shows.
type Summary struct {
	// How much of the model is packed, for example 61%.
	// +optional
	Packed string `json:"packed,omitempty"`
	// Registries that are synced, of all, for example 2/2.
	// +optional
	Registries string `json:"registries,omitempty"`
	// Clusters that are ready, of all, for example 3/3.
	// +optional
	Clusters string `json:"clusters,omitempty"`
	// Nodes that hold the model at the wanted tier, of all that are to, for example 12/12.
	// +optional
	Warm string `json:"warm,omitempty"`
}
