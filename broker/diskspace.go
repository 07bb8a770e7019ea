package broker

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cantuslog/cantus/wal"
)

// A node is full if its disk has less free space than its reserve, or than its
// next start needs. As a leader it then refuses transactions. As a follower it
// rejects its leader's entries, and the partition continues with the other
// replicas.
//
// Each node says in its announcements whether it is full, and a leader also
// learns it from a rejection. If no majority has room, the leader refuses
// transactions and says so in its announcements. Its followers, although full,
// then accept the entries that it had proposed before, as far as the room that
// each keeps for them allows (wal.Store.TakesProposed): the trim that makes
// room comes after those entries. Votes, trims and the cluster's facts are
// small, and always accepted.

// errFull is returned when a log is not fetched because the disk is full. It is
// tried again every announceInterval.
var errFull = errors.New("this node's disk is full")

// space reports whether this node and others have room on their disks. It is a
// diskSpace.
type space struct {
	self     string
	log      *slog.Logger
	store    *wal.Store
	peers    *peers
	reserved *atomic.Int64 // bytes; see Options.MinFreeBytes
	read     func(dir string) (free int64, err error)
	advise   func(event string, fields map[string]any)
	announce func() // has the announcement sent now

	low  atomic.Bool  // less than the reserve is free
	free atomic.Int64 // bytes free on the disk
}

// check checks whether the disk has room, and announces a change.
func (s *space) check() {
	free, err := s.read(s.store.Dir())
	if err != nil {
		s.log.Warn("free disk space unknown", "err", err)
		return
	}
	s.free.Store(free)
	s.setFull(free < s.reserve() || s.store.Tight())
}

// setFull sets whether the node is full, and announces a change.
func (s *space) setFull(full bool) {
	if full == s.low.Swap(full) {
		return
	}
	free := s.free.Load()
	if args := []any{"free_bytes", free, "reserve_bytes", s.reserve()}; full {
		s.log.Warn("the disk is full: this node takes no transactions", args...)
	} else {
		s.log.Info("the disk has room again", args...)
	}
	s.advise("storage", map[string]any{"full": full, "free_bytes": free, "reserve_bytes": s.reserve()})
	s.announce()
}

// isTight reports whether this node's store accepts nothing more. isLow reports
// whether its disk had less free space than the reserve at the last check.
// isFull reports either.
func (s *space) isTight() bool { return s.store.Tight() }
func (s *space) isLow() bool   { return s.low.Load() }
func (s *space) isFull() bool  { return s.isLow() || s.isTight() }

func (s *space) reserve() int64 { return s.reserved.Load() }

// takes reports whether there is room for n bytes beside the reserve, which are
// not needed: they can be written later, or not at all.
func (s *space) takes(n int64) bool { return !s.isFull() && s.free.Load()-n >= s.reserve() }

// takesProposed reports whether there is room for entries of n bytes that were
// proposed before their leader refused transactions.
func (s *space) takesProposed(n int64) bool { return s.store.TakesProposed(n) }

// hasRoom reports whether a node is known to have room, and whether it is known
// to be full. Neither is the case if the node is away.
func (s *space) hasRoom(name string, now time.Time) (room, full bool) {
	if name == s.self {
		full = s.isFull()
		return !full, full
	}
	q, _ := s.peers.get(name)
	alive := s.peers.alive(name, now)
	return alive && !q.Full, alive && q.Full
}
