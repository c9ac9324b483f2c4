package osstest

import (
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// listing is the document of ListObjectsV2, in OSS's order.
type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name                  string
	Prefix                string
	StartAfter            string `xml:",omitempty"`
	MaxKeys               int
	EncodingType          string `xml:",omitempty"`
	IsTruncated           bool
	KeyCount              int
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	Contents              []listed
}

type listed struct {
	Key          string
	LastModified string
	ETag         string
	Type         string
	Size         int64
	StorageClass string
}

// list answers ListObjectsV2, without delimiters.
func (s *Server) list(w http.ResponseWriter, c *call) *Error {
	query := c.URL.Query()
	if query.Get("list-type") != "2" || query.Get("delimiter") != "" {
		return &Error{Status: http.StatusNotImplemented, Code: "NotImplemented", Message: "This stand-in lists by ListObjectsV2 without a delimiter."}
	}
	limit := 100
	if value := query.Get("max-keys"); value != "" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 1000 {
			return invalid("MaxKeys is not between 1 and 1000.")
		}
		limit = n
	}
	limit = min(limit, s.cfg.MaxKeys)
	after := query.Get("start-after")
	if token := query.Get("continuation-token"); token != "" {
		raw, err := base64.StdEncoding.DecodeString(token)
		if err != nil {
			return invalid("The continuation token provided is incorrect.")
		}
		after = string(raw)
	}
	encode := func(text string) string { return text }
	if query.Get("encoding-type") == "url" {
		encode = escape
	}

	s.mu.Lock()
	objects, known := s.buckets[c.bucket]
	objects = maps.Clone(objects)
	s.mu.Unlock()
	if !known {
		return noBucket()
	}
	page := listing{
		Name: c.bucket, Prefix: encode(query.Get("prefix")), StartAfter: encode(query.Get("start-after")), MaxKeys: limit,
		EncodingType: query.Get("encoding-type"), ContinuationToken: encode(query.Get("continuation-token")),
	}
	last := ""
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if key <= after || !strings.HasPrefix(key, query.Get("prefix")) {
			continue
		}
		if page.KeyCount == limit {
			page.IsTruncated = true
			page.NextContinuationToken = encode(base64.StdEncoding.EncodeToString([]byte(last)))
			break
		}
		o := objects[key]
		page.Contents = append(page.Contents, listed{
			Key: encode(key), LastModified: o.Modified.UTC().Format("2006-01-02T15:04:05.000Z"), ETag: o.ETag,
			Type: o.Type, Size: o.Size, StorageClass: o.StorageClass,
		})
		page.KeyCount++
		last = key
	}
	writeXML(w, http.StatusOK, page)
	return nil
}
