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
// ignored here and show in a later sync.
func writeOut(dir string) {
	names, _ := writableBadgerLogs(dir)
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		// The part that Badger has not written yet is a hole.
		if end, err := f.Seek(0, unix.SEEK_HOLE); err == nil && end > writeOutTail {
			_ = unix.SyncFileRange(int(f.Fd()), 0, (end-1)&^(writeOutTail-1), unix.SYNC_FILE_RANGE_WRITE)
		}
		_ = f.Close()
	}
}
