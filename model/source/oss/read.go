package oss

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"

	"github.com/shoal-project/shoal/model/source"
)

// Open implements model.Source. A few ranges are read ahead, so that one file gets more than the
// bandwidth of one connection; ctx ends them. Errors of Read are those of OSS (*Error) or ctx's;
// source.ErrChanged is among them where the object is no longer the one listed.
func (s *Source) Open(ctx context.Context, path string, offset int64) (io.ReadCloser, error) {
	s.mu.Lock()
	o, ok := s.listed[path]
	s.mu.Unlock()
	switch {
	case !ok:
		return nil, fmt.Errorf("%s was not listed", s.name(s.prefix+path))
	case offset < 0 || offset > o.size:
		return nil, fmt.Errorf("%s has %d bytes, none at %d", s.name(o.key), o.size, offset)
	case offset == o.size: // there is nothing to read that would notice a change
		if err := s.head(ctx, &o); err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader("")), nil
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{ctx: ctx, cancel: cancel, source: s, object: o, next: offset}
	for range s.cfg.Parts {
		if r.next < o.size {
			r.ahead(make([]byte, min(int64(s.cfg.PartBytes), o.size-r.next)))
		}
	}
	return r, nil
}

// reader is one open object. It belongs to one goroutine; its parts are filled by others.
type reader struct {
	ctx     context.Context // of one Open: io.Reader has no place for it
	cancel  context.CancelFunc
	source  *Source
	object  object
	next    int64   // the first byte that no part has
	parts   []*part // in order; the first is being read
	running sync.WaitGroup
	err     error // what Read ended with
}

// part is a range of the object.
type part struct {
	buf  []byte
	done chan error // gets one value when buf is full, or never will be
	full bool
	read int // of buf
}

// ahead begins to fill buf with what comes after the last part.
func (r *reader) ahead(buf []byte) {
	buf = buf[:min(int64(len(buf)), r.object.size-r.next)]
	p := &part{buf: buf, done: make(chan error, 1)}
	offset := r.next
	r.next += int64(len(buf))
	r.parts = append(r.parts, p)
	r.running.Go(func() { p.done <- r.source.fetch(r.ctx, r.object, offset, buf) })
}

// Read implements io.Reader.
func (r *reader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for r.err == nil {
		if len(r.parts) == 0 {
			r.err = io.EOF
			break
		}
		p := r.parts[0]
		if !p.full {
			if r.err = <-p.done; r.err != nil {
				break
			}
			p.full = true
		}
		if p.read < len(p.buf) {
			n := copy(b, p.buf[p.read:])
			p.read += n
			return n, nil
		}
		r.parts = r.parts[1:]
		if r.next < r.object.size {
			r.ahead(p.buf)
		}
	}
	return 0, r.err
}

// Close ends the reads under way.
func (r *reader) Close() error {
	r.cancel()
	r.running.Wait()
	return nil
}

// fetch fills buf with the object's bytes from offset on, over as many requests as it takes.
func (s *Source) fetch(ctx context.Context, o object, offset int64, buf []byte) error {
	got := 0
	return s.do(ctx, o.key, func(ctx context.Context, alive func()) error {
		n, err := s.get(ctx, o, offset+int64(got), buf[got:], alive)
		got += n
		return err
	})
}

// get makes one request for len(buf) bytes from offset on, and returns how many came.
func (s *Source) get(ctx context.Context, o object, offset int64, buf []byte, alive func()) (int, error) {
	result, err := s.bucket.DoGetObject(&sdk.GetObjectRequest{ObjectKey: o.key}, []sdk.Option{
		sdk.Range(offset, offset+int64(len(buf))-1),
		sdk.RangeBehavior("standard"), // else OSS answers a range that it does not like with everything
		sdk.IfMatch(o.etag),
		sdk.WithContext(ctx),
	})
	if err != nil {
		return 0, err
	}
	body := result.Response
	defer body.Body.Close()
	if err := o.check(body, offset, len(buf)); err != nil {
		return 0, err
	}
	n := 0
	for n < len(buf) {
		m, err := body.Read(buf[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF) && n < len(buf):
			return n, io.ErrUnexpectedEOF
		case err != nil && !errors.Is(err, io.EOF):
			return n, err
		}
		alive()
	}
	return n, nil
}

// check compares an answer's header with the object that was listed and the range that was asked for.
func (o object) check(answer *sdk.Response, offset int64, length int) error {
	want := fmt.Sprintf("bytes %d-%d/%d", offset, offset+int64(length)-1, o.size)
	got := answer.Headers.Get("Content-Range")
	part, total, _ := strings.Cut(got, "/")
	if answer.StatusCode != http.StatusPartialContent || !strings.HasPrefix(want, part+"/") {
		return fmt.Errorf("asked for %s, it answered with status %d and %.60q: is this endpoint OSS, or what is between?", want, answer.StatusCode, got)
	}
	crc := answer.Headers.Get(sdk.HTTPHeaderOssCRC64)
	if total != strconv.FormatInt(o.size, 10) || o.crc64 != "" && crc != "" && crc != o.crc64 {
		return source.ErrChanged // though its ETag is the same
	}
	return nil
}
