package registry_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/shoal-project/shoal/internal/registry"
)

// A pull secret is mounted by Kubernetes as a link that changes to another file.
func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, ".dockerconfigjson")
	mount := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next := filepath.Join(dir, "next")
		if err := os.Symlink(name, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, link); err != nil {
			t.Fatal(err)
		}
	}
	config := func(password string) string {
		return fmt.Sprintf(`{"auths":{"reg.test:5000":{"auth":%q}}}`, base64.StdEncoding.EncodeToString([]byte("user:"+password)))
	}
	find := registry.SecretFile(link)
	if _, err := find(t.Context(), "reg.test:5000"); err == nil || !strings.Contains(err.Error(), link) {
		t.Errorf("without a file: %v", err)
	}
	for _, password := range []string{"first", "other"} { // of one length, and perhaps of one time
		mount(password, config(password))
		got, err := find(t.Context(), "reg.test:5000")
		if err != nil || got.Username != "user" || got.Password != password {
			t.Errorf("%s: %v", password, err)
		}
	}
	if got, err := find(t.Context(), "elsewhere.test"); err != nil || got != auth.EmptyCredential {
		t.Errorf("another registry: %v", err)
	}
	mount("broken", `{"auths":{"reg.test:5000":{"auth":"topsecret"`)
	if _, err := find(t.Context(), "reg.test:5000"); err == nil || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("a broken file: %v", err)
	}
}
