package model

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"
)

// uploadChunk is what is sent, and then written down, at a time: large enough for registries over
// object stores (5 MiB parts), small enough to be lost. It is a multiple of HashLayerPiece.
const uploadChunk = 8 << 20

// uploadTries is how often an upload that the registry forgot begins again.
const uploadTries = 3

// errUploadLost means that the registry does not know the upload any more.
var errUploadLost = errors.New("the registry lost the upload")

func uploadError(err error) error {
	if errors.Is(err, errdef.ErrNotFound) {
		return fmt.Errorf("%w: %w", errUploadLost, err)
	}
	return err
}

// alternate fills one of two buffers of uploadChunk bytes while what is in the other is sent: two
// chunks are all the memory that an upload takes. fill returns false at the end. The first error ends
// both, and their context.
func alternate[C any](ctx context.Context, fill func(ctx context.Context, buf []byte) (C, bool, error), send func(ctx context.Context, c C) error) error {
	type filled struct {
		buf   []byte
		chunk C
	}
	free := make(chan []byte, 2)
	full := make(chan filled)
	free <- make([]byte, uploadChunk)
	free <- make([]byte, uploadChunk)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(full)
		for {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			chunk, more, err := fill(ctx, buf)
			if err != nil || !more {
				return err
			}
			select {
			case full <- filled{buf, chunk}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	group.Go(func() error {
		for f := range full {
			if err := send(ctx, f.chunk); err != nil {
				return err
			}
			free <- f.buf // never blocks: there are two buffers in all
		}
		return nil
	})
	return group.Wait()
}
