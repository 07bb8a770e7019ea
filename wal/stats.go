package wal

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/wal/journal"
)

// Stats are the counters of a store since it was opened, and what it holds.
type Stats struct {
	Journal journal.Stats
	// Applied is the last journal frame that Badger has.
	Applied uint64

	Checkpoints    uint64
	LastCheckpoint time.Time // zero if none was taken since the store was opened
	Merges         uint64    // compactions because of what was deleted
	Reclaimed      uint64    // value logs rewritten to free their space

	Levels []Level // of Badger's tables, none once the store is closed
}

// Level is a level of Badger's tables.
type Level struct {
	Tables int
	Bytes  int64
}

// counters are the part of Stats that the store counts itself.
type counters struct {
	checkpoints, merges, reclaimed atomic.Uint64
	lastCheckpoint                 atomic.Int64 // Unix nanoseconds, 0 for none
}

// Stats returns the counters. It reads no file.
func (s *Store) Stats() Stats {
	all := Stats{
		Journal: s.journal.Stats(), Applied: s.applier.done(),
		Checkpoints: s.counters.checkpoints.Load(), Merges: s.counters.merges.Load(), Reclaimed: s.counters.reclaimed.Load(),
	}
	if at := s.counters.lastCheckpoint.Load(); at != 0 {
		all.LastCheckpoint = time.Unix(0, at)
	}
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.badgerClosed {
		return all
	}
	for _, l := range s.db.Levels() {
		all.Levels = append(all.Levels, Level{l.NumTables, l.Size})
	}
	return all
}

// DiskUsage returns how many bytes of the disk the journal and Badger's files
// take. It looks at each file's size, and reads none.
func (s *Store) DiskUsage() (journal, badger int64, err error) {
	if journal, err = allocatedIn(filepath.Join(s.dir, journalDir)); err != nil {
		return 0, 0, err
	}
	badger, err = allocatedIn(filepath.Join(s.dir, badgerDir))
	return journal, badger, err
}

// allocatedIn returns how many bytes of the disk the files of a directory take.
func allocatedIn(dir string) (bytes int64, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // else it was deleted meanwhile
			bytes += allocatedBytes(info)
		}
	}
	return bytes, err
}
