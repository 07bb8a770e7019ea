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

// roomInterval is how often it is looked whether there is room.
const roomInterval = time.Second

// watch looks, each second, whether the directory is still there and has room, and
// whether Badger has anything to do.
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
		if s.Failed() == nil {
			s.compactors.look(time.Now(), s.opts.rest)
		}
	}
}

// checkPlace makes sure that the directory is where it was opened: what is
// synced into one that was moved or deleted is not there for the next start.
func (s *Store) checkPlace() error {
	if s.lock == nil {
		return nil
	}
	opened, err := s.lock.Stat()
	if err != nil {
		return nil //nolint:nilerr // closed
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

// checkRoom takes entries, or takes none any more, by the free space. Badger and
// the journal's next segment each need some.
func (s *Store) checkRoom() {
	err := spare(s.opts.FreeSpace, s.room.dir, s.room.floor+s.applier.wanted.Load())
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

// refuse takes no more entries until checkRoom finds room.
func (s *Store) refuse() {
	s.tight.Store(true)
	if !s.short.Swap(true) {
		s.opts.Logger.Warn("no entries are taken until there is room to store them", "dir", s.dir)
	}
}

// Tight reports whether the file system has no room for more entries. The
// caller then appends none that need room. What it has on its way already is still
// taken into the journal, as long as that has room, and so is small state.
func (s *Store) Tight() bool {
	return s.tight.Load() || s.starting.scant.Load() || s.journal.Short()
}

// overfull reports whether the store refuses entries: it has no room, and what
// waits for some fills the memory that it may use.
func (s *Store) overfull() bool { return s.tight.Load() && s.applier.backlog() > applyQueue }
