package v1alpha1

// ModelSource is where a model's files come from: exactly one place, and which of its files.
//
// +kubebuilder:validation:XValidation:rule=`[has(self.oss), has(self.modelScope), has(self.huggingFace), has(self.s3), has(self.registry), has(self.pvc)].filter(given, given).size() == 1`,message="give exactly one source: oss, modelScope, huggingFace, s3, registry or pvc"
// +kubebuilder:validation:XValidation:rule=`!has(self.registry) || !has(self.include) && !has(self.exclude)`,message="an image is copied as it is: remove include and exclude, or take the files from another source"
type ModelSource struct {
	// A folder of an Alibaba Cloud OSS bucket.
	// +optional
	OSS *OSSSource `json:"oss,omitempty"`
	// Ours. A model of ModelScope.
	// +optional
	ModelScope *ModelScopeSource `json:"modelScope,omitempty"`
	// Ours. A model of Hugging Face.
	// +optional
	HuggingFace *HuggingFaceSource `json:"huggingFace,omitempty"`
	// Ours. A folder of a bucket of S3 or of a store that speaks it.
	// +optional
	S3 *S3Source `json:"s3,omitempty"`
	// Ours. A model that is an image already.
	// +optional
	Registry *RegistrySource `json:"registry,omitempty"`
	// Ours. A folder of a volume.
	// +optional
	PVC *PVCSource `json:"pvc,omitempty"`

	// Ours. Only files that match one of these are taken; all, if there are none. A pattern without '/' is
	// compared with the file's name, in whatever folder it is; one with '/' with the whole path from the
	// source's folder on. '*' stands for anything but '/', '**' for anything, '?' for one character but '/'.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Include []Glob `json:"include,omitempty"`
	// Ours. Files that match one of these are left out, whatever include says.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Exclude []Glob `json:"exclude,omitempty"`
}

// OSSSource is a folder of an OSS bucket.
type OSSSource struct {
	// The bucket's region, for example cn-hangzhou. Requests are signed for it.
	Region Region `json:"region"`
	// The bucket's name.
	Bucket Bucket `json:"bucket"`
	// Where OSS is reached, for example oss-cn-hangzhou-internal.aliyuncs.com. HTTPS, unless it begins with
	// http://. Without it: oss-REGION.aliyuncs.com.
	// +optional
	Endpoint Endpoint `json:"endpoint,omitempty"`
	// The folder inside the bucket; a '/' at either end means nothing. Without it: the whole bucket.
	// +optional
	Path Path `json:"path,omitempty"`
	// The Secret with the access key. Its keys are akId and akSecret, or any other convention of
	// docs/modeldistribution.md. Without it the bucket is read as anybody may.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
}

// ModelScopeSource is a model of ModelScope.
type ModelScopeSource struct {
	// The model, as owner/name.
	// +kubebuilder:validation:XValidation:rule=`self.contains('/')`,message="give the model as owner/name, for example Qwen/Qwen3-8B"
	Model HubModel `json:"model"`
	// A branch, tag or commit. It is resolved to a commit once, which status.revision shows.
	// +optional
	// +kubebuilder:default=master
	Revision Revision `json:"revision,omitempty"`
	// Where the hub is reached. Without it: https://modelscope.cn.
	// +optional
	Endpoint Endpoint `json:"endpoint,omitempty"`
	// The Secret with the access token, under the key token. Without it: public models.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
}

// HuggingFaceSource is a model of Hugging Face.
type HuggingFaceSource struct {
	// The model, as owner/name.
	Model HubModel `json:"model"`
	// A branch, tag or commit. It is resolved to a commit once, which status.revision shows.
	// +optional
	// +kubebuilder:default=main
	Revision Revision `json:"revision,omitempty"`
	// Where the hub, or a mirror of it, is reached. Without it: https://huggingface.co.
	// +optional
	Endpoint Endpoint `json:"endpoint,omitempty"`
	// The Secret with the access token, under the key token. Without it: public models.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
}

// S3Source is a folder of a bucket of S3 or of a store that speaks it.
type S3Source struct {
	// The bucket's region, for example us-east-1. Requests are signed for it.
	Region Region `json:"region"`
	// The bucket's name.
	Bucket Bucket `json:"bucket"`
	// Where the store is reached. HTTPS, unless it begins with http://. Without it: Amazon's endpoint of the
	// region.
	// +optional
	Endpoint Endpoint `json:"endpoint,omitempty"`
	// The folder inside the bucket; a '/' at either end means nothing. Without it: the whole bucket.
	// +optional
	Prefix Path `json:"prefix,omitempty"`
	// The Secret with the access key: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_SESSION_TOKEN where
	// there is one. Without it the bucket is read as anybody may.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
}

// RegistrySource is a model that is an image already, pushed by Shoal or by others. It is copied as it is.
type RegistrySource struct {
	// The image, as host/repository:tag or host/repository@digest. A tag is resolved once, which
	// status.revision shows.
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9.-]+|[[][0-9A-Fa-f:]+[]])(:[0-9]{1,5})?(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$') && self.matches('(/[^/]*:|@)')`,message="give the image with its registry and a tag or digest, without https://, for example registry.example.com/models/qwen3-8b:v1"
	Reference string `json:"reference"`
	// The Secret (kubernetes.io/dockerconfigjson) by which it is pulled. Without it: anonymously.
	// +optional
	Secret SecretName `json:"secret,omitempty"`
	// Whether the registry's certificate is not checked, and plain HTTP is spoken where it has no TLS.
	// +optional
	Insecure bool `json:"insecure,omitempty"`
}

// PVCSource is a folder of a volume in the object's namespace.
type PVCSource struct {
	// The claim's name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="give the name of a PersistentVolumeClaim in this object's namespace: lower-case letters, digits, '-' and '.'"
	ClaimName string `json:"claimName"`
	// The folder inside the volume; a '/' at either end means nothing. Without it: the whole volume.
	// +optional
	Path Path `json:"path,omitempty"`
}

// Region is a cloud's name for a region.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')`,message="give a region as its cloud writes it, for example cn-hangzhou"
type Region string

// Bucket is the name of a bucket.
//
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:XValidation:rule=`self.matches('^[a-z0-9][a-z0-9.-]+[a-z0-9]$')`,message="give the bucket's name alone (3 to 63 lower-case letters, digits, '-' and '.'), without oss:// or s3://, endpoint or folder"
type Bucket string

// Endpoint is a host, maybe with a port, maybe with a scheme before it and a path behind it. Credentials
// have no place in it.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=255
// +kubebuilder:validation:XValidation:rule=`self.matches('^(https?://)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[[][0-9A-Fa-f:]+[]])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$')`,message="give the endpoint as a host or an http(s) URL, without user or query, for example oss-cn-hangzhou-internal.aliyuncs.com"
type Endpoint string

// Path is a folder inside a bucket or a volume.
//
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:XValidation:rule=`!self.contains('://') && !self.matches('(^|/)[.]{1,2}(/|$)') && !self.matches('[[:cntrl:]]')`,message="give the folder's path inside the bucket or volume, without scheme, '.' and '..', for example /qwen3-8b/v1"
type Path string

// Glob is a pattern of file names or, with a '/', of paths. What other tools give a meaning to, and we do
// not, is refused rather than taken literally.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=256
// +kubebuilder:validation:XValidation:rule=`!self.startsWith('/') && !self.matches('(^|/)[.]{1,2}(/|$)') && !self.matches(r'[][{}\\[:cntrl:]]')`,message="give a pattern of a file's name or of its path from the source's folder on, without a leading '/', '.', '..', brackets, braces and backslashes, for example *.safetensors"
type Glob string

// HubModel is a model's name on a hub: owner/name, or, for a few old ones of Hugging Face, a name alone.
//
// +kubebuilder:validation:MaxLength=192
// +kubebuilder:validation:XValidation:rule=`self.matches('^([A-Za-z0-9_][A-Za-z0-9._-]*/)?[A-Za-z0-9_][A-Za-z0-9._-]*$')`,message="give the model as owner/name, for example Qwen/Qwen3-8B, without the hub's address"
type HubModel string

// Revision is a branch, tag or commit.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:XValidation:rule=`self.matches('^[A-Za-z0-9_]([A-Za-z0-9._/-]*[A-Za-z0-9_])?$') && !self.contains('..')`,message="give a branch, tag or commit of the model, for example main"
type Revision string
