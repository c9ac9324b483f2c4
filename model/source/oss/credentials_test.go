package oss

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestFromSecret(t *testing.T) {
	for name, tc := range map[string]struct {
		data map[string]string
		want string // ID, secret, token
		err  []string
	}{
		"ACK":             {map[string]string{"akId": "i", "akSecret": "s\n"}, "i s ", nil},
		"STS":             {map[string]string{"AccessKeyId": "i", "AccessKeySecret": "s", "SecurityToken": "t", "Expiration": "2999-01-01T00:00:00Z"}, "i s t", nil},
		"STS, small":      {map[string]string{"accesskeyid": "i", "accesskeysecret": "s", "securitytoken": "t"}, "i s t", nil},
		"Fluid":           {map[string]string{"fs.oss.accessKeyId": "i", "fs.oss.accessKeySecret": "s", "fs.oss.securityToken": "t"}, "i s t", nil},
		"environment":     {map[string]string{"OSS_ACCESS_KEY_ID": "i", "OSS_ACCESS_KEY_SECRET": "s", "OSS_SESSION_TOKEN": "t"}, "i s t", nil},
		"two":             {map[string]string{"OSS_ACCESS_KEY_ID": "x", "OSS_ACCESS_KEY_SECRET": "x", "akId": "i", "akSecret": "s"}, "i s ", nil},
		"none":            {map[string]string{"user": "i", "password": "THE-SECRET"}, "", []string{"akId and akSecret", "AccessKeyId and AccessKeySecret", "fs.oss.accessKeyId", "OSS_ACCESS_KEY_ID", "there is password, user"}},
		"nothing":         {nil, "", []string{"there is nothing"}},
		"no secret":       {map[string]string{"akId": "i"}, "", []string{"akId is there and akSecret is not"}},
		"an empty secret": {map[string]string{"akId": "i", "akSecret": " \n"}, "", []string{"akSecret is not"}},
		"no ID":           {map[string]string{"AccessKeySecret": "THE-SECRET"}, "", []string{"AccessKeySecret is there and AccessKeyId is not"}},
		"expired":         {map[string]string{"AccessKeyId": "i", "AccessKeySecret": "THE-SECRET", "Expiration": "2020-01-01T00:00:00Z"}, "", []string{"expired at 2020-01-01T00:00:00Z", "renew"}},
		"an odd time":     {map[string]string{"AccessKeyId": "i", "AccessKeySecret": "THE-SECRET", "Expiration": "soon"}, "", []string{"Expiration is not a time"}},
	} {
		t.Run(name, func(t *testing.T) {
			data := map[string][]byte{}
			for k, v := range tc.data {
				data[k] = []byte(v)
			}
			c, err := FromSecret(data)
			if tc.err != nil {
				explained(t, err, tc.err...)
				return
			}
			if got := c.AccessKeyID + " " + c.AccessKeySecret + " " + c.SecurityToken; err != nil || got != tc.want {
				t.Errorf("%q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestFromEnv(t *testing.T) {
	t.Setenv("OSS_ACCESS_KEY_ID", "i")
	t.Setenv("OSS_ACCESS_KEY_SECRET", "")
	_, err := FromEnv()
	explained(t, err, "OSS_ACCESS_KEY_SECRET")
	t.Setenv("OSS_ACCESS_KEY_SECRET", "s")
	t.Setenv("OSS_SESSION_TOKEN", "t")
	if c, err := FromEnv(); err != nil || c.AccessKeySecret != "s" || c.SecurityToken != "t" {
		t.Errorf("%v, %v", c, err)
	}
}

// TestCredentialsStayHidden prints them in every way.
func TestCredentialsStayHidden(t *testing.T) {
	c := good
	c.Expiration = time.Unix(1, 0)
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, c, &c, struct{ C Credentials }{c})
	}
	if err := json.NewEncoder(&out).Encode(map[string]any{"c": c}); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "c", c)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "c", c)
	fmt.Fprint(&out, c.check(time.Now()))
	if strings.Contains(out.String(), "THE-") || !strings.Contains(out.String(), "access key ak") {
		t.Error(out.String())
	}
}
