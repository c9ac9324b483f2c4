package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/shoal-project/shoal/internal/retry"
)

// Uploads are kept by their location, a URL that the registry changes with every answer. A caller
// that persists it can go on after a restart.

// StartUpload begins the upload of a blob whose digest need not be known.
func (r *Repository) StartUpload(ctx context.Context) (location string, err error) {
	resp, err := r.upload(ctx, http.MethodPost, r.url("blobs/uploads/"), nil, nil)
	if err != nil {
		return "", r.explain("start an upload", err)
	}
	location, err = r.location(resp, "")
	return location, r.explain("start an upload", err)
}

// MountBlob makes blob d of the repository from, in the same registry, a blob of this one too, without
// moving a byte. Where the registry cannot, for whatever reason (it does not mount, from lacks the
// blob, the credentials may not read from), mounted is false.
func (r *Repository) MountBlob(ctx context.Context, d digest.Digest, from string) (mounted bool, err error) {
	op := fmt.Sprintf("mount blob %s from %s", d, from)
	source := r.Reference
	source.Repository = from
	ctx = auth.AppendRepositoryScope(ctx, source, auth.ActionPull)
	query := url.Values{"mount": {d.String()}, "from": {from}}
	resp, err := r.upload(ctx, http.MethodPost, r.url("blobs/uploads/?"+query.Encode()), nil, nil)
	if refused, ok := errors.AsType[*errcode.ErrorResponse](err); ok && !retry.TransientStatus(refused.StatusCode) {
		return false, nil
	}
	if err != nil {
		return false, r.explain(op, err)
	}
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	// The registry began an upload instead (distribution-spec, "Mounting a blob from another
	// repository"). Left alone it would lie there until the registry's purger comes.
	location, err := r.location(resp, "")
	if err != nil {
		return false, r.explain(op, err)
	}
	_ = r.CancelUpload(ctx, location) // not every registry lets uploads be cancelled
	return false, ctx.Err()
}

// UploadStatus asks how many bytes of an upload the registry has. An upload that it does not know
// (any more) is errdef.ErrNotFound.
func (r *Repository) UploadStatus(ctx context.Context, location string) (next string, offset int64, err error) {
	if err := r.checkLocation(location); err != nil {
		return "", 0, err
	}
	resp, err := r.upload(ctx, http.MethodGet, location, nil, nil)
	if err != nil {
		return "", 0, r.explain("ask for an upload's state", lostUpload(err))
	}
	offset, err = parseRange(resp.Header.Get("Range"))
	if err != nil {
		return "", 0, r.explain("ask for an upload's state", err)
	}
	next, err = r.location(resp, location)
	return next, offset, r.explain("ask for an upload's state", err)
}

// UploadChunk adds chunk, the bytes from offset on, and returns the next location. Where the
// registry or the connection fails, it asks how much of the chunk arrived and sends the rest, after
// a pause, Retry.Tries times. An upload that the registry does not know any more, or of which it
// lost earlier bytes, is errdef.ErrNotFound: begin again with StartUpload.
func (r *Repository) UploadChunk(ctx context.Context, location string, offset int64, chunk []byte) (next string, err error) {
	if err := r.checkLocation(location); err != nil {
		return "", err
	}
	op := fmt.Sprintf("upload the bytes from %d", offset)
	end := offset + int64(len(chunk))
	for try := 0; ; try++ {
		next, wait, err := r.patch(ctx, location, offset, chunk)
		if err == nil {
			return next, nil
		}
		// 416 means that our offset and the registry's differ: asking once more is always right.
		if !retryUpload(err) || try+1 >= r.retry.Tries {
			return "", r.explain(op, lostUpload(err))
		}
		if wait < 0 {
			wait = r.retry.Pause(try)
		}
		if err := retry.Sleep(ctx, wait); err != nil {
			return "", err
		}
		at := int64(0)
		location, at, err = r.UploadStatus(ctx, location)
		switch {
		case err != nil:
			return "", err
		case at == end:
			return location, nil
		case at < offset || at > end:
			return "", r.explain(op, fmt.Errorf("the registry is at byte %d of the upload: %w", at, errdef.ErrNotFound))
		}
		chunk = chunk[at-offset:]
		offset = at
	}
}

// patch makes one attempt. wait is what the registry asks for by Retry-After, -1 for nothing.
func (r *Repository) patch(ctx context.Context, location string, offset int64, chunk []byte) (next string, wait time.Duration, err error) {
	// A chunk that takes longer is stuck: 8 MiB in 5 minutes is 28 KB/s.
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errStalled)
	defer cancel()
	header := http.Header{"Content-Range": {fmt.Sprintf("%d-%d", offset, offset+int64(len(chunk))-1)}}
	resp, err := r.upload(ctx, http.MethodPatch, location, header, chunk)
	if err != nil {
		wait = -1
		if limited, ok := errors.AsType[*throttled](err); ok {
			wait = min(limited.after, r.retry.Max)
		}
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		return "", wait, err
	}
	// Some registries take less than they were sent (distribution-spec: Range of the answer).
	if value := resp.Header.Get("Range"); value != "" {
		if got, err := parseRange(value); err == nil && got != offset+int64(len(chunk)) {
			return "", 0, errPartial
		}
	}
	next, err = r.location(resp, location)
	return next, 0, err
}

var errPartial = errors.New("the registry took a part of the chunk")

func retryUpload(err error) bool {
	if refused, ok := errors.AsType[*errcode.ErrorResponse](err); ok {
		return retry.TransientStatus(refused.StatusCode) || refused.StatusCode == http.StatusRequestedRangeNotSatisfiable
	}
	return errors.Is(err, errPartial) || errors.Is(err, errStalled) || retry.Transient(err)
}

// CommitUpload ends an upload of size bytes as the blob d. The registry compares the digest.
func (r *Repository) CommitUpload(ctx context.Context, location string, d digest.Digest, size int64) error {
	if err := r.checkLocation(location); err != nil {
		return err
	}
	u, err := url.Parse(location)
	if err != nil {
		return err
	}
	query := u.Query()
	query.Set("digest", d.String())
	u.RawQuery = query.Encode()
	_, err = r.upload(ctx, http.MethodPut, u.String(), nil, nil)
	if err == nil {
		return nil
	}
	// A PUT whose answer was lost has worked all the same; its second try finds no upload.
	if ok, existsErr := r.Repository.Blobs().Exists(ctx, ocispec.Descriptor{Digest: d, Size: size}); existsErr == nil && ok {
		return nil
	}
	return r.explain("commit blob "+d.String(), lostUpload(err))
}

// CancelUpload frees what an upload holds in the registry.
func (r *Repository) CancelUpload(ctx context.Context, location string) error {
	if err := r.checkLocation(location); err != nil {
		return err
	}
	_, err := r.upload(ctx, http.MethodDelete, location, nil, nil)
	return r.explain("cancel an upload", err)
}

// throttled carries a Retry-After beside the error document.
type throttled struct {
	error
	after time.Duration
}

func (t *throttled) Unwrap() error { return t.error }

// upload sends one request of an upload and drains the answer's body.
func (r *Repository) upload(ctx context.Context, method, location string, header http.Header, body []byte) (*http.Response, error) {
	ctx = auth.AppendRepositoryScope(ctx, r.Reference, auth.ActionPull, auth.ActionPush)
	req, err := http.NewRequestWithContext(ctx, method, location, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	if method == http.MethodPatch || method == http.MethodPut {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := r.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		err := errorResponse(resp)
		if after, ok := retry.After(resp.Header.Get("Retry-After"), time.Now()); ok {
			err = &throttled{err, after}
		}
		return nil, err
	}
	return resp, nil
}

// location reads where an upload goes on.
func (r *Repository) location(resp *http.Response, old string) (string, error) {
	if resp.Header.Get("Location") == "" && old != "" {
		return old, nil
	}
	u, err := resp.Location()
	if err != nil {
		return "", fmt.Errorf("the registry does not say where the upload goes on: %w", err)
	}
	base := resp.Request.URL
	if u.Hostname() == base.Hostname() && u.Scheme == "http" && base.Scheme == "https" {
		// A registry behind a proxy that ends TLS does not know that it is reached by https.
		u.Scheme, u.Host = base.Scheme, base.Host
	}
	if u.Port() == "" && base.Port() == "443" && u.Hostname() == base.Hostname() {
		u.Host = base.Host
	}
	location := u.String()
	return location, r.checkLocation(location)
}

// checkLocation refuses to send credentials and content anywhere but to the registry itself.
func (r *Repository) checkLocation(location string) error {
	u, err := url.Parse(location)
	if err != nil {
		return fmt.Errorf("upload location: %w", err)
	}
	own, err := url.Parse(r.url(""))
	if err != nil {
		return err
	}
	if u.Scheme != own.Scheme || !strings.EqualFold(u.Host, own.Host) {
		return fmt.Errorf("registry %s sends the upload to another place, %s://%s: refused, it would get the credentials", own.Host, u.Scheme, u.Host)
	}
	return nil
}

// lostUpload makes errdef.ErrNotFound of the answers by which registries say that they do not know
// an upload.
func lostUpload(err error) error {
	var refused *errcode.ErrorResponse
	if !errors.As(err, &refused) {
		return err
	}
	lost := refused.StatusCode == http.StatusNotFound || refused.StatusCode == http.StatusRequestedRangeNotSatisfiable ||
		refused.StatusCode == http.StatusGone
	for _, e := range refused.Errors {
		switch e.Code {
		case errcode.ErrorCodeBlobUploadUnknown, errcode.ErrorCodeBlobUploadInvalid, errcode.ErrorCodeDigestInvalid:
			lost = true
		}
	}
	if lost {
		return fmt.Errorf("%w (%w)", errdef.ErrNotFound, err)
	}
	return err
}

// parseRange returns how many bytes "0-<last>" means. "0-0" is an upload without bytes:
// distribution writes it so, and nobody uploads one byte and stops.
func parseRange(value string) (int64, error) {
	_, last, ok := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	switch {
	case !ok || err != nil || n < 0 || n == math.MaxInt64:
		return 0, fmt.Errorf("the registry answers the range %q: %w", value, errLocal)
	case n == 0:
		return 0, nil
	}
	return n + 1, nil
}
