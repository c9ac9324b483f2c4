// Package osstest stands in for Alibaba Cloud OSS where tests need a bucket: the reads of its REST API
// (ListObjectsV2, HeadObject, GetObject), faithful in what clients stumble over. Signatures of version 1
// and 4 and STS tokens are verified, listings come in pages and URL-encoded, ranges, If-Match, ETag and
// CRC64 are as documented, and errors have OSS's codes and documents. Tests put objects into it, inject
// faults, and read from its counters what was really sent.
//
// A Server is an http.Handler: in a test it lives in an httptest.Server, on its own behind any listener.
package osstest

import (
	"crypto/rand"
	"encoding/hex"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/internal/faults"
)

// Config describes a server. Keys are needed for any request to succeed.
type Config struct {
	// Region is signed by version 4 and part of the host names that are served; "cn-hangzhou" where
	// it is empty.
	Region string
	// Keys are the access keys by their ID.
	Keys map[string]Key
	// MaxKeys is the most objects on a page of a listing; 1000, as OSS has it, where it is 0.
	MaxKeys int
	// Faults is asked once a request, from many goroutines; nil means no faults.
	Faults func(*http.Request) Fault
	// Now is the server's clock; nil means time.Now.
	Now func() time.Time
}

// Key is an access key.
type Key struct {
	Secret string
	// Token, where set, makes it a temporary key of STS: requests have to carry it.
	Token string
	// Expires is when a temporary key ends; zero means never.
	Expires time.Time
}

// Fault is what goes wrong with one request; the zero value is nothing. With a Status, the answer is
// an error document with Code; bytes and waits count from the beginning of the response's body.
type Fault struct {
	faults.Fault
	// Code and Message are the error's; Endpoint is named in it where it is set.
	Code, Message, Endpoint string
}

// Operations that are counted.
const (
	ListObjects = "ListObjectsV2"
	HeadObject  = "HeadObject"
	GetObject   = "GetObject"
)

// Server is a set of buckets. All its methods may be called at any time.
type Server struct {
	cfg Config

	mu       sync.Mutex
	buckets  map[string]map[string]Object
	sent     map[string]*atomic.Int64 // by "bucket/key"
	requests map[string]int64         // by operation
}

// New returns a server without buckets.
func New(cfg Config) *Server {
	if cfg.Region == "" {
		cfg.Region = "cn-hangzhou"
	}
	if cfg.MaxKeys == 0 {
		cfg.MaxKeys = 1000
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{
		cfg: cfg, buckets: map[string]map[string]Object{},
		sent: map[string]*atomic.Int64{}, requests: map[string]int64{},
	}
}

// Sent returns the body bytes that were sent of an object, over all requests.
func (s *Server) Sent(bucket, key string) int64 { return s.counter(bucket, key).Load() }

func (s *Server) counter(bucket, key string) *atomic.Int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := bucket + "/" + key
	if s.sent[name] == nil {
		s.sent[name] = new(atomic.Int64)
	}
	return s.sent[name]
}

// Requests returns how many requests there were by operation, refused ones included.
func (s *Server) Requests() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

func (s *Server) count(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[operation]++
}

// call is one request, taken apart.
type call struct {
	*http.Request
	bucket, key string
	id          string
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{Request: r, id: requestID()}
	w.Header().Set("Server", "AliyunOSS")
	w.Header().Set("X-Oss-Request-Id", c.id)
	w.Header().Set("X-Oss-Server-Time", "1")
	var wrong *Error
	c.bucket, c.key, wrong = s.address(r)
	operation, counter := c.operation(), new(atomic.Int64)
	if operation == GetObject {
		counter = s.counter(c.bucket, c.key)
	}
	s.count(operation)
	var fault Fault
	if s.cfg.Faults != nil {
		fault = s.cfg.Faults(r)
	}
	out := &faults.Writer{ResponseWriter: w, Request: r, Fault: fault.Fault, Counter: counter}
	out.Begin()
	if wrong == nil && fault.Status != 0 {
		maps.Copy(w.Header(), fault.Header)
		wrong = fault.err()
	}
	if wrong == nil {
		wrong = s.verify(c)
	}
	if wrong == nil {
		wrong = s.answer(out, c, operation)
	}
	if wrong != nil {
		out.Counter = new(atomic.Int64) // an error document is nothing of the object
		wrong.write(out, c)
	}
}

func requestID() string {
	var raw [12]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	return strings.ToUpper(hex.EncodeToString(raw[:]))
}

// address finds bucket and key: path style where the host is an IP address, virtual-hosted else.
func (s *Server) address(r *http.Request) (bucket, key string, wrong *Error) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	if net.ParseIP(strings.Trim(host, "[]")) != nil {
		bucket, path, _ = strings.Cut(path, "/")
	} else {
		for _, suffix := range []string{".oss-" + s.cfg.Region + ".aliyuncs.com", ".oss-" + s.cfg.Region + "-internal.aliyuncs.com"} {
			if b, ok := strings.CutSuffix(host, suffix); ok {
				bucket = b
			}
		}
		if bucket == "" {
			return "", "", &Error{Status: http.StatusForbidden, Code: "SecondLevelDomainForbidden", Message: "The bucket you are attempting to access must be addressed using OSS third level domain."}
		}
	}
	key, err := url.PathUnescape(path)
	if err != nil {
		return bucket, "", invalid("The object name is not well encoded.")
	}
	return bucket, key, nil
}

func (c *call) operation() string {
	switch {
	case c.Method == http.MethodGet && c.key == "":
		return ListObjects
	case c.Method == http.MethodGet:
		return GetObject
	case c.Method == http.MethodHead && c.key != "":
		return HeadObject
	}
	return "other"
}

func (s *Server) answer(w http.ResponseWriter, c *call, operation string) *Error {
	switch operation {
	case ListObjects:
		return s.list(w, c)
	case GetObject, HeadObject:
		return s.object(w, c)
	}
	return &Error{Status: http.StatusNotImplemented, Code: "NotImplemented", Message: "This stand-in only reads."}
}
