package store

import (
	"container/list"
	"io/fs"
	"os"
	"strings"
	"sync"
)

// fileCache keeps the files in use and the most recently used others open, so that the number of
// descriptors does not grow with the model.
type fileCache struct {
	limit int

	mu     sync.Mutex
	byPath map[string]*list.Element
	recent *list.List // of *openFile, the most recently used first
	closed bool
}

// openFile is a file of the cache. Only positioned reads and writes are made on it: its offset is
// nobody's.
type openFile struct {
	*os.File
	path     string
	writable bool
	users    int
	gone     bool // not in the cache any more; the last user closes it
}

func newFileCache(limit int) *fileCache {
	return &fileCache{limit: limit, byPath: map[string]*list.Element{}, recent: list.New()}
}

// get opens path; put must be called. The error is the file system's, or fs.ErrClosed.
func (c *fileCache) get(path string, write bool) (*openFile, error) {
	if f, err := c.cached(path, write); f != nil || err != nil {
		return f, err
	}
	open := os.Open
	if write {
		open = openWritable
	}
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	f := &openFile{File: file, path: path, writable: write, users: 1}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		file.Close()
		return nil, fs.ErrClosed
	}
	if old, ok := c.byPath[path]; ok {
		c.drop(old) // a reader's, or that of another who opened it at the same time
	}
	c.byPath[path] = c.recent.PushFront(f)
	c.shrink()
	return f, nil
}

func (c *fileCache) cached(path string, write bool) (*openFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fs.ErrClosed
	}
	at, ok := c.byPath[path]
	if !ok {
		return nil, nil
	}
	f := at.Value.(*openFile)
	if write && !f.writable {
		return nil, nil
	}
	f.users++
	c.recent.MoveToFront(at)
	return f, nil
}

// put gives back what get returned.
func (c *fileCache) put(f *openFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.users--
	if f.gone && f.users == 0 {
		f.Close()
	}
	c.shrink()
}

// shrink closes the least recently used idle files above the limit.
func (c *fileCache) shrink() {
	for at := c.recent.Back(); at != nil && c.recent.Len() > c.limit; {
		before := at.Prev()
		if at.Value.(*openFile).users == 0 {
			c.drop(at)
		}
		at = before
	}
}

// drop takes a file out of the cache; c.mu is held.
func (c *fileCache) drop(at *list.Element) {
	f := at.Value.(*openFile)
	c.recent.Remove(at)
	delete(c.byPath, f.path)
	f.gone = true
	if f.users == 0 {
		f.Close()
	}
}

// forget closes the files below dir: an open descriptor would keep the bytes of a removed file.
func (c *fileCache) forget(dir string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, at := range c.byPath {
		if strings.HasPrefix(path, dir+string(os.PathSeparator)) {
			c.drop(at)
		}
	}
}

// close closes all; files still in use are closed by their last user.
func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, at := range c.byPath {
		c.drop(at)
	}
}
