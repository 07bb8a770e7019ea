package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/cantuslog/cantus/wal/journal"
)

func (o Options) badgerOptions(dir string) badger.Options {
	b := badger.DefaultOptions(dir).
		WithSyncWrites(false).
		WithDetectConflicts(false). // one writer
		WithBypassLockGuard(true).  // the data directory has its own lock
		WithNumVersionsToKeep(1).
		WithValueThreshold(1 << 10).     // batches go to the value log, once
		WithValueLogFileSize(128 << 20). // mapped whole; small, so that trims free space
		WithVerifyValueChecksum(true).   // Badger believes a value's header otherwise, and panics
		WithMemTableSize(16 << 20).      // keys and small values only
		WithNumMemtables(3).
		WithNumCompactors(2).
		WithCompression(options.None).
		WithBlockCacheSize(0). // nothing is compressed or encrypted: the page cache does
		WithMetricsEnabled(false).
		WithChecksumVerificationMode(options.OnBlockRead)
	if o.badger != nil {
		b = o.badger(b)
	}
	return b
}

// openBadger opens the store behind the journal.
func (s *Store) openBadger() error {
	o := s.opts.badgerOptions(filepath.Join(s.dir, badgerDir)).
		WithLogger(badgerLogger{s.opts.Logger, s.fail, s.shortage, func() { s.mapped.awaitFile() }})
	if err := s.roomToOpen(o); err != nil {
		return err
	}
	if err := checkTables(o); err != nil {
		return blame(err)
	}
	if err := s.attachMapped(o.Dir); err != nil {
		return blame(err)
	}
	db, err := tryBadger(o)
	if err != nil {
		s.detachMapped()
		if full := s.roomToOpen(o); full != nil {
			return full // the space ran out meanwhile
		}
		return fmt.Errorf("open %s: %w", o.Dir, blame(err))
	}
	s.db, s.compactors.db = db, db
	s.room, err = newRoom(s.opts, db.Opts(), s.mapped, &s.starting.replayBytes)
	return err
}

// attachMapped has the blocks of the files allocated that Badger creates in
// dir, until detachMapped.
func (s *Store) attachMapped(dir string) (err error) {
	if err = os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if s.mapped, err = newMappedFiles(dir, s.opts.allocate, s.mergeLacks); err != nil {
		return err
	}
	s.mapped.unmappable = s.opts.unmappable
	if s.detach, err = s.mapped.attach(dir); err == nil {
		err = s.mapped.hold(reserveBytes)
	}
	if err != nil {
		s.detachMapped()
	}
	return err
}

func (s *Store) detachMapped() {
	if s.detach != nil {
		s.detach()
	}
	s.mapped.close()
}

// roomToOpen returns ErrNoSpace unless there is the space that Badger takes
// when it opens: it begins new files, and flushes the last run's memtables to
// tables.
func (s *Store) roomToOpen(o badger.Options) error {
	tables, err := memtableRoom(o.Dir)
	if err != nil {
		return err
	}
	return spare(s.opts.FreeSpace, s.dir, floorOf(o)+tables)
}

// prepare reserves the space for a write to Badger, which must come next.
// badgerWrite is held. The error wraps ErrNoSpace if there is no space.
func (s *Store) prepare(d demand) error {
	if err := s.Failed(); err != nil {
		return err // Badger may have no memtable, and ends the process then
	}
	if err := s.room.take(d); err != nil {
		return err
	}
	s.compactors.wrote(d.memory)
	return nil
}

func tryBadger(o badger.Options) (db *badger.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	return badger.Open(o)
}

// blame wraps an error in ErrDamaged unless the system caused it.
func blame(err error) error {
	if e, environmental := explain(err); environmental {
		return e
	}
	if errors.Is(err, ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// recoverDamage turns a panic into an error. Badger panics on some damage to
// its files, and the system sends a signal for a mapped page that can't be
// read.
func recoverDamage(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: badger: %v", ErrDamaged, p)
	}
}

// view runs fn in a read transaction. fn must not call back into the store.
// The error is what fn returns, ErrClosed, or wraps ErrDamaged.
func (s *Store) view(fn func(*badger.Txn) error) (err error) {
	s.reading.RLock()
	defer s.reading.RUnlock()
	if s.badgerClosed {
		return ErrClosed
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverDamage(&err)
	return s.db.View(fn)
}

// badgerApplied returns the last frame that was applied to Badger, 0 if none.
func (s *Store) badgerApplied() (seq uint64, err error) {
	return s.storedIndex(opApplied)
}

// storedIndex returns the number that Badger has for a key of one byte, 0 if it
// has none.
func (s *Store) storedIndex(key byte) (n uint64, err error) {
	err = s.view(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte{key})
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		n, err = valueIndex(item)
		return err
	})
	return n, err
}

// syncBadger syncs the files under dir that Badger writes without syncing them:
// its counts of what was deleted from value logs, which it never makes again,
// value logs and memtable logs, including those of rotated memtables that are
// not flushed yet, which Badger's own Sync leaves out. A file that disappears
// meanwhile belonged to a memtable whose table Badger has synced.
func syncBadger(dir string) error {
	return syncDir(dir, func(name string) bool { return name == discardFile || isBadgerLog(name) })
}

// syncDir syncs the files in dir that which selects, and dir itself.
func syncDir(dir string, which func(name string) bool) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !n.Type().IsRegular() || !which(n.Name()) {
			continue
		}
		if err := syncFile(filepath.Join(dir, n.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return journal.OSFS.SyncDir(dir)
}

// reclaim has Badger rewrite one value log of which a large enough part was
// deleted (see discardRatio), and reports whether there may be another one. The
// error wraps ErrNoSpace if more could be reclaimed with more space.
// Badger would remove the old file before what it moved is synced; an open
// iterator makes it keep the file until then. Meanwhile frames wait in the
// applier's queue, and commits go on.
func (s *Store) reclaim() (more bool, err error) {
	s.checking.Lock()
	defer s.checking.Unlock()
	defer s.compactors.need()()
	if err := s.Failed(); err != nil {
		return false, err
	}
	unmerged := s.mergeDeleted() // without space for that, others may do
	if unmerged != nil && !errors.Is(unmerged, ErrNoSpace) {
		return false, unmerged
	}
	ratio, left, err := s.discardRatio()
	if errors.Is(err, badger.ErrNoRewrite) {
		return false, unmerged
	}
	if err != nil {
		return false, err
	}
	if err := s.mayRewrite(ratio); errors.Is(err, ErrDamaged) {
		s.opts.Logger.Error("space is not reclaimed", "err", err)
		return false, nil
	} else if err != nil {
		return false, err
	}
	s.badgerWrite.Lock()
	err = s.Failed()
	if err == nil {
		err = s.room.holdToRewrite(left)
	}
	if err != nil {
		err = errors.Join(err, s.room.rewritten())
		s.badgerWrite.Unlock()
		return false, err
	}
	txn := s.db.NewTransaction(false)
	guard := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{opApplied}})
	err = s.db.RunValueLogGC(ratio)
	more = err == nil
	merr := s.room.rewritten()
	s.badgerWrite.Unlock()
	if more {
		err = merr
	}
	if more && err == nil {
		err = s.syncRewritten()
	}
	if err != nil && !errors.Is(err, badger.ErrNoRewrite) && !errors.Is(err, badger.ErrRejected) {
		return false, err // the iterator stays open: the old file is needed
	}
	// A reader may have a pointer into the old file.
	s.reading.Lock()
	guard.Close()
	s.reading.Unlock()
	txn.Discard()
	if !more {
		return false, unmerged
	}
	s.counters.reclaimed.Add(1)
	return true, nil
}

// syncRewritten makes what a rewrite has moved durable, and records how far
// Badger's logs are intact now: the journal does not have the new keys, so
// nothing replaces those that damage to a memtable log costs. Without space
// for that, the next checkpoint records it.
func (s *Store) syncRewritten() error {
	dir := filepath.Join(s.dir, badgerDir)
	ends, err := badgerLogEnds(dir, s.badgerLogs)
	if err == nil {
		err = syncBadger(dir)
	}
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, checkpointName)
	var at checkpointFile
	if err = readChecksummed(path, &at); err == nil {
		at.BadgerLogs = ends
		err = writeChecksummed(path, at)
	}
	switch {
	case err == nil:
		s.badgerLogs = ends
	case isNoSpace(err), errors.Is(err, ErrDamaged), errors.Is(err, fs.ErrNotExist):
		s.opts.Logger.Warn("how far Badger's logs are intact is recorded by the next checkpoint", "err", err)
		return nil
	}
	return err
}

// mergeDeleted merges tables if enough was deleted. The error wraps ErrNoSpace
// if there is no space for that.
func (s *Store) mergeDeleted() error {
	if !s.muchDeleted() {
		return nil
	}
	if err := s.roomToCompact(); err != nil {
		return err
	}
	return s.compact()
}

// muchDeleted reports whether enough was deleted for a compaction: at least a
// value log, and as much as all tables, so that rewriting the tables costs less
// than it frees.
func (s *Store) muchDeleted() bool {
	if after := s.opts.mergeAfter; after > 0 {
		return s.deleted.Load() >= after
	}
	return s.deleted.Load() >= max(s.db.Opts().ValueLogFileSize, s.tableBytes())
}

// tableBytes returns the size of all of Badger's tables.
func (s *Store) tableBytes() int64 {
	bytes := int64(0)
	for _, l := range s.db.Levels() {
		bytes += l.Size
	}
	return bytes
}

// roomToCompact returns an error that wraps ErrNoSpace unless there is space
// for a compaction, which writes new tables before it deletes old ones.
func (s *Store) roomToCompact() error {
	if err := s.mergeWaits(); err != nil {
		return err
	}
	return spare(s.opts.FreeSpace, s.room.dir, s.room.floor+min(s.tableBytes(), s.db.Opts().ValueLogFileSize))
}

// compact has Badger flush its memtable and merge its tables. Only then does
// Badger know what was deleted from the value logs. By itself it compacts after
// a number of keys, and keys are few where entries are large.
func (s *Store) compact() error {
	deleted := s.deleted.Load()
	if err := s.flushMemtable(); err != nil {
		return err
	}
	s.deleted.Add(-deleted)
	s.counters.merges.Add(1)
	if err := s.db.Flatten(1); err != nil {
		s.opts.Logger.Warn("tables not merged: space that was freed comes back later", "err", err)
		return nil
	}
	return s.storeDeleted()
}

// flushMemtable has Badger write its memtable to a table, and merge that with
// the newest ones. The only way to ask for that is to drop a prefix that
// exists. Reads wait meanwhile.
func (s *Store) flushMemtable() error {
	s.badgerWrite.Lock()
	defer s.badgerWrite.Unlock()
	if err := s.Failed(); err != nil {
		return err
	}
	if err := s.room.holdToFlush(); err != nil {
		return err
	}
	wb := s.db.NewWriteBatch()
	defer wb.Cancel()
	if err := wb.Set([]byte{opScratch}, nil); err != nil {
		return err
	}
	if err := wb.Flush(); err != nil {
		return err
	}
	return errors.Join(s.db.DropPrefix([]byte{opScratch}), s.room.measure(), s.mapped.holdLogs(0, 0))
}

// badgerLogger forwards Badger's log. A message at level error counts as a
// failed write, since Badger only logs some of its failures. One that says that
// there is no space for something that Badger repeats goes to shortage.
type badgerLogger struct {
	log      *slog.Logger
	fail     func(error)
	shortage func(err error, flush bool)
	merging  func() // called before a compaction makes a table
}

// Parts of messages about what Badger repeats after an error.
var (
	flushMessage       = "error flushing memtable to disk"
	compactionMessages = []string{
		"cannot start subcompaction", "While running doCompact", "LOG Compact FAILED", "While forcing compaction",
	}
)

// short reports whether err is a message about a lack of space for something
// that Badger repeats, and passes it to shortage.
func (b badgerLogger) short(err error) bool {
	has := func(part string) bool { return strings.Contains(err.Error(), part) }
	flush := has(flushMessage)
	if !isNoSpace(err) || !flush && !slices.ContainsFunc(compactionMessages, has) {
		return false
	}
	b.shortage(err, flush)
	return true
}

func (b badgerLogger) Errorf(format string, args ...any) {
	if strings.HasPrefix(format, badgerUnreadable) || strings.HasPrefix(format, badgerUnreadableKey) {
		return // nothing was written, and the reader finds out: an entry is never empty
	}
	err := fmt.Errorf("badger: %s", strings.TrimSpace(fmt.Sprintf(format, args...)))
	if !b.short(err) {
		b.fail(err)
	}
}

// badgerUnreadable and badgerUnreadableKey begin what Badger logs about a value
// that it can't read. It then returns an empty one.
const (
	badgerUnreadable    = "Unable to read: Key"
	badgerUnreadableKey = "Key: %v, Version"
)

func (b badgerLogger) Warningf(format string, args ...any) {
	message := strings.TrimSpace(fmt.Sprintf(format, args...))
	if !b.short(errors.New(message)) {
		b.log.Warn("badger", "message", message)
	}
}

func (b badgerLogger) Infof(format string, args ...any) {
	b.log.Debug("badger", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// mergingMessage begins what Badger logs before a compaction makes a table.
const mergingMessage = "[%d] LOG Compact. Added"

func (b badgerLogger) Debugf(format string, _ ...any) {
	if strings.HasPrefix(format, mergingMessage) {
		b.merging()
	}
}
