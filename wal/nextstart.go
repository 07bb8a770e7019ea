package wal

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// A node that has filled its disk must be able to start again on it. A start
// needs space for opening Badger, and writes the frames since the last
// checkpoint to Badger again. So the store takes entries only while that much
// is free, with some more for entries that were proposed already and for small
// state.
//
// When space runs short the store makes some: it takes a checkpoint, which
// releases frames, and removes the journal's spare segments.

// nextStart tracks the space that the next start needs.
type nextStart struct {
	// replayBytes is how many bytes the frames since the last checkpoint take
	// in Badger's files, and so how many the next start writes again. Store.mu
	// is held to add to it.
	replayBytes atomic.Int64
	// left is how many bytes may be written before the free space is checked
	// again.
	left atomic.Int64
	// scant is true while no entries are taken, to leave space for the next
	// start.
	scant atomic.Bool
}

const (
	// admittedRoom is the space for what is written while no entries are taken:
	// entries that were proposed before, votes, snapshots, trims. An entry
	// takes some four times its size: in the journal, in Badger, in Badger
	// again at the next start, and in a table.
	admittedRoom = 24 << 20
	// newLogsRoom is what a start allocates in advance in new logs.
	newLogsRoom = 2 * folioBytes
	// lastRoom is the part of admittedRoom that entries leave to small state.
	lastRoom = 4 << 20
	// scantRoom is how much more must be free before entries are taken again.
	scantRoom = 1 << 20
)

// startRoom returns how many bytes are free beyond what the next start needs.
// If there is plenty of space it returns a lower bound, without looking at
// Badger's files.
func (s *Store) startRoom() (int64, error) {
	have, err := s.opts.FreeSpace(s.room.dir)
	if err != nil {
		return 0, err
	}
	left := have - s.room.floor - s.starting.replayBytes.Load() - newLogsRoom - admittedRoom
	b := s.db.Opts()
	// A memtable's log is mapped at twice its limit.
	most := int64(b.NumMemtables+1) * 2 * tableOf(b.MemTableSize)
	if left > 2*most {
		return left - most, nil
	}
	tables, err := memtableRoom(s.room.dir)
	return left - tables, err
}

// admit accounts for a synced frame that takes the given bytes in Badger's
// logs. If the next start would have no space for it, no more entries are
// taken. It runs for every frame, and checks the free space only when that may
// have run out.
func (s *Store) admit(logs int64) {
	// Now and at the next start: in a log, and in a table of up to half as much
	// more.
	if s.starting.left.Add(-4*logs) < 0 {
		_ = s.lookStart()
	}
}

// lookStart checks whether there is space for the next start, and asks for a
// checkpoint if that would free much.
func (s *Store) lookStart() error {
	left, err := s.startRoom()
	if err != nil {
		return nil //nolint:nilerr // unknown: a write will fail if the disk is full
	}
	s.starting.left.Store(left)
	replayBytes := s.starting.replayBytes.Load()
	if replayBytes > scantRoom && left < replayBytes {
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

// checkStart is lookStart, but removes spare segments first if there is no
// space.
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

// TakesProposed reports whether there is space for the given bytes of entries
// that were proposed before the store was [Store.Tight]. A replica takes those,
// so that its group can go on to commit a trim.
func (s *Store) TakesProposed(bytes int64) bool {
	left, err := s.startRoom()
	return err != nil || left+admittedRoom-lastRoom >= 4*bytes
}

// roomForSegment returns an error if there is no space for the given bytes of
// journal, which will also be written to Badger, and again by the next start. A
// segment that a frame waits for may use admittedRoom.
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

// checkpointForNextStart takes a checkpoint after a replay if the next start
// might find no space to replay the same frames again.
func (s *Store) checkpointForNextStart() {
	left, err := s.startRoom()
	if err != nil || left > s.starting.replayBytes.Load() {
		return
	}
	if err := s.takeCheckpoint(); err != nil && s.Failed() == nil && !errors.Is(err, ErrNoSpace) {
		s.fail(err)
	}
}
