package wal

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCached tells the system that a part of a file will not be read again
// soon, so that a scrub does not push out what others read. Pages that are
// mapped stay. This is only for speed.
func dropCached(f *os.File, offset, size int64) {
	_ = unix.Fadvise(int(f.Fd()), offset, size, unix.FADV_DONTNEED)
}
