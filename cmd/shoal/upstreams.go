package main

import (
	"fmt"
	"net/url"
	"strings"
)

// upstream is one value of --upstream: a registry by its name in references, and where it is.
type upstream struct {
	name, host string
	plainHTTP  bool
}

const upstreamHelp = "registry that may be read, as NAME or NAME=http(s)://HOST[:PORT] (may be repeated)"

func parseUpstream(s string) (upstream, error) {
	name, where, ok := strings.Cut(s, "=")
	if name == "" {
		return upstream{}, fmt.Errorf("--upstream %q: want NAME or NAME=https://HOST", s)
	}
	if !ok {
		return upstream{name: name, host: name}, nil
	}
	u, err := url.Parse(where)
	if err != nil {
		return upstream{}, fmt.Errorf("--upstream %s: %w", name, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return upstream{}, fmt.Errorf("--upstream %s: %q is not http(s)://HOST[:PORT]", name, u.Redacted())
	}
	return upstream{name: name, host: u.Host, plainHTTP: u.Scheme == "http"}, nil
}

func parseUpstreams(values []string) ([]upstream, error) {
	var out []upstream
	for _, v := range values {
		u, err := parseUpstream(v)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}
