package wal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/cantuslog/cantus/wal/journal"
)

// For tests of what other packages do not see.
var (
	DecodeEntry       = decodeEntry
	EncodeChecksummed = encodeChecksummed
	DecodeChecksummed = decodeChecksummed
)

// Encode returns e as it is stored in the log of group.
func (e *Entry) Encode(group uint32, epoch uint64) []byte { return e.encode(group, epoch) }

// SmallBadger makes Badger's files small, so that they rotate and are
// compacted.
func (o Options) SmallBadger() Options {
	o.badger = func(b badger.Options) badger.Options {
		return b.WithMemTableSize(64 << 10).WithValueLogFileSize(1 << 20).WithBaseTableSize(64 << 10).
			WithBaseLevelSize(256 << 10).WithValueThreshold(512)
	}
	o.mergeAfter = 256 << 10
	return o
}

// ManyMemtables lets so much be written while a memtable can't be flushed that
// no write waits for it. With few small ones a write may have begun before the
// store learns of the lack, and reads wait for that write.
func (o Options) ManyMemtables() Options {
	others := o.badger
	o.badger = func(b badger.Options) badger.Options { return others(b).WithNumMemtables(1000) }
	return o
}

// MergeAfter sets how many bytes are deleted before tables are merged.
func (o Options) MergeAfter(bytes int64) Options {
	o.mergeAfter = bytes
	return o
}

// Impatient makes Close wait only a moment for a store that has failed.
func (o Options) Impatient() Options {
	o.patience = 100 * time.Millisecond
	return o
}

// CheckpointFile is the content of a checkpoint file.
type CheckpointFile = checkpointFile

// WaitApplied blocks until Badger has all that was acknowledged.
func (s *Store) WaitApplied() bool { return s.applier.wait(s.lastLogsSeq()) }

// Checkpoint takes a checkpoint now.
func (s *Store) Checkpoint() error { return s.takeCheckpoint() }

// Checked returns the last frame of the newest checkpoint.
func (s *Store) Checked() uint64 {
	s.checking.Lock()
	defer s.checking.Unlock()
	return s.checked
}

// WithoutCheckpoint runs fn while no checkpoint is taken.
func (s *Store) WithoutCheckpoint(fn func()) {
	s.checking.Lock()
	defer s.checking.Unlock()
	fn()
}

// Checksum returns the checksum at the end of a batch whose other bytes are b.
func Checksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
}

// EntryChecksum returns the checksum at the end of an encoded entry.
func EntryChecksum(group uint32, index, epoch uint64, b []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, entrySum(group, index, epoch, b))
}

// WalkBadgerLog returns where the complete entries of one of Badger's logs end.
func WalkBadgerLog(path string) (end int64, err error) {
	return walkBadgerLog(path, badgerLogHeader, -1)
}

// ChecksumLine returns the last line of a checksummed file.
func ChecksumLine(b []byte) []byte { return fmt.Appendf(nil, "%08x\n", crc32.Checksum(b, castagnoli)) }

// CompactorsRest decides whether Badger's compactors are to rest at a time, and
// reports whether they do.
func (s *Store) CompactorsRest(now time.Time) bool {
	s.compactors.look(now, compactorRest)
	s.compactors.mu.Lock()
	defer s.compactors.mu.Unlock()
	return s.compactors.resting
}

// NeedCompactors keeps the compactors running until done is called.
func (s *Store) NeedCompactors() (done func()) { return s.compactors.need() }

// Uncompacted reports whether Badger has anything to compact.
func (s *Store) Uncompacted() bool { return !inOrder(s.db) }

// CheckRoom checks the free space, as the store does each second.
func (s *Store) CheckRoom() { s.checkRoom() }

// Floor returns the free space that Badger needs to begin new files.
func (s *Store) Floor() int64 { return s.room.floor }

// ValueLogSize returns the size at which Badger begins another value log.
func (s *Store) ValueLogSize() int64 { return s.db.Opts().ValueLogFileSize }

// Deleted returns how many bytes were deleted from Badger since its tables were
// merged.
func (s *Store) Deleted() int64 { return s.deleted.Load() }

// Reclaim rewrites one value log, if that is worth it and there is space.
func (s *Store) Reclaim() (more bool, err error) { return s.reclaim() }

// MostWritten returns the most that was written to a log file of Badger.
func (s *Store) MostWritten(name string) int64 {
	s.badgerWrite.Lock()
	defer s.badgerWrite.Unlock()
	return s.room.mostWritten(name)
}

// ReplayOps applies operations of a journal's frame to an empty log, as a start
// does.
func ReplayOps(ops ...journal.Op) error {
	if err := checkOps(ops); err != nil {
		return err
	}
	l := newLog(&Store{}, 0)
	for _, op := range ops {
		l.applyOp(1, op, 0)
	}
	return nil
}

// At returns a store that only knows its directory.
func At(dir string) *Store { return &Store{dir: dir} }

// MostDiscarded returns the name of the value log that Badger rewrites next.
func MostDiscarded(dir string) (name string, err error) {
	files, err := discards(dir)
	if err != nil || len(files) == 0 {
		return "", err
	}
	return files[0].name, nil
}

// ApplyToLogs applies a frame without operations to the logs, as if the journal
// had synced it.
func (s *Store) ApplyToLogs(seq uint64) { s.applyToLogs(seq, nil) }

// LastFrame returns the last frame that the logs have.
func (s *Store) LastFrame() uint64 { return s.lastLogsSeq() }

// ReleaseJournal lets the journal reuse the frames up to seq.
func (s *Store) ReleaseJournal(seq uint64) error { return s.releaseJournal(seq) }

// WithAllocate makes allocate stand in for fallocate where Badger maps a new
// file.
func (o Options) WithAllocate(allocate func(fd uintptr, bytes int64) error) Options {
	o.allocate = allocate
	return o
}

// WithUnmappable makes the mapping of the new files fail for which unmappable
// returns true.
func (o Options) WithUnmappable(unmappable func(path string) bool) Options {
	o.unmappable = unmappable
	return o
}

// BadgerLog passes a message of Badger's to the store, as an error or as a
// warning.
func (s *Store) BadgerLog(warning bool, format string, args ...any) {
	l := badgerLogger{s.opts.Logger, s.fail, s.shortage, func() {}}
	if warning {
		l.Warningf(format, args...)
	} else {
		l.Errorf(format, args...)
	}
}

// Stored returns an entry as Badger has it.
func (l *Log) Stored(index uint64) ([]byte, error) { return l.load(index, nil) }

// SetStored has Badger return a value for an entry.
func (l *Log) SetStored(index uint64, value []byte) error {
	at, err := l.look(index)
	if err != nil {
		return err
	}
	return l.restoreAnew(index, value, at)
}
