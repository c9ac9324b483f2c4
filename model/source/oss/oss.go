// Package oss is the model.Source for Alibaba Cloud OSS: the objects below a path of a bucket are a
// model's files. Commands and the packer make a Source and hand it to model.Pack.
//
// What it promises about the bytes:
//   - All bytes of a file are of the one version of its object that was listed: every read carries the
//     ETag (If-Match), and an object that was replaced or deleted meanwhile is source.ErrChanged.
//   - Every range has the length and the place that were asked for; what broke off is asked for again
//     from where it broke off.
//   - OSS keeps a CRC64 of every whole object. List hands it to the reader of the file as its checksum,
//     and model.Pack computes it over the file from its first to its last byte, over restarts too. It is
//     no protection against somebody who means harm: that is TLS's part.
//
// What it does not: an object without a CRC64 (they stem from before OSS computed it) is verified by
// its length and by TLS alone, and somebody who reads only a part of a file gets no checksum at all.
package oss

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"

	"github.com/shoal-project/shoal/internal/retry"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

// Config says which objects are the model. Bucket, and one of Endpoint and Region, are needed.
type Config struct {
	// Endpoint is a host such as "oss-cn-hangzhou-internal.aliyuncs.com", of https where it names no
	// scheme. Empty means the public one of Region.
	Endpoint string
	// Region is signed with every request ("cn-hangzhou"). Empty means that of Endpoint, where its
	// name tells.
	Region string
	// Bucket is the bucket's name.
	Bucket string
	// Path is the model's directory in the bucket, with or without slashes around: "/qwen3-8b/v1" are
	// the keys that begin with "qwen3-8b/v1/". Empty means the whole bucket.
	Path string
	// Files choose among the keys below Path; all are taken where they are empty, names that begin
	// with a dot too.
	Files source.Globs
	// Credentials is asked before every request, so that renewed ones are used as soon as they are there. Nil
	// reads as anybody may.
	Credentials func() (Credentials, error)
	// Insecure allows an Endpoint of http: the model's bytes and STS tokens then pass in the clear.
	Insecure bool

	// Parts is how many ranges of one open file are asked for ahead; 0 means 4, of PartBytes each.
	Parts int
	// PartBytes is the length of a range; 0 means 4 MiB: long enough to make the round trip small,
	// short enough that what an open file holds in memory (Parts of them) stays at 16 MiB.
	PartBytes int
	// Retry is retry.Default where Tries is 0.
	Retry retry.Policy
	// Stall is how long OSS may send nothing before it is asked again; 0 means 30 s.
	Stall time.Duration
	// Transport carries the requests; nil means a copy of http.DefaultTransport, which honours
	// HTTPS_PROXY.
	Transport http.RoundTripper
	// Log may be nil.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	if c.Parts <= 0 {
		c.Parts = 4
	}
	if c.PartBytes <= 0 {
		c.PartBytes = 4 << 20
	}
	if c.Retry.Tries == 0 {
		c.Retry = retry.Default()
	}
	if c.Stall <= 0 {
		c.Stall = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Source is a directory of a bucket.
type Source struct {
	cfg      Config
	endpoint string // with its scheme
	prefix   string // of the keys: empty, or ending in a slash
	bucket   *sdk.Bucket
	idle     func() // closes idle connections

	mu     sync.Mutex
	listed map[string]object // by path
}

var _ model.Source = (*Source)(nil)

// object is an object as it was listed.
type object struct {
	key  string
	size int64 // bytes
	etag string
	// crc64 is OSS's checksum in decimal, empty where it has none.
	crc64 string
}

// New checks the configuration and the credentials at hand; it sends nothing.
func New(cfg Config) (*Source, error) {
	cfg.setDefaults()
	if cfg.Bucket == "" {
		return nil, errors.New("OSS: a bucket is needed")
	}
	anonymous := cfg.Credentials == nil
	if anonymous { // the SDK signs everything; the transport takes it off
		cfg.Credentials = func() (Credentials, error) {
			return Credentials{AccessKeyID: "nobody", AccessKeySecret: "nothing"}, nil
		}
	}
	if err := sdk.CheckBucketName(cfg.Bucket); err != nil {
		return nil, fmt.Errorf("OSS: %w", err)
	}
	if err := cfg.Files.Check(); err != nil {
		return nil, fmt.Errorf("OSS: %w", err)
	}
	prefix := strings.Trim(cfg.Path, "/")
	if prefix != "" {
		if err := model.CheckPath(prefix); err != nil {
			return nil, fmt.Errorf("OSS: the directory in the bucket: %w", err)
		}
		prefix += "/"
	}
	endpoint, region, err := resolveEndpoint(cfg.Endpoint, cfg.Region, cfg.Insecure)
	if err != nil {
		return nil, err
	}
	if _, err := (provider{cfg.Credentials}).GetCredentialsE(); err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, endpoint: endpoint, prefix: prefix, idle: func() {}, listed: map[string]object{}}
	base := cfg.Transport
	if base == nil {
		own := http.DefaultTransport.(*http.Transport).Clone()
		own.MaxIdleConnsPerHost = 64 // a few layers with a few ranges each; the default of 2 would connect anew for each
		base, s.idle = own, own.CloseIdleConnections
	}
	client, err := sdk.New(endpoint, "", "",
		sdk.AuthVersion(sdk.AuthV4), sdk.Region(region),
		sdk.SetCredentialsProvider(provider{cfg.Credentials}),
		sdk.HTTPClient(&http.Client{Transport: transport{base, anonymous}}),
		sdk.EnableCRC(false), // it would only see whole GETs
		sdk.UserAgent("shoal"))
	if err != nil {
		return nil, fmt.Errorf("OSS endpoint %s: %w", endpoint, err)
	}
	if s.bucket, err = client.Bucket(cfg.Bucket); err != nil {
		return nil, fmt.Errorf("OSS: %w", err)
	}
	return s, nil
}

// Close lets idle connections go.
func (s *Source) Close() { s.idle() }

// String names the directory and the endpoint.
func (s *Source) String() string { return s.name(s.prefix) }

func (s *Source) name(key string) string {
	return fmt.Sprintf("oss://%s/%s at %s", s.cfg.Bucket, key, s.endpoint)
}

// regional are the names of endpoints that tell their region.
var regional = regexp.MustCompile(`^(?:oss-([a-z0-9-]+?)(?:-internal)?|([a-z0-9-]+)\.oss)\.aliyuncs\.com$`)

// resolveEndpoint completes what a user wrote: an endpoint with its scheme, and the region to sign.
func resolveEndpoint(endpoint, region string, insecure bool) (base, signed string, err error) {
	region = strings.TrimPrefix(region, "oss-") // a region's name as consoles show it
	if endpoint == "" {
		if region == "" {
			return "", "", errors.New("OSS: name the bucket's endpoint or its region")
		}
		endpoint = "oss-" + region + ".aliyuncs.com"
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "https://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return "", "", fmt.Errorf("OSS endpoint %q is no host: give one such as oss-cn-hangzhou.aliyuncs.com", endpoint)
	}
	switch {
	case u.Scheme == "http" && !insecure:
		return "", "", fmt.Errorf("OSS endpoint %q is not encrypted: use https, or say that insecure is meant", endpoint)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", fmt.Errorf("OSS endpoint %q: the scheme is https or http", endpoint)
	}
	of := ""
	if m := regional.FindStringSubmatch(u.Hostname()); m != nil && !strings.HasPrefix(m[1], "accelerate") {
		of = m[1] + m[2]
	}
	switch {
	case region == "" && of == "":
		return "", "", fmt.Errorf("OSS endpoint %q does not tell its region, which is signed: name the region too", endpoint)
	case region != "" && of != "" && region != of:
		return "", "", fmt.Errorf("OSS endpoint %q is of region %s, not of %s: the two have to fit", endpoint, of, region)
	case region == "":
		region = of
	}
	return u.Scheme + "://" + u.Host, region, nil
}

// ParseURL takes "oss://bucket/path" apart. The path is not decoded: it is a key as it stands.
func ParseURL(url string) (bucket, path string, err error) {
	rest, ok := strings.CutPrefix(url, "oss://")
	bucket, path, _ = strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return "", "", fmt.Errorf("%q is not of the form oss://bucket/path", url)
	}
	return bucket, path, nil
}

// do calls f, which speaks to OSS about key, until it succeeds, fails for good, or the tries are used
// up. f tells by alive that bytes arrive; without, an attempt ends after Config.Stall. The error is an
// *Error, or ctx's own.
func (s *Source) do(ctx context.Context, key string, f func(ctx context.Context, alive func()) error) error {
	for tries := 1; ; tries++ {
		err := s.attempt(ctx, f)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case tries >= s.cfg.Retry.Tries || !mayPass(err):
			return s.explain(key, tries, err)
		}
		s.cfg.Log.Debug("OSS is asked again", "key", key, "try", tries, "error", s.explain(key, tries, err))
		if err := retry.Sleep(ctx, s.pause(tries-1, err)); err != nil {
			return err
		}
	}
}

func (s *Source) attempt(ctx context.Context, f func(ctx context.Context, alive func()) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.cfg.Stall, func() { cancel(errStalled) })
	defer watchdog.Stop()
	err := f(ctx, func() { watchdog.Reset(s.cfg.Stall) })
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// pause is the wait after an attempt that failed, counted from 0.
func (s *Source) pause(attempt int, err error) time.Duration {
	if refused, ok := errors.AsType[*refusal](err); ok {
		if asked, ok := retry.After(refused.retryAfter, time.Now()); ok {
			return min(asked, s.cfg.Retry.Max)
		}
	}
	return s.cfg.Retry.Pause(attempt)
}
