package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/cantuslog/cantus/wal/journal"
)

// roomInterval is the time between two checks of the free space.
const roomInterval = time.Second

// watch checks each second whether the directory is still there and has space,
// and whether Badger's compactors have anything to do.
func (s *Store) watch() {
	tick := time.NewTicker(roomInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		if err := s.checkPlace(); err != nil {
			s.fail(err)
		}
		s.checkRoom()
		if s.Failed() == nil && s.mergeWaits() == nil {
			s.compactors.look(time.Now(), s.opts.rest)
		}
		select {
		case s.roomChecked <- struct{}{}:
		default:
		}
	}
}

// checkPlace checks that the directory is where it was opened: the next start
// would not find what is synced into one that was moved or deleted.
func (s *Store) checkPlace() error {
	if s.lock == nil {
		return nil
	}
	opened, err := s.lock.Stat()
	if err != nil {
		return nil //nolint:nilerr // closed, or unreadable: no sign that it was moved
	}
	path := filepath.Join(s.dir, lockFile)
	there, err := os.Stat(path)
	if err == nil && !os.SameFile(opened, there) {
		return fmt.Errorf("%s is another file than the one that was opened: the directory was moved or replaced under the running node", path)
	}
	if err == nil {
		path = filepath.Join(s.dir, badgerDir, badger.ManifestFilename)
		_, err = os.Stat(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is gone: the directory was moved or deleted under the running node", path)
	}
	return nil
}

// checkRoom decides by the free space whether entries are taken. Badger and the
// journal's next segment need some.
func (s *Store) checkRoom() {
	err := spare(s.opts.FreeSpace, s.room.dir, s.room.floor+s.applier.wanted.Load())
	if err == nil {
		err = s.mergeWaits()
	}
	full := errors.Is(err, ErrNoSpace)
	if full != s.tight.Swap(full) {
		defer s.applier.wake()
	}
	if !full {
		if err = s.checkStart(); err == nil {
			err = s.journal.Prepare()
		}
		full = errors.Is(err, ErrNoSpace) || errors.Is(err, journal.ErrNoSpace)
	}
	if full != s.short.Swap(full) {
		if full {
			s.opts.Logger.Warn("no entries are taken until there is room", "err", err)
		} else {
			s.opts.Logger.Info("there is room: entries are taken again")
		}
	}
}

// refuse stops taking entries until checkRoom finds space.
func (s *Store) refuse() {
	if !s.tight.Swap(true) {
		s.applier.wake() // the journal's writer does not wait for this
	}
	if !s.short.Swap(true) {
		s.opts.Logger.Warn("no entries are taken until there is room to store them", "dir", s.dir)
	}
}

// shortage is called when Badger found no space for something that it repeats:
// for flushing a memtable or for a compaction. While the store closes it counts
// as a failure, so that Close gives up.
func (s *Store) shortage(err error, flush bool) {
	select {
	case <-s.done:
		s.fail(err)
		return
	default:
	}
	if flush {
		s.mapped.stuck.Store(true)
	} else {
		s.compactors.short.Store(true)
	}
	s.refuse()
}

// mergeLacks is called while a compaction waits to make a table, with the
// reason. While the store closes any reason counts as a failure, so that Close
// gives up.
func (s *Store) mergeLacks(err error) {
	select {
	case <-s.done:
		s.fail(err)
	default:
		if !isNoSpace(err) {
			s.fail(err)
		}
		s.refuse()
	}
}

// mergeWaits returns an error that wraps ErrNoSpace while a compaction waits
// for space. Whatever waits for the compaction then waits too.
func (s *Store) mergeWaits() error {
	if s.mapped.waiting.Load() == 0 {
		return nil
	}
	return fmt.Errorf("%w: a table in %s", ErrNoSpace, s.room.dir)
}

// Tight reports whether the file system has no space for more entries. The
// caller then appends none for which [Entry.NeedsRoom] is true. The journal
// still takes entries that are on their way and small state, while its segment
// has room.
func (s *Store) Tight() bool {
	return s.tight.Load() || s.starting.scant.Load() || s.journal.Short()
}

// Tight is [Store.Tight].
func (l *Log) Tight() bool { return l.store.Tight() }

// overfull reports whether the store refuses entries: the disk is full, and the
// frames that wait for space fill the applier's queue.
func (s *Store) overfull() bool { return s.tight.Load() && s.applier.backlog() > applyQueue }
