package storetest

import (
	"fmt"
	"io"
	"sync"
)

// Memory is a Storage for tests. It keeps the blob in memory.
type Memory struct {
	length int64

	mu      sync.Mutex
	content []byte
	marked  []byte
}

// NewMemory returns an empty Memory for a blob of size bytes in pieces of pieceLength bytes.
func NewMemory(size, pieceLength int64) *Memory {
	pieces := (size + pieceLength - 1) / pieceLength
	return &Memory{length: pieceLength, content: make([]byte, size), marked: make([]byte, (pieces+7)/8)}
}

func (m *Memory) pieces() int {
	return int((int64(len(m.content)) + m.length - 1) / m.length)
}

// ReadAt implements io.ReaderAt.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	n := copy(p, m.content[min(off, int64(len(m.content))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt. What falls into a marked piece is dropped.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off > int64(len(m.content)-len(p)) {
		return 0, fmt.Errorf("write of %d bytes at %d passes the end at %d", len(p), off, len(m.content))
	}
	for done := int64(0); done < int64(len(p)); {
		at := off + done
		i := at / m.length
		n := min(int64(len(p))-done, (i+1)*m.length-at)
		if !m.have(int(i)) {
			copy(m.content[at:], p[done:done+n])
		}
		done += n
	}
	return len(p), nil
}

// Have reports whether piece i is marked.
func (m *Memory) Have(i int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.have(i)
}

func (m *Memory) have(i int) bool {
	return i >= 0 && i < m.pieces() && m.marked[i/8]&(0x80>>(i%8)) != 0
}

// MarkPiece marks piece i.
func (m *Memory) MarkPiece(i int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i < 0 || i >= m.pieces() {
		return fmt.Errorf("piece %d of %d", i, m.pieces())
	}
	m.marked[i/8] |= 0x80 >> (i % 8)
	return nil
}

// Bitmap returns a copy of the marks.
func (m *Memory) Bitmap() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.marked...)
}

// Complete reports whether all pieces are marked.
func (m *Memory) Complete() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.pieces() {
		if !m.have(i) {
			return false
		}
	}
	return true
}

// Bytes returns a copy of the blob.
func (m *Memory) Bytes() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]byte(nil), m.content...)
}
