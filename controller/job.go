package controller

import (
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/shoal-project/shoal/api/v1alpha1"
)

// PackLabel is on everything that is made for a packing in a Job; its value is the UID of the ModelDistribution.
const PackLabel = "shoal.dev/pack"

const (
	// inputAnnotation of a Job is a digest of what is packed and where to: a Job with another one is another packing.
	inputAnnotation = "shoal.dev/pack-input"
	// attemptAnnotation of a Job has its jobTask.Attempt.
	attemptAnnotation = "shoal.dev/pack-attempt"
	// taskAnnotation of a Pod is its jobTask, which it reads as a file of a volume.
	taskAnnotation = "shoal.dev/pack-task"
)

// Keys of the ConfigMap; those of its binaryData are the state folder.
const (
	attemptKey = "attempt"
	reportKey  = "report"
)

// Where the Pod finds what it needs, and keeps what its next container goes on from.
const (
	taskMount    = "/task"
	secretsMount = "/secrets"
	stateMount   = "/state"
)

// packUser is a user and a group that own nothing in the image.
const packUser = 65532

// toldExit is the status with which `shoal pack-job` ends after it has told why it cannot go on.
const toldExit = 1

// JobConfig is how Jobs that pack look.
type JobConfig struct {
	// Image has the program shoal as its entrypoint.
	Image string
	// Resources of the container. Packing takes 16 MiB for each of the four layers under way, and a CPU for each
	// GB/s or so that is hashed.
	Resources corev1.ResourceRequirements
	// NodeSelector of the Pods; nil means any node.
	NodeSelector map[string]string
}

// jobTask is what a Job is told. It holds no secrets: those are mounted.
type jobTask struct {
	Namespace string `json:"namespace"`
	// ConfigMap is where it reports, and Attempt what it reports for.
	ConfigMap string `json:"configMap"`
	Attempt   string `json:"attempt,omitempty"`
	// Spec is the model, its source, and the one registry that it is packed into.
	Spec v1alpha1.ModelDistributionSpec `json:"spec"`
	// Previous are tags of other versions.
	Previous []string `json:"previous,omitempty"`
	// Reach is that of HubConfig.
	Reach map[string]string `json:"reach,omitempty"`
}

// packName is the name of everything that is made for the packing of md.
func packName(md *v1alpha1.ModelDistribution) string { return "shoal-pack-" + string(md.UID) }

// taskFor is the task of packing md into its registry number to.
func taskFor(md *v1alpha1.ModelDistribution, to int, previous []string, reach map[string]string) jobTask {
	return jobTask{
		Namespace: md.Namespace, ConfigMap: packName(md), Previous: previous, Reach: reach,
		Spec: v1alpha1.ModelDistributionSpec{
			ModelName: md.Spec.ModelName, ModelVersion: md.Spec.ModelVersion, ModelSource: md.Spec.ModelSource,
			Targets: v1alpha1.Targets{Registries: []v1alpha1.RegistryTarget{md.Spec.Targets.Registries[to]}},
		},
	}
}

// input tells tasks apart that are not the same packing. Earlier versions only make it cheaper.
func (t jobTask) input() string {
	t.Attempt, t.Previous = "", nil
	return digest.FromBytes(t.marshal()).String()
}

func (t jobTask) marshal() []byte {
	raw, err := json.Marshal(t)
	if err != nil { // it is nothing but strings, numbers, lists and maps
		panic(err)
	}
	return raw
}

// secrets are the names of the Secrets that the task needs, each once.
func (t jobTask) secrets() []string {
	names := []string{sourceSecret(&t.Spec.ModelSource)}
	for _, p := range places(&t.Spec) {
		names = append(names, p.secret)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}

// packMeta is of everything that is made for the packing of md. It is in md's namespace, because a Pod can mount only
// Secrets of its own: none is copied, and the Pod's rights end there too.
func packMeta(md *v1alpha1.ModelDistribution) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: packName(md), Namespace: md.Namespace, Labels: map[string]string{PackLabel: string(md.UID)},
		OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(md, v1alpha1.GroupVersion().WithKind("ModelDistribution"))},
	}
}

// packAccount are a service account and its only right: to read and change the one ConfigMap, which must exist.
func packAccount(md *v1alpha1.ModelDistribution) []client.Object {
	name := packName(md)
	return []client.Object{
		&corev1.ServiceAccount{ObjectMeta: packMeta(md), AutomountServiceAccountToken: new(false)},
		&rbacv1.Role{ObjectMeta: packMeta(md), Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{name}, Verbs: []string{"get", "update"}},
		}},
		&rbacv1.RoleBinding{
			ObjectMeta: packMeta(md),
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: md.Namespace, Name: name}},
		},
	}
}

// packJob is the Job of a task.
func packJob(md *v1alpha1.ModelDistribution, task jobTask, cfg JobConfig) *batchv1.Job {
	job := &batchv1.Job{ObjectMeta: packMeta(md)}
	job.Annotations = map[string]string{inputAnnotation: task.input(), attemptAnnotation: task.Attempt}
	pod := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{
		Labels: job.Labels, Annotations: map[string]string{taskAnnotation: string(task.marshal())},
	}}
	container := corev1.Container{
		Name: "pack", Image: cfg.Image, Resources: cfg.Resources,
		Args: []string{"pack-job", "--task", taskMount + "/task", "--secrets", secretsMount, "--state", stateMount},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	mount := func(name, path string, source corev1.VolumeSource) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: source})
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: path, ReadOnly: path != stateMount})
	}
	mount("task", taskMount, corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
		{Path: "task", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.annotations['" + taskAnnotation + "']"}},
	}}})
	mount("state", stateMount, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	for i, name := range task.secrets() { // a Secret's name may be longer than a volume's
		mount("secret-"+string(rune('a'+i)), secretsMount+"/"+name, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, DefaultMode: new(int32(0o440))}})
	}
	pod.Spec.Containers = []corev1.Container{container}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever // the failure policy wants it so
	pod.Spec.ServiceAccountName = job.Name
	pod.Spec.AutomountServiceAccountToken = new(true)
	pod.Spec.EnableServiceLinks = new(false)
	pod.Spec.NodeSelector = cfg.NodeSelector
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(packUser)), RunAsGroup: new(int64(packUser)), FSGroup: new(int64(packUser)),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	job.Spec = batchv1.JobSpec{
		// A Pod that dies without a word has the next one go on; a node that is drained or lost is nobody's failure; a
		// fault that was told is for the hub, which may choose another registry.
		BackoffLimit: new(int32(6)),
		PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
			{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				ContainerName: new(container.Name), Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{toldExit},
			}},
		}},
		// The hub removes a Job whose end it has seen; this is for one that it does not see.
		TTLSecondsAfterFinished: new(int32(24 * 3600)),
		Template:                pod,
	}
	return job
}
