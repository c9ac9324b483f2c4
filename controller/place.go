package controller

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry"

	"github.com/shoal-project/shoal/api/v1alpha1"
	"github.com/shoal-project/shoal/internal/acr"
)

// place is one registry of a ModelDistribution.
type place struct {
	// host[:port] and repository, as in references.
	host, repository string
	tag              string
	// region may be "".
	region string
	// secret has the credentials, "" where there is none; instance is the ACR instance that gives temporary ones then.
	secret, instance string
	insecure         bool
}

// reference is how the image is called there, with its tag.
func (p place) reference() string { return p.host + "/" + p.repository + ":" + p.tag }

// places are where the spec wants the image, in its order. The API server has checked the spec.
func places(spec *v1alpha1.ModelDistributionSpec) []place {
	var out []place
	for _, r := range spec.Targets.Registries {
		p := place{
			host: r.Registry, tag: string(spec.ModelVersion), region: string(r.Options.Region),
			secret: string(r.Secret), insecure: r.Insecure,
			repository: cmp.Or(string(r.Repository), join(string(r.Namespace), string(spec.ModelName))),
		}
		if r.Options.Type == v1alpha1.RegistryACR {
			h := acr.Host{Instance: r.Options.InstanceName, Region: p.region}
			if r.Options.VPC {
				h.Network = "vpc"
			}
			p.host = h.String()
			if p.secret == "" {
				p.instance = r.Options.InstanceID
			}
		}
		out = append(out, p)
	}
	return out
}

func join(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// sourceRegion is where the source lies, "" where nobody knows.
func sourceRegion(s *v1alpha1.ModelSource) string {
	switch {
	case s.OSS != nil:
		return string(s.OSS.Region)
	case s.S3 != nil:
		return string(s.S3.Region)
	}
	return ""
}

// sourceIdentity is what says which bytes a source has: of two sources with the same one the bytes are the same,
// however they are reached.
func sourceIdentity(s *v1alpha1.ModelSource) string {
	files := fmt.Sprint(s.Include, s.Exclude)
	switch {
	case s.OSS != nil:
		return fmt.Sprintf("oss %s %s %s %s", s.OSS.Region, s.OSS.Bucket, trim(s.OSS.Path), files)
	case s.ModelScope != nil:
		return fmt.Sprintf("modelscope %s %s %s", s.ModelScope.Model, s.ModelScope.Revision, files)
	case s.HuggingFace != nil:
		return fmt.Sprintf("huggingface %s %s %s", s.HuggingFace.Model, s.HuggingFace.Revision, files)
	case s.S3 != nil:
		return fmt.Sprintf("s3 %s %s %s %s %s", s.S3.Endpoint, s.S3.Region, s.S3.Bucket, trim(s.S3.Prefix), files)
	case s.Registry != nil:
		return "registry " + s.Registry.Reference
	case s.PVC != nil:
		return fmt.Sprintf("pvc %s %s %s", s.PVC.ClaimName, trim(s.PVC.Path), files)
	}
	return ""
}

// sourceSecret is the name of the Secret by which the source is read, "" for none.
func sourceSecret(s *v1alpha1.ModelSource) string {
	switch {
	case s.OSS != nil:
		return string(s.OSS.Secret)
	case s.ModelScope != nil:
		return string(s.ModelScope.Secret)
	case s.HuggingFace != nil:
		return string(s.HuggingFace.Secret)
	case s.S3 != nil:
		return string(s.S3.Secret)
	case s.Registry != nil:
		return string(s.Registry.Secret)
	}
	return ""
}

// trim takes the slashes off both ends of a path, where they mean nothing.
func trim(path v1alpha1.Path) string { return strings.Trim(string(path), "/") }

// pinned is the image there by its digest, which is how clusters pull it.
func (p place) pinned(d digest.Digest) string { return p.host + "/" + p.repository + "@" + d.String() }

// sourcePlace is where an image lies that is a source, and its tag or digest.
func sourcePlace(s *v1alpha1.RegistrySource) (p place, reference string, err error) {
	ref, err := registry.ParseReference(s.Reference)
	if err != nil {
		return place{}, "", fmt.Errorf("image %s: %w", s.Reference, err)
	}
	return place{host: ref.Registry, repository: ref.Repository, secret: string(s.Secret), insecure: s.Insecure}, ref.Reference, nil
}
