package raftstore

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotter takes a snapshot some time after enough entries were applied.
// Raft itself would use a timer in every group to check whether there is
// anything new. The FSM's goroutine schedules a snapshot, and a timer's
// goroutine takes it, at most one at a time.
type snapshotter struct {
	entries   uint64        // number of new entries after which a snapshot is scheduled
	interval  time.Duration // minimum time from then until the snapshot; the maximum is twice as long
	snapshot  func() error
	warn      func(msg string, args ...any)
	scheduled atomic.Bool   // a timer will call take
	applied   atomic.Uint64 // the index of the last applied entry
	last      atomic.Uint64 // the index of the last snapshot
}

func newSnapshotter(o Options, snapshot func() error, warn func(msg string, args ...any)) (*snapshotter, error) {
	s := &snapshotter{entries: o.SnapshotEntries, interval: o.SnapshotInterval, snapshot: snapshot, warn: warn}
	return s, s.recordLast(snapshotStore{o.Log})
}

// recordLast records the index of the last snapshot.
func (s *snapshotter) recordLast(at snapshotStore) error {
	snap, err := at.load()
	if err == nil {
		s.last.Store(snap.Index)
	}
	return err
}

// recordApplied records that the entries up to index were applied. It schedules
// a snapshot if there are enough new ones.
func (s *snapshotter) recordApplied(index uint64) {
	s.applied.Store(index)
	if index >= s.last.Load()+s.entries && s.scheduled.CompareAndSwap(false, true) {
		time.AfterFunc(s.interval+rand.N(s.interval), s.take) // not all groups at once
	}
}

// take takes a snapshot. It schedules the next one if it fails, or if there are
// enough new entries again.
func (s *snapshotter) take() {
	err := s.snapshot()
	s.scheduled.Store(false)
	if errors.Is(err, ErrClosed) {
		return
	}
	if err != nil && !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		s.warn("no snapshot taken: retrying later", "err", err)
	}
	s.recordApplied(s.applied.Load())
}
