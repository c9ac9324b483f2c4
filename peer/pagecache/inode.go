//go:build unix

package pagecache

import (
	"io/fs"
	"syscall"
)

// inode names a file whatever its path.
type inode struct{ dev, ino uint64 }

func inodeOf(info fs.FileInfo) inode {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}
	}
	return inode{uint64(st.Dev), st.Ino} //nolint:unconvert // Dev is narrower on other systems
}
