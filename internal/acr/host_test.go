package acr

import "testing"

func TestParseHost(t *testing.T) {
	for name, want := range map[string]Host{
		"models-registry.cn-hangzhou.cr.aliyuncs.com":          {Instance: "models", Region: "cn-hangzhou"},
		"models-registry-vpc.cn-shanghai.cr.aliyuncs.com":      {Instance: "models", Region: "cn-shanghai", Network: "vpc"},
		"a-registry-b-registry.us-west-1.cr.aliyuncs.com":      {Instance: "a-registry-b", Region: "us-west-1"},
		"crpi-1a2b3c.cn-beijing.personal.cr.aliyuncs.com":      {Personal: "crpi-1a2b3c", Region: "cn-beijing"},
		"crpi-1a2b3c-vpc.cn-beijing.personal.cr.aliyuncs.com":  {Personal: "crpi-1a2b3c", Region: "cn-beijing", Network: "vpc"},
		"registry.cn-hangzhou.aliyuncs.com":                    {Region: "cn-hangzhou"},
		"registry-vpc.cn-hangzhou.aliyuncs.com":                {Region: "cn-hangzhou", Network: "vpc"},
		"registry-internal.cn-hangzhou.aliyuncs.com":           {Region: "cn-hangzhou", Network: "internal"},
		"registry-intl.ap-southeast-1.aliyuncs.com":            {Region: "ap-southeast-1", International: true},
		"registry-intl-vpc.ap-southeast-1.aliyuncs.com":        {Region: "ap-southeast-1", International: true, Network: "vpc"},
		"oss-cn-hangzhou.aliyuncs.com":                         {},
		"cr.cn-hangzhou.aliyuncs.com":                          {},
		"-registry.cn-hangzhou.cr.aliyuncs.com":                {},
		"models-registry.cn-hangzhou.cr.aliyuncs.com.evil.com": {},
		"models-registry.cn-hangzhou.cr.aliyuncs.com:443":      {},
		"": {},
	} {
		got, ok := ParseHost(name)
		if got != want || ok != (want != Host{}) {
			t.Errorf("ParseHost(%q) = %+v, %v", name, got, ok)
		}
		if ok && got.String() != name {
			t.Errorf("%+v is built as %s, not %s", got, got, name)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add("models-registry-vpc.cn-shanghai.cr.aliyuncs.com")
	f.Add("registry-intl-internal.a.aliyuncs.com")
	f.Fuzz(func(t *testing.T, name string) {
		if h, ok := ParseHost(name); ok && h.String() != name {
			t.Errorf("%q is read as %+v and built as %q", name, h, h)
		}
	})
}
