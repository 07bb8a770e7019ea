package wal

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// A node that has filled its disk must be able to start again on it. A start
// needs the room that Badger's opening does, and writes the frames to Badger
// again that the last checkpoint does not cover. So entries are taken only while
// that much is free, and some more for what is on its way and for small state.
//
// Near the end the store makes room: a checkpoint lets go of frames, and the
// journal's spare segments are removed.

// nextStart is what the next start needs.
type nextStart struct {
	// owed is what the frames since the last checkpoint take in Badger's files.
	// Store.mu is held by who adds to it.
	owed atomic.Int64
	// left is how many bytes may be written, at most, before the free space is
	// looked at again.
	left atomic.Int64
	// scant says that no more entries are taken, for the next start's sake.
	scant atomic.Bool
}

const (
	// admittedRoom is for what is written although no more entries are taken:
	// entries that were proposed before, votes, markers, trims. An entry takes some
	// four times its size: in the journal, in Badger, in the next start's Badger,
	// and in a table.
	admittedRoom = 24 << 20
	// lastRoom is the part of it that entries leave to what is small.
	lastRoom = 4 << 20
	// scantRoom is how much more must be free for entries to be taken again.
	scantRoom = 1 << 20
)

// startRoom returns how much is free beyond what the next start needs, or less
// where there is plenty. It looks at Badger's files only where there is not.
func (s *Store) startRoom() (int64, error) {
	have, err := s.opts.FreeSpace(s.room.dir)
	if err != nil {
		return 0, err
	}
	left := have - s.room.floor - s.starting.owed.Load() - admittedRoom
	b := s.db.Opts()
	// A memtable's log is mapped at twice its limit.
	most := int64(b.NumMemtables+1) * 2 * tableOf(b.MemTableSize)
	if left > 2*most {
		return left - most, nil
	}
	tables, err := memtableRoom(s.room.dir)
	return left - tables, err
}

// admit takes account of a frame that was synced and takes so many bytes in
// Badger's logs. If the next start would have no room for it, no more entries are
// taken. It is on the path of each frame, and looks at the disk only when it may
// be full.
func (s *Store) admit(logs int64) {
	// Now and at the next start: in a log, and perhaps in a table of half as much more.
	if s.starting.left.Add(-4*logs) < 0 {
		_ = s.lookStart()
	}
}

// lookStart finds out whether there is room for the next start, and asks for a
// checkpoint when that would make much of it.
func (s *Store) lookStart() error {
	left, err := s.startRoom()
	if err != nil {
		return nil //nolint:nilerr // what can't be known is left to the disk to say
	}
	s.starting.left.Store(left)
	owed := s.starting.owed.Load()
	if owed > scantRoom && left < owed {
		s.wakeCheckpoint()
	}
	if s.starting.scant.Load() {
		left -= scantRoom
	}
	if s.starting.scant.Store(left < 0); left < 0 {
		return fmt.Errorf("%w: the next start needs %s more free on the file system of %s", ErrNoSpace, mebibytes(-left), s.dir)
	}
	return nil
}

// checkStart is lookStart, and makes room where there is none.
func (s *Store) checkStart() error {
	err := s.lookStart()
	if err == nil || s.journal.Stats().Spares == 0 {
		return err
	}
	if err := s.journal.DropSpares(); err != nil {
		s.opts.Logger.Warn("spare segments are not removed", "err", err)
	}
	return s.lookStart()
}

// TakesProposed reports whether there is room for so many bytes of entries that
// were proposed before it was known that the store is [Store.Tight]. A replica
// takes those so that its group can go on to a trim.
func (s *Store) TakesProposed(bytes int64) bool {
	left, err := s.startRoom()
	return err != nil || left+admittedRoom-lastRoom >= 4*bytes
}

// roomForSegment returns an error if there is no room for so many bytes of
// journal: they are written to Badger, and again by the next start. A segment that
// a frame waits for may use admittedRoom.
func (s *Store) roomForSegment(bytes int64, awaited bool) error {
	left, err := s.startRoom()
	if awaited {
		left += admittedRoom - lastRoom
	}
	if err == nil && left < bytes {
		return fmt.Errorf("%w: %s are free beyond what the next start needs, the segment needs %s", ErrNoSpace, mebibytes(left), mebibytes(bytes))
	}
	return nil
}

// settleStart takes a checkpoint of what was replayed if the next start might
// find no room to replay it once more.
func (s *Store) settleStart() {
	left, err := s.startRoom()
	if err != nil || left > s.starting.owed.Load() {
		return
	}
	if err := s.takeCheckpoint(); err != nil && s.Failed() == nil && !errors.Is(err, ErrNoSpace) {
		s.fail(err)
	}
}
