package pagecache

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// minCore is mincore(2), which x/sys/unix does not wrap. m is not empty, vec has a byte for each page.
func minCore(m, vec []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(len(m)), uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	if errno != 0 {
		return errno
	}
	return nil
}
