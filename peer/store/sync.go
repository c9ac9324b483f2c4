package store

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// Sync brings the marked pieces to the disk and then writes down that they are there.
func (b *Blob) Sync() error {
	b.syncing.Lock()
	defer b.syncing.Unlock()

	b.mu.Lock()
	if b.failed != nil || !b.changed {
		defer b.mu.Unlock()
		return b.failed
	}
	b.changed, b.unsynced = false, 0
	// The pieces first, then the files: what is marked in between is left to the next Sync.
	s := state{
		Version: formatVersion, Pieces: slices.Clone(b.marked), Frontier: b.frontier, Sum: b.sum,
		Verified: b.verified, Contradicted: b.contradicted, Skeleton: b.skeleton,
	}
	b.mu.Unlock()

	if err := b.syncFiles(); err != nil {
		// Since the pages that could not be written count as clean, a second try would succeed
		// without having written them (fsync(2), "EIO").
		err = fmt.Errorf("blob %s: sync: %w; close it and look after the disk", b.key.Digest, err)
		b.mu.Lock()
		b.failed = err
		b.mu.Unlock()
		return err
	}
	s.Stamps = b.stamps
	raw, err := s.encode()
	if err == nil {
		err = writeFile(b.dir, "state", raw)
	}
	if err != nil {
		b.mu.Lock()
		b.changed = true
		b.mu.Unlock()
		return fmt.Errorf("blob %s: write its state: %w", b.key.Digest, err)
	}
	return nil
}

// syncFiles syncs the files that were written to, several at once, because many small ones would
// each wait for the file system's journal. b.syncing is held.
func (b *Blob) syncFiles() error {
	var group errgroup.Group
	group.SetLimit(8)
	for i := range b.dirty {
		if !b.dirty[i].Swap(false) {
			continue
		}
		group.Go(func() error {
			f, err := b.store.files.get(b.path(i), false)
			if err != nil {
				return err
			}
			defer b.store.files.put(f)
			// Not fdatasync, which may leave the time of modification behind: after a power cut the
			// file would be hashed again.
			if err := f.Sync(); err != nil {
				return err
			}
			info, err := f.Stat()
			if err != nil {
				return err
			}
			b.stamps[i] = info.ModTime().UnixNano()
			return nil
		})
	}
	return group.Wait()
}

// start starts the worker, which hashes behind the frontier and syncs, until stop is called.
func (b *Blob) start(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	b.stop = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		b.work(ctx)
	}()
}

func (b *Blob) work(ctx context.Context) {
	tick := time.NewTicker(b.store.cfg.SyncEvery)
	defer tick.Stop()
	for {
		due := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			due = true
		case <-b.kick:
		}
		if err := b.workOff(ctx, due, tick.C); err != nil && ctx.Err() == nil {
			b.store.log.WarnContext(ctx, "blob is not synced", slog.String("digest", b.key.Digest.String()), slog.Any("error", err))
		}
	}
}

// workOff hashes until the frontier meets a missing piece, and syncs when it is due.
func (b *Blob) workOff(ctx context.Context, due bool, tick <-chan time.Time) error {
	for {
		b.mu.RLock()
		full := b.unsynced >= b.store.cfg.SyncBytes
		b.mu.RUnlock()
		if due || full {
			if err := b.Sync(); err != nil {
				return err
			}
		}
		select {
		case <-tick:
			due = true
		default:
			due = false
		}
		if more, err := b.hashNext(ctx); err != nil || !more {
			return err
		}
	}
}
