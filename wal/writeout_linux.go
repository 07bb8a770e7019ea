package wal

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writeOutTail is how much is left out at the end of a file. The kernel writes
// pages in blocks of up to this size, and would write a block that is still
// being filled again and again.
const writeOutTail = 2 << 20

// writeOut has the system begin to write the dirty pages of Badger's files in
// dir. Badger syncs a full value log in one go, and a sync of the journal would
// have to wait until all of it is written. This is only for speed: errors are
// ignored here and show in a later sync. most returns an upper bound of the
// bytes that were written to a file.
func writeOut(dir string, most func(name string) int64) {
	names, _ := writableBadgerLogs(dir)
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if end := writeOutEnd(f, most(name)); end > 0 {
			_ = unix.SyncFileRange(int(f.Fd()), 0, end, unix.SYNC_FILE_RANGE_WRITE)
		}
		_ = f.Close()
	}
}

// writeOutEnd returns up to where a file of at most most written bytes is
// written out. The part that Badger has not written yet is a hole, except that
// the system may have read ahead there: it reads up to 8 MiB around a page that
// Badger writes to, and allocated space that was read counts as data.
func writeOutEnd(f *os.File, most int64) int64 {
	end, err := f.Seek(0, unix.SEEK_HOLE)
	if end = min(end, most); err != nil || end <= writeOutTail {
		return 0
	}
	return (end - 1) &^ (writeOutTail - 1)
}
