package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadUpstreams(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "upstreams.yaml")
	read := func(text string) (names []string, err error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		ups, err := readUpstreams(file)
		for _, u := range ups {
			names = append(names, u.Name+" "+u.Registry)
		}
		return names, err
	}
	got, err := read(`upstreams:
- name: reg.test
- name: other.test
  address: https://reg.internal:5000/prefix/
  insecure: true
  credentials: /etc/shoal/pull/.dockerconfigjson
`)
	if want := "reg.test |other.test reg.internal:5000/prefix"; err != nil || strings.Join(got, "|") != want {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"upstreams: [{address: https://a}]":                                          "number 1 has no name",
		"upstreams: [{name: a, addr: https://a}]":                                    "addr",
		"upstreams: [{name: a, address: 'ftp://a'}]":                                 "no address of a registry",
		"upstreams: [{name: a, address: 'https://u:hidden@a'}]":                      "no address of a registry",
		"upstreams: [{name: a, address: 'http://a', insecure: true}]":                "mean nothing",
		"upstreams: [{name: a, ca: '" + filepath.Join(dir, "none.crt") + "'}]":       "no such file",
		"upstreams: [{name: a, ca: '" + filepath.Join(dir, "empty.crt") + "'}]":      "has no certificate",
		"upstreams: [{name: a, address: 'https://a', ca: 'x', insecure: 'perhaps'}]": "insecure",
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}
