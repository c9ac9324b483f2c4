package oss

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"
)

// Credentials are an access key, of a user or of STS. Printed, they show the key's ID alone.
type Credentials struct {
	AccessKeyID     string
	AccessKeySecret string
	// SecurityToken is STS's; empty for a user's own key.
	SecurityToken string
	// Expiration is when they end; zero where that is not known.
	Expiration time.Time
}

// CredentialsError says what is wrong with credentials before any are sent.
type CredentialsError struct{ Reason string }

// Error implements error.
func (e *CredentialsError) Error() string { return "OSS credentials: " + e.Reason }

// String implements fmt.Stringer.
func (c Credentials) String() string { return "access key " + c.AccessKeyID }

// Format implements fmt.Formatter, so that no verb shows a secret.
func (c Credentials) Format(f fmt.State, _ rune) { fmt.Fprint(f, c.String()) }

// LogValue implements slog.LogValuer.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText implements encoding.TextMarshaler.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// conventions are the pairs of names in use, in the order in which they are looked for: ACK's OSS
// volumes, STS's own answers, Fluid, and the SDK's environment. Case does not matter.
var conventions = []struct{ id, secret string }{
	{"akId", "akSecret"},
	{"AccessKeyId", "AccessKeySecret"},
	{"fs.oss.accessKeyId", "fs.oss.accessKeySecret"},
	{"OSS_ACCESS_KEY_ID", "OSS_ACCESS_KEY_SECRET"},
}

// Names beside any of the pairs.
var (
	tokens      = []string{"SecurityToken", "fs.oss.securityToken", "OSS_SESSION_TOKEN"}
	expirations = []string{"Expiration"}
)

// FromSecret reads the data of a Kubernetes Secret, by any of the conventions in use. The error, a
// *CredentialsError, says which names were looked for.
func FromSecret(data map[string][]byte) (Credentials, error) {
	values := make(map[string]string, len(data))
	for name, value := range data {
		values[strings.ToLower(name)] = strings.TrimSpace(string(value)) // `echo` leaves its newline there
	}
	first := func(names []string) string {
		for _, name := range names {
			if value := values[strings.ToLower(name)]; value != "" {
				return value
			}
		}
		return ""
	}
	for _, names := range conventions {
		id, secret := values[strings.ToLower(names.id)], values[strings.ToLower(names.secret)]
		switch {
		case id == "" && secret == "":
			continue
		case secret == "":
			return Credentials{}, &CredentialsError{fmt.Sprintf("%s is there and %s is not: set both", names.id, names.secret)}
		case id == "":
			return Credentials{}, &CredentialsError{fmt.Sprintf("%s is there and %s is not: set both", names.secret, names.id)}
		}
		c := Credentials{AccessKeyID: id, AccessKeySecret: secret, SecurityToken: first(tokens)}
		if value := first(expirations); value != "" {
			var err error
			if c.Expiration, err = time.Parse(time.RFC3339, value); err != nil {
				return Credentials{}, &CredentialsError{"Expiration is not a time of the form 2006-01-02T15:04:05Z"}
			}
		}
		return c, c.check(time.Now())
	}
	var wanted []string
	for _, names := range conventions {
		wanted = append(wanted, names.id+" and "+names.secret)
	}
	have := "nothing"
	if len(data) > 0 {
		have = strings.Join(slices.Sorted(maps.Keys(data)), ", ")
	}
	return Credentials{}, &CredentialsError{fmt.Sprintf("none found: one of the pairs %s is needed, there is %s", strings.Join(wanted, "; "), have)}
}

// FromEnv reads OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and, for STS, OSS_SESSION_TOKEN from the
// environment. The error is a *CredentialsError.
func FromEnv() (Credentials, error) {
	c := Credentials{
		AccessKeyID:     os.Getenv("OSS_ACCESS_KEY_ID"),
		AccessKeySecret: os.Getenv("OSS_ACCESS_KEY_SECRET"),
		SecurityToken:   os.Getenv("OSS_SESSION_TOKEN"),
	}
	if c.AccessKeyID == "" || c.AccessKeySecret == "" {
		return Credentials{}, &CredentialsError{"set OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET in the environment, and OSS_SESSION_TOKEN for those of STS"}
	}
	return c, nil
}

func (c Credentials) check(now time.Time) error {
	if !c.Expiration.IsZero() && now.After(c.Expiration) {
		return &CredentialsError{fmt.Sprintf("those of %s expired at %s: renew them", c, c.Expiration.Format(time.RFC3339))}
	}
	return nil
}

// provider hands credentials to the SDK, which asks before every request.
type provider struct {
	get func() (Credentials, error)
}

// GetCredentialsE implements the SDK's CredentialsProviderE.
func (p provider) GetCredentialsE() (sdk.Credentials, error) {
	c, err := p.get()
	if err == nil {
		err = c.check(time.Now())
	}
	return signer{c}, err
}

// GetCredentials implements the SDK's CredentialsProvider; the SDK prefers GetCredentialsE.
func (p provider) GetCredentials() sdk.Credentials {
	c, _ := p.GetCredentialsE()
	return c
}

// signer is credentials as the SDK wants them.
type signer struct{ Credentials }

// GetAccessKeyID implements the SDK's Credentials, as the next two do.
func (s signer) GetAccessKeyID() string     { return s.AccessKeyID }
func (s signer) GetAccessKeySecret() string { return s.AccessKeySecret }
func (s signer) GetSecurityToken() string   { return s.SecurityToken }
