package wal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// writeOut has the system begin to write what the newest value log in dir holds
// in memory only. Badger syncs a value log that is full, which is much at once:
// whoever wants to sync the journal would wait until all of it is written. This
// is only for speed, so errors are for those to see who sync.
func writeOut(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range slices.Backward(entries) { // sorted, and their numbers are of one width
		if !strings.HasSuffix(e.Name(), ".vlog") {
			continue
		}
		if f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0); err == nil {
			const syncFileRangeWrite = 2
			_ = syscall.SyncFileRange(int(f.Fd()), 0, 0, syncFileRangeWrite)
			_ = f.Close()
		}
		return
	}
}
