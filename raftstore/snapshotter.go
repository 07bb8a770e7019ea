package raftstore

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotter takes a snapshot some time after enough entries were applied.
// Raft itself would look by the clock, in every group, whether there is
// anything new.
type snapshotter struct {
	entries   uint64        // new entries that a snapshot is taken after
	interval  time.Duration // from then until the snapshot, up to twice as long
	snapshot  func() error
	warn      func(msg string, args ...any)
	scheduled atomic.Bool   // take will be called
	applied   atomic.Uint64 // the index of the last entry applied
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

// recordApplied records that the entries up to index were applied, and
// schedules a snapshot after enough of them.
func (s *snapshotter) recordApplied(index uint64) {
	s.applied.Store(index)
	if index >= s.last.Load()+s.entries && s.scheduled.CompareAndSwap(false, true) {
		time.AfterFunc(s.interval+rand.N(s.interval), s.take) // groups spread out
	}
}

// take takes a snapshot, and schedules another if that failed or enough entries
// are new again.
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
