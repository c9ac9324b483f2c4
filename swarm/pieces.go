package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"

	"github.com/shoal-project/shoal/model"
)

// errPiece says that bytes are not those of the piece.
var errPiece = errors.New("bytes do not match the piece hash")

// pieces is the one way by which bytes enter a Storage, from the origin and from peers alike. It
// remembers the hashes of the leaves of unfinished pieces, so that nothing is read back.
type pieces struct {
	torrent Torrent
	length  int64
	store   Storage
	missing atomic.Int64
	done    chan struct{} // closed when none is missing
	onPiece func(i int)   // called once for each new piece, no lock held
	fail    func(error)   // told of errors of the Storage, which end the session

	// A piece's lock covers writing and hashing: of two writers of one block the later decides
	// both the bytes and their hash. Once a piece is marked, late blocks of it are dropped.
	locks [64]sync.Mutex
	mu    sync.Mutex
	open  map[int][]leaf
	ended bool // no write reaches the Storage any more
}

// errEnded is what late blocks of a session that is over get.
var errEnded = errors.New("the session is over")

type leaf struct {
	hash  model.Hash
	known bool
}

func newPieces(t Torrent, s Storage, onPiece func(int), fail func(error)) *pieces {
	p := &pieces{
		torrent: t, length: model.PieceLength(t.Size), store: s,
		done: make(chan struct{}), onPiece: onPiece, fail: fail, open: map[int][]leaf{},
	}
	for i := range t.Pieces {
		if !s.Have(i) {
			p.missing.Add(1)
		}
	}
	if p.missing.Load() == 0 {
		close(p.done)
	}
	return p
}

func (p *pieces) complete() bool { return p.missing.Load() == 0 }

// leaves returns the leaves of piece i; its lock is held.
func (p *pieces) leaves(i int) []leaf {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.open[i]
	if l == nil {
		_, length := p.torrent.span(i)
		l = make([]leaf, (length+model.BlockSize-1)/model.BlockSize)
		p.open[i] = l
	}
	return l
}

func (p *pieces) forget(i int) {
	p.mu.Lock()
	delete(p.open, i)
	p.mu.Unlock()
}

// writeAt writes b at off within piece i.
func (p *pieces) writeAt(i int, b []byte, off int64) (int, error) {
	start, length := p.torrent.span(i)
	if off < 0 || off+int64(len(b)) > length {
		return 0, fmt.Errorf("write of %d bytes at %d passes the end of piece %d", len(b), off, i)
	}
	lock := &p.locks[i%len(p.locks)]
	lock.Lock()
	defer lock.Unlock()
	if p.isEnded() {
		return 0, errEnded
	}
	if p.store.Have(i) {
		return len(b), nil
	}
	leaves := p.leaves(i)
	hashed := make(chan struct{})
	go func() { // beside the write: a connection's blocks come one after the other
		defer close(hashed)
		hashLeaves(leaves, b, off, length)
	}()
	n, err := p.store.WriteAt(b, start+off)
	<-hashed
	if err != nil {
		p.forget(i) // what was hashed is not there
		p.fail(err)
	}
	return n, err
}

// hashLeaves sets the leaves that b has a part of, at off in a piece of length bytes.
func hashLeaves(leaves []leaf, b []byte, off, length int64) {
	end := off + int64(len(b))
	first := (off + model.BlockSize - 1) / model.BlockSize // that b has from its start on
	after := end / model.BlockSize                         // the first that b does not have to its end
	if end == length {
		after = int64(len(leaves))
	}
	for k := off / model.BlockSize; k*model.BlockSize < end; k++ {
		leaves[k].known = false // half a leaf is read back when the piece is checked
	}
	if first >= after {
		return
	}
	for k, h := range model.AppendLeaves(nil, b[first*model.BlockSize-off:min(after*model.BlockSize, length)-off]) {
		leaves[first+int64(k)] = leaf{h, true}
	}
}

// seal checks piece i and marks it. It returns errPiece where the bytes are wrong, in which case
// all of the piece has to be written again.
func (p *pieces) seal(i int) error {
	lock := &p.locks[i%len(p.locks)]
	lock.Lock()
	if p.store.Have(i) {
		lock.Unlock()
		p.forget(i)
		return nil
	}
	err := errEnded
	if !p.isEnded() {
		if err = p.check(i); err == nil {
			err = p.store.MarkPiece(i)
		}
	}
	p.forget(i)
	lock.Unlock()
	if err != nil {
		if !errors.Is(err, errPiece) && !errors.Is(err, errEnded) {
			p.fail(err)
		}
		return err
	}
	if p.missing.Add(-1) == 0 {
		close(p.done)
	}
	p.onPiece(i)
	return nil
}

func (p *pieces) check(i int) error {
	start, length := p.torrent.span(i)
	leaves := p.leaves(i)
	hashes := make([]model.Hash, len(leaves))
	var buf []byte
	for k, l := range leaves {
		if l.known {
			hashes[k] = l.hash
			continue
		}
		if buf == nil {
			buf = make([]byte, model.BlockSize)
		}
		from := int64(k) * model.BlockSize
		b := buf[:min(model.BlockSize, length-from)]
		if _, err := p.store.ReadAt(b, start+from); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("piece %d of %s: %w", i, p.torrent.Digest, err)
		}
		hashes[k] = model.AppendLeaves(nil, b)[0]
	}
	if model.FoldPiece(hashes, p.length, p.torrent.Size) != p.torrent.Pieces[i] {
		return errPiece
	}
	return nil
}

func (p *pieces) isEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// end waits for the writes under way and refuses all later ones.
func (p *pieces) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	for i := range p.locks {
		p.locks[i].Lock()
		p.locks[i].Unlock() //nolint:staticcheck // taken only to wait for its holder
	}
}

// OpenTorrent implements the library's storage.ClientImpl.
func (p *pieces) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(m metainfo.Piece) storage.PieceImpl { return piece{p, m.Index()} },
		Close: func() error { return nil },
	}, nil
}

// piece is the library's view of one piece.
type piece struct {
	all *pieces
	i   int
}

func (p piece) ReadAt(b []byte, off int64) (int, error) {
	start, _ := p.all.torrent.span(p.i)
	return p.all.store.ReadAt(b, start+off)
}

func (p piece) WriteAt(b []byte, off int64) (int, error) { return p.all.writeAt(p.i, b, off) }

// SelfHash implements the library's storage.SelfHashing: the hash that the info has for the piece
// where its bytes are right in all 32 bytes, zero where they are not. The piece is marked here and
// not in MarkComplete, so that no late block comes in between.
func (p piece) SelfHash() (sum metainfo.Hash, err error) {
	switch err := p.all.seal(p.i); {
	case errors.Is(err, errPiece):
		return sum, nil
	case err != nil:
		return sum, err
	}
	copy(sum[:], p.all.torrent.Pieces[p.i][:])
	return sum, nil
}

func (p piece) MarkComplete() error { return nil }

func (p piece) MarkNotComplete() error { return nil }

func (p piece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.all.store.Have(p.i)}
}
