package osstest

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Object is what a key holds.
type Object struct {
	Content io.ReaderAt
	// Size is the content's length in bytes.
	Size int64
	// ETag is in quotes, as OSS sends it.
	ETag string
	// CRC64 is the checksum in decimal; empty where OSS has none, as of very old objects.
	CRC64 string
	// Type is Normal, Multipart, Appendable or Symlink.
	Type string
	// StorageClass is Standard, IA, or one of the archives, which have to be restored before reads.
	StorageClass string
	Modified     time.Time
}

// NewObject reads the size bytes of content for their ETag (as of PutObject) and CRC64.
func NewObject(content io.ReaderAt, size int64) (Object, error) {
	md5, crc := md5.New(), crc64.New(crc64.MakeTable(crc64.ECMA))
	n, err := io.Copy(io.MultiWriter(md5, crc), io.NewSectionReader(content, 0, size))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	return Object{
		Content: content, Size: size,
		ETag:  fmt.Sprintf(`"%X"`, md5.Sum(nil)),
		CRC64: strconv.FormatUint(crc.Sum64(), 10),
		Type:  "Normal", StorageClass: "Standard", Modified: time.Unix(1592822552, 0),
	}, err
}

// Bytes is an object with the content b.
func Bytes(b []byte) Object {
	o, _ := NewObject(bytes.NewReader(b), int64(len(b))) // never fails
	return o
}

// Put gives a key its content; the bucket is made where there is none.
func (s *Server) Put(bucket, key string, o Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[bucket] == nil {
		s.buckets[bucket] = map[string]Object{}
	}
	s.buckets[bucket][key] = o
}

// Delete removes a key. The bucket stays.
func (s *Server) Delete(bucket, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.buckets[bucket], key)
}

// object answers GetObject and HeadObject.
func (s *Server) object(w http.ResponseWriter, c *call) *Error {
	s.mu.Lock()
	objects, known := s.buckets[c.bucket]
	o, found := objects[c.key]
	s.mu.Unlock()
	switch {
	case !known:
		return noBucket()
	case !found:
		return &Error{Status: http.StatusNotFound, Code: "NoSuchKey", Message: "The specified key does not exist.", EC: "0026-00000001"}
	case c.Header.Get("If-Match") != "" && !sameETag(c.Header.Get("If-Match"), o.ETag):
		return &Error{Status: http.StatusPreconditionFailed, Code: "PreconditionFailed", Message: "At least one of the pre-conditions you specified did not hold."}
	case c.Method == http.MethodGet && strings.HasSuffix(o.StorageClass, "Archive"):
		return &Error{Status: http.StatusForbidden, Code: "InvalidObjectState", Message: "The operation is not valid for the object's state"}
	}
	start, end, status := int64(0), o.Size, http.StatusOK
	if value := c.Header.Get("Range"); value != "" {
		var err error
		start, end, err = parseRange(value, o.Size)
		switch {
		case err == nil && end > o.Size && c.standardRange():
			end, status = o.Size, http.StatusPartialContent
		case err == nil && end <= o.Size && start < o.Size:
			status = http.StatusPartialContent
		case errors.Is(err, errPastEnd) && c.standardRange():
			return &Error{Status: http.StatusRequestedRangeNotSatisfiable, Code: "InvalidRange", Message: "The requested range cannot be satisfied."}
		default: // OSS sends the whole object for a range that it cannot make sense of
			start, end = 0, o.Size
		}
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.FormatInt(end-start, 10))
	header.Set("Accept-Ranges", "bytes")
	header.Set("ETag", o.ETag)
	header.Set("Last-Modified", o.Modified.UTC().Format(http.TimeFormat))
	header.Set("X-Oss-Object-Type", o.Type)
	header.Set("X-Oss-Storage-Class", o.StorageClass)
	if o.CRC64 != "" {
		header.Set("X-Oss-Hash-Crc64ecma", o.CRC64)
	}
	if status == http.StatusPartialContent {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, o.Size))
	}
	w.WriteHeader(status)
	if c.Method == http.MethodGet {
		_, _ = io.Copy(w, io.NewSectionReader(o.Content, start, end-start)) // the client went away
	}
	return nil
}

func sameETag(a, b string) bool { return strings.Trim(a, `"`) == strings.Trim(b, `"`) }

// standardRange reports whether the client wants RFC 9110's behaviour for ranges past the end.
func (c *call) standardRange() bool { return c.Header.Get("X-Oss-Range-Behavior") == "standard" }

var errPastEnd = errors.New("the range begins past the end")

// parseRange reads the first of a Range header's ranges over size bytes: [start, end), where end may
// be past size. A range that begins past it is errPastEnd.
func parseRange(value string, size int64) (start, end int64, err error) {
	spec, ok := strings.CutPrefix(value, "bytes=")
	if !ok {
		return 0, 0, fmt.Errorf("range %q has no unit that we know", value)
	}
	spec, _, _ = strings.Cut(spec, ",")
	first, last, ok := strings.Cut(spec, "-")
	if !ok {
		return 0, 0, fmt.Errorf("range %q has no dash", value)
	}
	if first == "" {
		n, err := strconv.ParseUint(last, 10, 63)
		if err != nil {
			return 0, 0, err
		}
		return max(size-int64(n), 0), size, nil
	}
	from, err := strconv.ParseUint(first, 10, 63)
	if err != nil {
		return 0, 0, err
	}
	start, end = int64(from), size
	if last != "" {
		to, err := strconv.ParseUint(last, 10, 62)
		if err != nil || int64(to) < start {
			return 0, 0, fmt.Errorf("range %q ends before it begins", value)
		}
		end = int64(to) + 1
	}
	if start >= size {
		return 0, 0, errPastEnd
	}
	return start, end, nil
}
