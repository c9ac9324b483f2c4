package acr

import (
	"net/http"
	"strings"
	"testing"
)

// The example of Alibaba Cloud's documentation ("Request syntax and signature method V3", fixed parameters).
func TestSignExample(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		"https://ecs.cn-shanghai.aliyuncs.com/?ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"x-acs-action":          "RunInstances",
		"x-acs-content-sha256":  "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		"x-acs-date":            "2023-10-26T10:22:32Z",
		"x-acs-signature-nonce": "3156853299f313e23d1673dc12e1703d",
		"x-acs-version":         "2014-05-26",
	} {
		req.Header.Set(name, value)
	}
	sign(req, Keys{ID: "YourAccessKeyId", Secret: "YourAccessKeySecret"})
	const want = "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version," +
		"Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCanonicalQuery(t *testing.T) {
	if got, want := canonicalQuery(map[string][]string{"b": {"a b*~/"}, "a": {""}}), "a=&b=a%20b%2A~%2F"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRedact(t *testing.T) {
	const said = `get credentials from X failed: {"AccessKeyId":"AKID","AccessKeySecret": "hidden1","SecurityToken":"hidden2"} AccessKeySecret=hidden3`
	got := redact(said)
	if strings.Contains(got, "hidden") || !strings.Contains(got, "get credentials from X failed") {
		t.Errorf("%s", got)
	}
}
