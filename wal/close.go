package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// closePatience is how long Close waits for a failed store: Badger tries to
// flush its memtable forever.
const closePatience = 10 * time.Second

// Close waits for writes in progress, takes a last checkpoint unless the store
// has failed, and stops the store. It returns an error if either failed. Later
// writes, and reads of entries that are not in memory, return [ErrClosed].
// Close is idempotent.
//
// If the store has failed, or there is no space for what Badger writes when it
// is closed, Close gives up after some seconds and returns an error. Nothing
// that was acknowledged is lost. The directory then stays locked until the
// process ends, or until closing succeeds in the background.
func (s *Store) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	if err := s.checkPlace(); err != nil {
		s.fail(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	select {
	case err := <-stopped:
		return err
	case <-s.failed:
	}
	select {
	case err := <-stopped:
		return err
	case <-time.After(s.opts.patience):
		return fmt.Errorf("%w: close %s: not done after %v and left: what is synced is safe, the process may end",
			s.Failed(), s.dir, s.opts.patience)
	}
}

func (s *Store) stop() error {
	s.writing.Lock()
	s.closed = true
	s.writing.Unlock()
	close(s.done)
	s.applier.close()
	s.background.Wait()
	var err error
	if s.Failed() == nil {
		if err = s.takeCheckpoint(); err != nil && !errors.Is(err, ErrNoSpace) {
			s.fail(fmt.Errorf("last checkpoint: %w", err))
		}
	}
	return errors.Join(err, s.release())
}

// release closes what is open. Badger stays open, and the directory locked,
// while there is no space for closing it.
func (s *Store) release() (err error) {
	if s.journal != nil {
		err = fromJournal(s.journal.Close())
	}
	s.reading.Lock()
	s.badgerClosed = true
	s.reading.Unlock()
	if s.db == nil {
		return errors.Join(err, s.unlock())
	}
	if full := s.roomToClose(); full != nil {
		go func() {
			for s.roomToClose() != nil {
				time.Sleep(roomInterval)
			}
			_ = s.closeBadger()
			_ = s.unlock()
		}()
		return errors.Join(err, fmt.Errorf("no room to close %s, the next start replays the journal: %w", s.dir, full))
	}
	return errors.Join(err, s.closeBadger(), s.unlock())
}

func (s *Store) unlock() error {
	if s.lock == nil {
		return nil
	}
	return unlockDir(s.lock)
}

// roomToClose returns ErrNoSpace unless Badger can flush its memtables.
func (s *Store) roomToClose() error {
	dir := filepath.Join(s.dir, badgerDir)
	tables, err := memtableRoom(dir)
	if err != nil || tables == 0 {
		return nil //nolint:nilerr // it is gone, empty or unreadable: closing reports that
	}
	err = spare(s.opts.FreeSpace, dir, tables+closeRoom)
	if !errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

// closeRoom is the space for what Badger writes besides tables when it is
// closed.
const closeRoom = 256 << 10

func (s *Store) closeBadger() (err error) {
	defer s.detachMapped()
	defer recoverDamage(&err)
	return s.db.Close()
}
