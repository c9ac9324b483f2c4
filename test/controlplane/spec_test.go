package controlplane

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// specsAreJudged: a change of the sample is accepted, or refused with a message that says what to do.
func specsAreJudged(t *testing.T, s *server) {
	long := strings.Repeat("a", 600)
	source := func(other string) string { return "spec: {modelSource: {oss: null, " + other + "}}" }
	registry := func(r string) string { return "spec: {targets: {registries: [" + r + "]}}" }
	acr := func(fields, options string) string {
		return registry("{" + fields + ", options: {type: ACR, " + options + "}}")
	}
	clusters := func(c string) string { return "spec: {targets: {clusters: {allClusters: null, " + c + "}}}" }
	judge(t, s.distributions(), sampleName, []change{
		// Names.
		{"dots in the name", `spec: {modelName: qwen2.5-7b}`, ""},
		{"a name in capitals", `spec: {modelName: Qwen3-8B}`, "modelName becomes part of an image's name"},
		{"a name with an owner", `spec: {modelName: qwen/qwen3-8b}`, "modelName becomes part of an image's name"},
		{"a name that climbs", `spec: {modelName: ..}`, "modelName becomes part of an image's name"},
		{"a name with a line break", `spec: {modelName: "a\nb"}`, "modelName becomes part of an image's name"},
		{"no name", `spec: {modelName: ""}`, "spec.modelName"},
		{"a long name", `spec: {modelName: ` + long + `}`, "may not be more than 64"},
		{"a version in capitals", `spec: {modelVersion: V1.0_rc}`, ""},
		{"a version that is a number", `spec: {modelVersion: 1.0}`, "must be of type string"},
		{"a version with a slash", `spec: {modelVersion: a/b}`, "use letters, digits, '_', '.' and '-'"},
		{"a version that is an option", `spec: {modelVersion: -v1}`, "begin with none of '.' and '-'"},
		{"the tag of a ModelPack manifest", `spec: {modelVersion: v1-modelpack}`, "use another modelVersion"},
		{"the tag of referrers", `spec: {modelVersion: sha256-` + digest[len("sha256:"):] + `}`, "use another modelVersion"},
		{"a long version", `spec: {modelVersion: ` + long + `}`, "may not be more than 118"},
		{"an unknown field", `spec: {modelname: x}`, `unknown field "spec.modelname"`},
		{"an unknown policy", `spec: {deletionPolicy: Remove}`, `supported values: "Retain", "Delete"`},

		// Sources.
		{"no source", `spec: {modelSource: {oss: null}}`, "give exactly one source"},
		{"two sources", `spec: {modelSource: {pvc: {claimName: a}}}`, "give exactly one source"},
		{"two sources and no OSS", source(`pvc: {claimName: a}, modelScope: {model: a/b}`), "give exactly one source"},
		{"OSS without a bucket", `spec: {modelSource: {oss: {bucket: null}}}`, "spec.modelSource.oss.bucket: Required value"},
		{"OSS without a region", `spec: {modelSource: {oss: {region: null}}}`, "spec.modelSource.oss.region: Required value"},
		{"OSS, a region with a space", `spec: {modelSource: {oss: {region: "cn hangzhou"}}}`, "give a region as its cloud writes it"},
		{"OSS, the least", `spec: {modelSource: {oss: {endpoint: null, path: null, secret: null}}}`, ""},
		{"OSS, a bucket's URL", `spec: {modelSource: {oss: {bucket: "oss://models-poc"}}}`, "give the bucket's name alone"},
		{"OSS, a folder's URL", `spec: {modelSource: {oss: {path: "oss://models-poc/a"}}}`, "give the folder's path inside the bucket"},
		{"OSS, a path that climbs", `spec: {modelSource: {oss: {path: /a/../b}}}`, "without scheme, '.' and '..'"},
		{"OSS, a path with a line break", `spec: {modelSource: {oss: {path: "a\nb"}}}`, "give the folder's path"},
		{"OSS, a path with dots in names", `spec: {modelSource: {oss: {path: /qwen2.5/..v1/模型}}}`, ""},
		{"OSS, an endpoint with a scheme", `spec: {modelSource: {oss: {endpoint: "http://127.0.0.1:9000"}}}`, ""},
		{"OSS, an endpoint with a password", `spec: {modelSource: {oss: {endpoint: "https://a:b@example.com"}}}`, "without user or query"},
		{"OSS, a strange scheme", `spec: {modelSource: {oss: {endpoint: "oss://example.com"}}}`, "a host or an http(s) URL"},
		{"OSS, a secret of another namespace", `spec: {modelSource: {oss: {secret: other/access}}}`, "a Secret in this object's namespace"},
		{"a long path", `spec: {modelSource: {oss: {path: ` + long + `}}}`, "may not be more than 512"},
		{"ModelScope", source(`modelScope: {model: Qwen/Qwen3-8B, revision: v1.0, secret: token, endpoint: "https://www.modelscope.ai"}`), ""},
		{"ModelScope without an owner", source(`modelScope: {model: qwen}`), "as owner/name"},
		{"Hugging Face", source(`huggingFace: {model: Qwen/Qwen3-8B, revision: refs/pr/1, endpoint: "https://proxy.example.com/hf"}`), ""},
		{"Hugging Face without an owner", source(`huggingFace: {model: gpt2}`), ""},
		{"Hugging Face, a URL", source(`huggingFace: {model: "https://huggingface.co/Qwen/Qwen3-8B"}`), "without the hub's address"},
		{"Hugging Face, a revision that climbs", source(`huggingFace: {model: a/b, revision: a/../b}`), "give a branch, tag or commit"},
		{"S3", source(`s3: {region: us-east-1, bucket: my.models, prefix: qwen3, endpoint: "minio.example.com:9000", secret: access}`), ""},
		{"S3, a bucket's URL", source(`s3: {region: us-east-1, bucket: "s3://models"}`), "give the bucket's name alone"},
		{"an image with a tag", source(`registry: {reference: "registry.example.com:5000/models/qwen3-8b:v1", secret: pull, insecure: true}`), ""},
		{"an image with a digest", source(`registry: {reference: "[::1]:5000/qwen3-8b@` + digest + `"}`), ""},
		{"an image without tag and digest", source(`registry: {reference: "registry.example.com:5000/models/qwen3-8b"}`), "give the image with its registry and a tag or digest"},
		{"an image with a scheme", source(`registry: {reference: "https://registry.example.com/qwen3-8b:v1"}`), "without https://"},
		{"some files of an image", source(`registry: {reference: "registry.example.com/qwen3-8b:v1"}, include: ["*.json"]`), "an image is copied as it is"},
		{"a volume", source(`pvc: {claimName: models, path: qwen3}`), ""},
		{"a volume of another namespace", source(`pvc: {claimName: other/models}`), "give the name of a PersistentVolumeClaim"},
		{"a volume's path that climbs", source(`pvc: {claimName: models, path: ../other}`), "without scheme, '.' and '..'"},
		{"patterns", `spec: {modelSource: {include: ["*.safetensors", "tokenizer/**", "model-0000?.json", 权重*], exclude: [original/*]}}`, ""},
		{"a pattern from the root", `spec: {modelSource: {exclude: [/original/*]}}`, "without a leading '/'"},
		{"a pattern that climbs", `spec: {modelSource: {include: ["a/../*"]}}`, "without a leading '/', '.', '..', brackets"},
		{"a pattern with a class", `spec: {modelSource: {include: ["[a-z].json"]}}`, "brackets, braces and backslashes"},
		{"a pattern with braces", `spec: {modelSource: {include: ["*.{json,txt}"]}}`, "brackets, braces"},
		{"a pattern with a backslash", `spec: {modelSource: {include: ['a\*']}}`, "brackets, braces"},
		{"no pattern", `spec: {modelSource: {include: []}}`, "should have at least 1 items"},
		{"too many patterns", `spec: {modelSource: {include: [` + strings.Repeat("a,", 33) + `]}}`, "must have at most 32 items"},

		// Registries.
		{"no registry", registry(``), "should have at least 1 items"},
		{"no targets", `spec: {targets: null}`, "spec.targets: Required value"},
		{"too many registries", registry(strings.Repeat(`{registry: a, options: {type: Generic}},`, 17)), "must have at most 16 items"},
		{"the same registry twice", registry(strings.Repeat(`{registry: a, options: {type: Generic}},`, 2)), "two registries are the same place"},
		{"the same registry in two regions", registry(`{registry: a, options: {type: Generic, region: x}}, {registry: a, options: {type: Generic, region: z}}`), "two registries are the same place"},
		{"the same instance by two ways", acr(`namespace: a`, `instanceId: cri-a, instanceName: m, region: x}}, {namespace: a, options: {type: ACR, instanceId: cri-a, instanceName: m, region: x, vpc: true`), "two registries are the same place"},
		{"two repositories of one registry", registry(`{registry: a, namespace: x, options: {type: Generic}}, {registry: a, namespace: "y", options: {type: Generic}}`), ""},
		{"no options", registry(`{namespace: a}`), "options: Required value"},
		{"no type", registry(`{namespace: a, options: {region: cn-hangzhou}}`), "options.type: Required value"},
		{"an unknown type", registry(`{namespace: a, options: {type: Harbor}}`), `supported values: "ACR", "Generic"`},
		{"ACR by VPC", acr(`namespace: a, secret: s`, `instanceName: m, region: cn-hangzhou, vpc: true`), ""},
		{"ACR with a whole repository", acr(`repository: a/b, secret: s`, `instanceName: m, region: cn-hangzhou`), ""},
		{"ACR without a name", acr(`namespace: a`, `instanceId: cri-a, region: cn-hangzhou`), "give options.instanceName and options.region"},
		{"ACR without a region", acr(`namespace: a`, `instanceId: cri-a, instanceName: m`), "give options.instanceName and options.region"},
		{"ACR without id and secret", acr(`namespace: a`, `instanceName: m, region: cn-hangzhou`), "give options.instanceId or secret"},
		{"ACR without a namespace", acr(`secret: s`, `instanceName: m, region: cn-hangzhou`), "give namespace"},
		{"ACR with a host", acr(`namespace: a, secret: s, registry: a.example.com`, `instanceName: m, region: cn-hangzhou`), "remove registry and insecure"},
		{"ACR, not checked", acr(`namespace: a, secret: s, insecure: true`, `instanceName: m, region: cn-hangzhou`), "remove registry and insecure"},
		{"ACR, a host for a name", acr(`namespace: a, secret: s`, `instanceName: m-registry.cr.aliyuncs.com, region: cn-hangzhou`), "without -registry and the domain"},
		{"ACR, a wrong id", acr(`namespace: a`, `instanceId: model, instanceName: m, region: cn-hangzhou`), "give the instance's id"},
		{"Generic", registry(`{registry: "registry.example.com:5000", namespace: team/models, secret: s, insecure: true, options: {type: Generic, region: cn-hangzhou}}`), ""},
		{"Generic without a host", registry(`{namespace: a, options: {type: Generic}}`), "give registry, for example"},
		{"Generic with an instance", registry(`{registry: a, options: {type: Generic, instanceName: m}}`), "are for ACR"},
		{"Generic by VPC", registry(`{registry: a, options: {type: Generic, vpc: true}}`), "are for ACR"},
		{"a host with a scheme", registry(`{registry: "https://registry.example.com", options: {type: Generic}}`), "without https:// and namespace"},
		{"a host with a path", registry(`{registry: registry.example.com/team, options: {type: Generic}}`), "without https:// and namespace"},
		{"namespace and repository", registry(`{registry: a, namespace: b, repository: c/d, options: {type: Generic}}`), "give namespace or repository"},
		{"a namespace in capitals", registry(`{registry: a, namespace: Team, options: {type: Generic}}`), "use lower-case letters and digits"},
		{"a repository with a tag", registry(`{registry: a, repository: "a/b:v1", options: {type: Generic}}`), "use lower-case letters and digits"},

		// Clusters.
		{"only registries", `spec: {targets: {clusters: null}}`, ""},
		{"no cluster", clusters(`names: null`), "say which clusters"},
		{"allClusters is false", `spec: {targets: {clusters: {allClusters: false}}}`, "say which clusters"},
		{"clusters by name", clusters(`names: [beijing, hangzhou.prod]`), ""},
		{"clusters by name, and false", `spec: {targets: {clusters: {allClusters: false, names: [a]}}}`, ""},
		{"all, and by name", `spec: {targets: {clusters: {names: [a]}}}`, "say which clusters"},
		{"by name and by label", clusters(`names: [a], selector: {matchLabels: {a: b}}`), "say which clusters"},
		{"no name of a cluster", clusters(`names: []`), "should have at least 1 items"},
		{"a cluster twice", clusters(`names: [a, a]`), "Duplicate value"},
		{"a cluster's wrong name", clusters(`names: [A]`), "give a cluster's name as the hub shows it"},
		{"clusters by label", clusters(`selector: {matchLabels: {env: prod}, matchExpressions: [{key: region, operator: In, values: [a]}, {key: old, operator: DoesNotExist}]}`), ""},
		{"an empty selector", clusters(`selector: {}`), "use allClusters: true"},
		{"an unknown operator", clusters(`selector: {matchExpressions: [{key: a, operator: Near, values: [b]}]}`), "In or NotIn with values"},
		{"an operator without values", clusters(`selector: {matchExpressions: [{key: a, operator: In}]}`), "In or NotIn with values"},
		{"namespaces", `spec: {targets: {clusters: {namespaces: [serving, batch]}}}`, ""},
		{"a namespace that is none", `spec: {targets: {clusters: {namespaces: ["*"]}}}`, "give a namespace's name"},
		{"an unknown volume", `spec: {targets: {clusters: {volume: NFS}}}`, `supported values: "CSI", "ImageVolume", "Fluid"`},
		{"Fluid", `spec: {targets: {clusters: {volume: Fluid}}}`, ""},
		{"preloaded nowhere", `spec: {targets: {clusters: {preloadConfig: null}}}`, ""},
		{"preloaded everywhere", `spec: {targets: {clusters: {preloadConfig: {nodeSelector: null}}}}`, ""},
		{"preloaded to disk", `spec: {targets: {clusters: {preloadConfig: {tier: Disk, nodes: 3, priority: -10}}}}`, ""},
		{"an unknown tier", `spec: {targets: {clusters: {preloadConfig: {tier: GPU}}}}`, `supported values: "Disk", "Memory"`},
		{"no node", `spec: {targets: {clusters: {preloadConfig: {nodes: 0}}}}`, "should be greater than or equal to 1"},
		{"too high a priority", `spec: {targets: {clusters: {preloadConfig: {priority: 1001}}}}`, "should be less than or equal to 1000"},
		{"a label that no node has", `spec: {targets: {clusters: {preloadConfig: {nodeSelector: {a: "b c"}}}}}`, "no node can have this label value"},
		{"a label that is a truth", `spec: {targets: {clusters: {preloadConfig: {nodeSelector: {gpu: true}}}}}`, "must be of type string"},

		// Before it is packaged, all of it may change.
		{"another name before it is packaged", `spec: {modelName: other, modelVersion: v2}`, ""},
		{"another source before it is packaged", source(`modelScope: {model: a/b}`), ""},
	})
}

// packagedIsImmutable: what would change the bytes, and nothing else.
func packagedIsImmutable(t *testing.T, s *server) {
	const names, bytes = "packaged under this modelName and modelVersion", "what it was read from cannot change"
	for _, c := range []struct {
		source string // in the place of the sample's
		change []change
	}{
		{`oss: {region: cn-hangzhou, bucket: models-poc, path: /a, endpoint: oss-cn-hangzhou.aliyuncs.com}, exclude: ["*.bin"]`, []change{
			{"another model name", `spec: {modelName: other}`, names},
			{"another version", `spec: {modelVersion: v2}`, names},
			{"another bucket", `spec: {modelSource: {oss: {bucket: other}}}`, bytes},
			{"another path", `spec: {modelSource: {oss: {path: /b}}}`, bytes},
			{"no path", `spec: {modelSource: {oss: {path: null}}}`, bytes},
			{"another source", `spec: {modelSource: {oss: null, modelScope: {model: a/b}}}`, bytes},
			{"a pattern more", `spec: {modelSource: {exclude: ["*.bin", "*.pt"]}}`, bytes},
			{"no pattern", `spec: {modelSource: {exclude: null}}`, bytes},
			{"included patterns", `spec: {modelSource: {include: ["*"]}}`, bytes},
			{"another secret", `spec: {modelSource: {oss: {secret: rotated}}}`, ""},
			{"another endpoint", `spec: {modelSource: {oss: {endpoint: oss-cn-hangzhou-internal.aliyuncs.com}}}`, ""},
			{"other targets", `spec: {targets: {registries: [{registry: a, options: {type: Generic}}], clusters: {allClusters: null, names: [a], volume: Fluid}}}`, ""},
			{"paused", `spec: {paused: true, deletionPolicy: Delete}`, ""},
			{"a label", `metadata: {labels: {a: b}}`, ""},
		}},
		{`modelScope: {model: a/b}`, []change{
			{"another model", `spec: {modelSource: {modelScope: {model: a/c}}}`, bytes},
			{"another revision", `spec: {modelSource: {modelScope: {revision: v2}}}`, bytes},
			{"another secret and endpoint", `spec: {modelSource: {modelScope: {secret: s, endpoint: "https://www.modelscope.ai"}}}`, ""},
		}},
		{`huggingFace: {model: a/b}`, []change{
			{"another model", `spec: {modelSource: {huggingFace: {model: a/c}}}`, bytes},
			{"another revision", `spec: {modelSource: {huggingFace: {revision: v2}}}`, bytes},
			{"another secret and endpoint", `spec: {modelSource: {huggingFace: {secret: s, endpoint: "https://mirror.example.com"}}}`, ""},
		}},
		{`s3: {region: us-east-1, bucket: models, prefix: a}`, []change{
			{"another bucket", `spec: {modelSource: {s3: {bucket: other}}}`, bytes},
			{"another prefix", `spec: {modelSource: {s3: {prefix: b}}}`, bytes},
			{"another store", `spec: {modelSource: {s3: {endpoint: minio.example.com}}}`, bytes},
			{"another secret", `spec: {modelSource: {s3: {secret: s}}}`, ""},
		}},
		{`registry: {reference: "registry.example.com/a:v1"}`, []change{
			{"another image", `spec: {modelSource: {registry: {reference: "registry.example.com/a:v2"}}}`, bytes},
			{"another secret", `spec: {modelSource: {registry: {secret: s, insecure: true}}}`, ""},
		}},
		{`pvc: {claimName: models, path: a}`, []change{
			{"another claim", `spec: {modelSource: {pvc: {claimName: other}}}`, bytes},
			{"another path", `spec: {modelSource: {pvc: {path: b}}}`, bytes},
		}},
	} {
		kind, _, _ := strings.Cut(c.source, ":")
		t.Run(kind, func(t *testing.T) {
			o := must(s.distributions().Get(within(t), sampleName, metav1.GetOptions{}))(t)
			o.SetName("packaged-" + strings.ToLower(kind))
			o.SetResourceVersion("")
			o.Object["spec"].(map[string]any)["modelSource"] = object(t, "{"+c.source+"}")
			must(s.distributions().Create(within(t), o, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}))(t)
			packaged := []byte(`{"status": {"digest": "` + digest + `"}}`)
			must(s.distributions().Patch(within(t), o.GetName(), types.MergePatchType, packaged, metav1.PatchOptions{}, "status"))(t)
			judge(t, s.distributions(), o.GetName(), c.change)
		})
	}
}
