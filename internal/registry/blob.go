package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/retry"
)

// OpenRange reads n bytes of a blob from byte off. A body that breaks off, ends early or stalls is
// asked for again from where it stopped; after Retry.Tries times without a single new byte the
// reader fails. The bytes are not verified: a caller checks their digest. Errors are *Error.
func (r *Repository) OpenRange(ctx context.Context, desc ocispec.Descriptor, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off+n > desc.Size {
		return nil, fmt.Errorf("blob %s: range %d+%d is outside its %d bytes", desc.Digest, off, n, desc.Size)
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", desc.Digest, err)
	}
	ctx = auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionPull)
	ctx, cancel := context.WithCancelCause(ctx)
	reader := &rangeReader{ctx: ctx, cancel: cancel, repo: r, desc: desc, at: off, end: off + n}
	if n > 0 {
		// The first request is made here, so that a missing blob is an error of OpenRange.
		if err := reader.open(); err != nil { //nolint:contextcheck // the reader carries it
			_ = reader.Close()
			return nil, r.explain("read blob "+desc.Digest.String(), err)
		}
	}
	return reader, nil
}

// rangeReader reads [at, end) of a blob over as many responses as it takes.
type rangeReader struct {
	ctx    context.Context // of the whole read: io.Reader has no place for it
	cancel context.CancelCauseFunc
	repo   *Repository
	desc   ocispec.Descriptor
	at     int64
	end    int64
	failed int // tries since the last new byte

	body     io.ReadCloser
	endBody  context.CancelFunc
	watchdog *time.Timer
}

var errStalled = errors.New("the registry sent nothing for too long")

// open asks for the rest of the range.
func (r *rangeReader) open() error {
	ctx, cancel := context.WithCancel(r.ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.repo.url("blobs/"+r.desc.Digest.String()), nil)
	if err != nil {
		cancel()
		return err
	}
	whole := r.at == 0 && r.end == r.desc.Size
	if !whole {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.at, r.end-1))
	}
	resp, err := r.repo.do(req) //nolint:bodyclose // closeBody closes it
	if err != nil {
		cancel()
		return err
	}
	r.body, r.endBody = resp.Body, cancel
	r.watchdog = time.AfterFunc(r.repo.stall, cancel)
	if err := r.align(resp, whole); err != nil {
		r.closeBody()
		return err
	}
	return nil
}

// align makes sure that the body's next byte is the blob's byte r.at.
func (r *rangeReader) align(resp *http.Response, whole bool) error {
	switch resp.StatusCode {
	case http.StatusPartialContent:
		if got, want := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", r.at); !strings.HasPrefix(got, want) {
			return fmt.Errorf("asked for bytes from %d, the registry answered %q: %w", r.at, got, errLocal)
		}
		return nil
	case http.StatusOK:
		if whole {
			if got := resp.ContentLength; got >= 0 && got != r.desc.Size {
				return fmt.Errorf("the registry has %d bytes, the manifest says %d: %w", got, r.desc.Size, errLocal)
			}
			return nil
		}
		// The registry ignores ranges. Its bytes before ours are thrown away.
		_, err := io.CopyN(io.Discard, resetting{r}, r.at)
		return err
	}
	return fmt.Errorf("unexpected status %d: %w", resp.StatusCode, errLocal)
}

// resetting reads the body and keeps the watchdog quiet while bytes come, and while the limiter holds them up.
type resetting struct{ r *rangeReader }

func (b resetting) Read(p []byte) (int, error) {
	limiter := b.r.repo.limiter
	if limiter != nil {
		p = p[:min(len(p), limiter.Burst())]
	}
	b.r.watchdog.Reset(b.r.repo.stall)
	n, err := b.r.body.Read(p)
	stopped := b.r.watchdog.Stop()
	if err != nil && !errors.Is(err, io.EOF) && !stopped && b.r.ctx.Err() == nil {
		err = errStalled
	}
	if limiter != nil && n > 0 {
		if late := limiter.WaitN(b.r.ctx, n); late != nil && err == nil {
			err = late // the read's context ends
		}
	}
	return n, err
}

// Read implements io.Reader.
func (r *rangeReader) Read(p []byte) (int, error) {
	if r.at == r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, context.Cause(r.ctx)
		}
		n, err := r.next(p)
		if n > 0 {
			r.at += int64(n)
			r.failed = 0
			return n, nil
		}
		if err := r.again(err); err != nil {
			return 0, r.repo.explain("read blob "+r.desc.Digest.String(), err)
		}
	}
}

func (r *rangeReader) next(p []byte) (int, error) {
	if r.body == nil {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	n, err := resetting{r}.Read(p[:min(int64(len(p)), r.end-r.at)])
	if err != nil {
		r.closeBody()
	}
	if errors.Is(err, io.EOF) {
		err = errShortBody
	}
	return n, err
}

// again waits before the next try, or returns why there is none.
func (r *rangeReader) again(err error) error {
	if err == nil {
		return nil // a Read of no bytes and no error
	}
	var refused *errcode.ErrorResponse
	if errors.As(err, &refused) || errors.Is(err, errLocal) || r.ctx.Err() != nil {
		return err // the transport's own retries are used up, or there is no use in them
	}
	r.failed++
	if r.failed >= r.repo.retry.Tries {
		return fmt.Errorf("gave up at byte %d after %d tries: %w", r.at, r.failed, err)
	}
	return retry.Sleep(r.ctx, r.repo.retry.Pause(r.failed-1))
}

func (r *rangeReader) closeBody() {
	if r.body == nil {
		return
	}
	r.watchdog.Stop()
	r.endBody()
	r.body.Close()
	r.body = nil
}

// Close implements io.Closer. It must not run beside a Read: the context ends a Read that waits.
func (r *rangeReader) Close() error {
	r.cancel(io.ErrClosedPipe)
	r.closeBody()
	return nil
}

// errorResponse reads a registry's error document (distribution-spec, "Error codes").
func errorResponse(resp *http.Response) error {
	e := &errcode.ErrorResponse{Method: resp.Request.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if err != nil {
		return e // the status says enough
	}
	var document struct {
		Errors errcode.Errors `json:"errors"`
	}
	if json.Unmarshal(raw, &document) == nil {
		e.Errors = document.Errors
	}
	return e
}
