package wal

import (
	"os"
	"path/filepath"
	"syscall"
)

// writeOut has the system begin to write what Badger's files in dir hold in
// memory only. Badger syncs a value log that is full, which is much at once:
// whoever wants to sync the journal would wait until all of it is written. This
// is only for speed, so errors are for those to see who sync.
func writeOut(dir string) {
	names, _ := writableBadgerLogs(dir)
	for _, name := range names {
		if f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0); err == nil {
			const syncFileRangeWrite = 2
			_ = syscall.SyncFileRange(int(f.Fd()), 0, 0, syncFileRangeWrite)
			_ = f.Close()
		}
	}
}
