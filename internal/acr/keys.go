package acr

import (
	"context"
	"errors"
	"os"
	"regexp"
	"sync"

	"github.com/aliyun/credentials-go/credentials/providers"
)

// Keys sign a request to Alibaba Cloud.
type Keys struct {
	// ID and Secret are an access key, Token goes with those of the Security Token Service and is empty otherwise.
	ID, Secret, Token string
	// From says where they were found, such as "oidc_role_arn". It is no secret.
	From string
}

// KeySource finds the keys for one request. It caches and renews what it likes.
type KeySource func(context.Context) (Keys, error)

// DefaultKeys finds keys as Alibaba Cloud's own tools do: the environment (ALIBABA_CLOUD_ACCESS_KEY_ID, ..._SECRET), the
// role of a service account (RRSA, ALIBABA_CLOUD_OIDC_TOKEN_FILE and its like), the profile files in the home folder, the
// RAM role of the ECS instance, ALIBABA_CLOUD_CREDENTIALS_URI. The library has no context: a call may take as long as
// its own limits, 15 seconds for a role.
func DefaultKeys() KeySource {
	c := &chain{}
	return c.keys
}

type chain struct {
	mu       sync.Mutex // the library's providers are for one goroutine
	provider providers.CredentialsProvider
}

func (c *chain) keys(ctx context.Context) (Keys, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Keys{}, err
	}
	if c.provider == nil {
		provider, err := configured()
		if err != nil {
			return Keys{}, errors.New(redact(err.Error()))
		}
		c.provider = provider
	}
	found, err := c.provider.GetCredentials()
	if err != nil {
		// The library's chain stays with the provider that it asked last, even when all of them failed.
		c.provider = nil
		return Keys{}, errors.New(redact(err.Error()))
	}
	return Keys{ID: found.AccessKeyId, Secret: found.AccessKeySecret, Token: found.SecurityToken, From: found.ProviderName}, nil
}

// configured takes what the environment names, and that alone: the library's chain would go on to the role of the ECS
// instance, another identity, when the Security Token Service is down for a moment, and stay there.
func configured() (providers.CredentialsProvider, error) {
	if os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_ID") != "" {
		return providers.NewEnvironmentVariableCredentialsProviderBuilder().Build()
	}
	if os.Getenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE") != "" {
		return providers.NewOIDCCredentialsProviderBuilder().Build()
	}
	return providers.NewDefaultCredentialsProvider(), nil
}

var secretField = regexp.MustCompile(`(?i)("?(?:AccessKeySecret|SecurityToken|AccessKeyId)"?\s*[:=]\s*)"?[^",}\s]*"?`)

// redact takes keys out of the library's errors, which quote whole answers.
func redact(s string) string { return secretField.ReplaceAllString(s, `${1}…`) }
