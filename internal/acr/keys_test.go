package acr_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/internal/acr"
)

// bare clears what the machine that runs the test may have.
func bare(t *testing.T) (profile string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
	profile = filepath.Join(home, "credentials")
	t.Setenv("ALIBABA_CLOUD_CREDENTIALS_FILE", profile)
	for _, name := range []string{
		"ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN", "OIDC_TOKEN", "OIDC_TOKEN_FILE", "OIDC_PROVIDER_ARN", "ROLE_ARN", "CREDENTIALS_URI", "PROFILE",
	} {
		t.Setenv("ALIBABA_CLOUD_"+name, "")
	}
	return profile
}

func TestDefaultKeys(t *testing.T) {
	bare(t)
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "AKID")
	keys := acr.DefaultKeys()
	if _, err := keys(t.Context()); err == nil || !strings.Contains(err.Error(), "ALIBABA_CLOUD_ACCESS_KEY_SECRET") {
		t.Errorf("without the secret: %v", err)
	}
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "topsecret")
	t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "token")
	if got, err := keys(t.Context()); err != nil || got != (acr.Keys{ID: "AKID", Secret: "topsecret", Token: "token", From: "env"}) {
		t.Errorf("%v", err)
	}
}

// A pod with a role of its own never takes that of the node.
func TestRoleAlone(t *testing.T) {
	profile := bare(t)
	write(t, profile)
	t.Setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", filepath.Join(t.TempDir(), "none"))
	if _, err := acr.DefaultKeys()(t.Context()); err == nil || !strings.Contains(err.Error(), "ProviderARN") {
		t.Errorf("error %v", err)
	}
	t.Setenv("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", "acs:ram::1:oidc-provider/x")
	t.Setenv("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/x")
	if _, err := acr.DefaultKeys()(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
}

// The library's chain stays with the last provider that it asked; ours begins anew.
func TestKeysAfterFailure(t *testing.T) {
	profile := bare(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"AccessKeyId":"AKID","AccessKeySecret":"topsecret"}`) // without what is needed as well
	}))
	defer server.Close()
	t.Setenv("ALIBABA_CLOUD_CREDENTIALS_URI", server.URL)
	keys := acr.DefaultKeys()
	if _, err := keys(t.Context()); err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("error %v", err)
	}
	write(t, profile)
	if got, err := keys(t.Context()); err != nil || got.ID != "AKFILE" || got.Secret != "filesecret" {
		t.Errorf("%s, %v", got.From, err)
	}
}

func write(t *testing.T, profile string) {
	t.Helper()
	if err := os.WriteFile(profile, []byte("[default]\ntype = access_key\naccess_key_id = AKFILE\naccess_key_secret = filesecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
