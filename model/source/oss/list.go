package oss

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	sdk "github.com/aliyun/aliyun-oss-go-sdk/oss"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/model/source"
)

// parallelHeads is how many objects are asked for their checksums at once.
const parallelHeads = 16

// List implements model.Source. Objects that only mark a directory are passed over. Checksums are OSS's
// CRC64, one HEAD an object, because listings have none; model.Pack writes them into the image, so that
// the next version's packer knows an unchanged object without reading it and without a state of its own.
// A key that cannot be a file's path is an error that names it, and so is a directory without files.
func (s *Source) List(ctx context.Context) ([]model.File, error) {
	objects, err := s.listObjects(ctx)
	if err != nil {
		return nil, err
	}
	group, headCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelHeads)
	for i := range objects {
		group.Go(func() error {
			if err := headCtx.Err(); err != nil {
				return err // another one failed
			}
			return s.head(headCtx, &objects[i])
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	files := make([]model.File, len(objects))
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.listed)
	for i, o := range objects {
		f := model.File{Path: strings.TrimPrefix(o.key, s.prefix), Size: o.size, Checksum: "etag:" + o.etag, Revision: o.etag + "/" + o.crc64}
		if o.crc64 != "" {
			f.Checksum = "crc64-ecma:" + o.crc64
		}
		files[i] = f
		s.listed[f.Path] = o
	}
	return files, nil
}

// listObjects pages through the keys below the prefix.
func (s *Source) listObjects(ctx context.Context) ([]object, error) {
	var objects []object
	passed := 0
	for token := ""; ; {
		var page sdk.ListObjectsResultV2
		err := s.do(ctx, s.prefix, func(ctx context.Context, _ func()) (err error) {
			page, err = s.bucket.ListObjectsV2(sdk.Prefix(s.prefix), sdk.MaxKeys(1000), sdk.ContinuationToken(token), sdk.WithContext(ctx))
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, listed := range page.Objects {
			o, take, err := s.choose(listed)
			if err != nil {
				return nil, err
			}
			if !take {
				passed++
				continue
			}
			objects = append(objects, o)
		}
		if !page.IsTruncated {
			break
		}
		if page.NextContinuationToken == "" || page.NextContinuationToken == token {
			return nil, fmt.Errorf("%s: the listing does not go on: is this endpoint OSS?", s)
		}
		token = page.NextContinuationToken
	}
	switch {
	case len(objects) > 0:
		return objects, nil
	case passed > 0:
		return nil, fmt.Errorf("%s: none of its %d objects is a file that the patterns choose: check include and exclude", s, passed)
	}
	return nil, fmt.Errorf("%s: there is no object: check the path, which is a directory, and that the upload is complete", s)
}

// choose reports whether a listed object is one of the model's files.
func (s *Source) choose(listed sdk.ObjectProperties) (o object, take bool, err error) {
	wrong := func(reason string) error {
		return fmt.Errorf("%s: %s: rename or remove the object, or exclude it", s.name(strconv.Quote(listed.Key)), reason)
	}
	path, below := strings.CutPrefix(listed.Key, s.prefix)
	if !below {
		return o, false, wrong("the listing is of another prefix")
	}
	if listed.Size == 0 && (path == "" || strings.HasSuffix(path, "/")) {
		return o, false, nil // a console's mark of a directory
	}
	if !s.cfg.Files.Match(path) {
		return o, false, nil
	}
	if bad, ok := errors.AsType[*model.PathError](model.CheckPath(path)); ok {
		return o, false, wrong("as a file's path the key " + bad.Reason)
	}
	if listed.Type == "Symlink" {
		return o, false, wrong("is a symbolic link, which says nothing about the content behind it")
	}
	return object{key: listed.Key, size: listed.Size, etag: listed.ETag}, true, nil
}

// head asks whether the object is still the one that was listed, and for its checksum.
func (s *Source) head(ctx context.Context, o *object) error {
	return s.do(ctx, o.key, func(ctx context.Context, _ func()) error {
		header, err := s.bucket.GetObjectDetailedMeta(o.key, sdk.IfMatch(o.etag), sdk.WithContext(ctx))
		if err != nil {
			return err
		}
		if header.Get("Content-Length") != strconv.FormatInt(o.size, 10) {
			return source.ErrChanged
		}
		crc := header.Get(sdk.HTTPHeaderOssCRC64)
		if crc == "" {
			return nil
		}
		n, err := strconv.ParseUint(crc, 10, 64)
		if err != nil {
			return fmt.Errorf("its CRC64 is %.40q, which is no number: is this endpoint OSS?", crc)
		}
		o.crc64 = strconv.FormatUint(n, 10)
		return nil
	})
}
