package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestReadUpstreams(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "upstreams.yaml")
	read := func(text string) (names []string, err error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ups, _, err := readUpstreams(file, prometheus.NewRegistry())
		for _, u := range ups {
			names = append(names, fmt.Sprint(u.Name, " ", u.Registry, " ", u.BytesPerSecond))
		}
		return names, err
	}
	got, err := read(`upstreams:
- name: reg.test
- name: other.test
  address: https://reg.internal:5000/prefix/
  insecure: true
  credentials: /etc/shoal/pull/.dockerconfigjson
  rate: 200MiB
- name: models-registry-vpc.cn-hangzhou.cr.aliyuncs.com
  acr: {instanceId: cri-1}
`)
	if want := "reg.test reg.test 0|other.test reg.internal:5000/prefix 209715200|models-registry-vpc.cn-hangzhou.cr.aliyuncs.com models-registry-vpc.cn-hangzhou.cr.aliyuncs.com 0"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"upstreams: [{address: https://a}]":                                                                         "number 1 has no name",
		"upstreams: [{name: a, addr: https://a}]":                                                                   "addr",
		"upstreams: [{name: a, address: 'ftp://a'}]":                                                                "no address of a registry",
		"upstreams: [{name: a, address: 'https://u:hidden@a'}]":                                                     "no address of a registry",
		"upstreams: [{name: a, address: 'http://a', insecure: true}]":                                               "mean nothing",
		"upstreams: [{name: a, ca: '" + filepath.Join(dir, "none.crt") + "'}]":                                      "no such file",
		"upstreams: [{name: a, ca: '" + filepath.Join(dir, "empty.crt") + "'}]":                                     "has no certificate",
		"upstreams: [{name: a}, {name: a}]":                                                                         "a is there twice",
		"upstreams: [{name: a, rate: fast}]":                                                                        `rate "fast": want bytes a second`,
		"upstreams: [{name: a, rate: '0'}]":                                                                         "want bytes a second",
		"upstreams: [{name: a, credentials: x, acr: {instanceId: cri-1}}]":                                          "exclude each other",
		"upstreams: [{name: a, acr: {instanceId: cri-1}}]":                                                          "such as cn-hangzhou",
		"upstreams: [{name: a, acr: {instanceId: models, region: cn-hangzhou}}]":                                    "not its name",
		"upstreams: [{name: a, acr: {instance: cri-1}}]":                                                            "instance",
		"upstreams: [{name: a, acr: {instanceId: cri-1, region: cn-hangzhou, endpoint: 'https://u:hidden@a'}}]":     "want http(s)://HOST",
		"upstreams: [{name: m-registry.cn-hangzhou.cr.aliyuncs.com, acr: {instanceId: cri-1, region: cn-beijing}}]": "is in cn-hangzhou, not in cn-beijing",
		"upstreams: [{name: registry.cn-hangzhou.aliyuncs.com, acr: {instanceId: cri-1}}]":                          "personal instance",
		"upstreams: [{name: a, address: 'https://a', ca: 'x', insecure: 'perhaps'}]":                                "insecure",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}
