package wal

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writeOutTail is what is left at the end of a file: the kernel keeps and writes
// pages in blocks of up to this, and one that is still being filled would be
// written again and again.
const writeOutTail = 2 << 20

// writeOut has the system begin to write what Badger's files in dir hold in
// memory only. Badger syncs a value log that is full, which is much at once:
// whoever wants to sync the journal would wait until all of it is written. This
// is only for speed, so errors are for those to see who sync.
func writeOut(dir string) {
	names, _ := writableBadgerLogs(dir)
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		// What Badger has not come to yet is a hole.
		if end, err := f.Seek(0, unix.SEEK_HOLE); err == nil && end > writeOutTail {
			_ = unix.SyncFileRange(int(f.Fd()), 0, (end-1)&^(writeOutTail-1), unix.SYNC_FILE_RANGE_WRITE)
		}
		_ = f.Close()
	}
}
