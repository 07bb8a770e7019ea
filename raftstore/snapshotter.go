package raftstore

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotter takes a snapshot some time after enough entries were applied, and
// one when no more come. Raft itself would use a timer in every group to check
// whether there is anything new. The FSM's goroutine schedules a snapshot, and
// a timer's goroutine takes it, at most one at a time. While nothing is new
// there is no timer.
type snapshotter struct {
	entries   uint64        // number of new entries after which a snapshot is scheduled
	interval  time.Duration // minimum time from then until the snapshot; the maximum is twice as long
	quiet     time.Duration // minimum time without new entries until a snapshot; the maximum is twice as long; 0 for none
	snapshot  func() error
	warn      func(msg string, args ...any)
	scheduled atomic.Bool   // a timer will call take
	watching  atomic.Bool   // a timer will call takeIfQuiet
	applied   atomic.Uint64 // the index of the last applied entry
	last      atomic.Uint64 // the index of the last snapshot
	// taking holds a value while one is taken, which may last. Its capacity is
	// 1. It is no mutex, so that a simulation's time goes on: see
	// heartbeatBatcher.flushing.
	taking chan struct{}
}

func newSnapshotter(o Options, snapshot func() error, warn func(msg string, args ...any)) (*snapshotter, error) {
	s := &snapshotter{entries: o.SnapshotEntries, interval: o.SnapshotInterval, quiet: o.SnapshotQuiet, snapshot: snapshot, warn: warn, taking: make(chan struct{}, 1)}
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
// a snapshot if there are enough new ones, and one for the time when no more
// come.
func (s *snapshotter) recordApplied(index uint64) {
	s.applied.Store(index)
	last := s.last.Load()
	if index >= last+s.entries && s.scheduled.CompareAndSwap(false, true) {
		time.AfterFunc(s.interval+rand.N(s.interval), s.take) // not all groups at once
	}
	if s.quiet > 0 && index > last && s.watching.CompareAndSwap(false, true) {
		s.watch(index, s.quiet)
	}
}

// take takes a snapshot. It schedules the next one if it fails, or if there are
// enough new entries again.
func (s *snapshotter) take() {
	err := s.takeNew()
	s.scheduled.Store(false)
	if !errors.Is(err, ErrClosed) {
		s.recordApplied(s.applied.Load())
	}
}

// watch schedules a snapshot for the case that the entry at index is still the
// last then.
func (s *snapshotter) watch(index uint64, pause time.Duration) {
	time.AfterFunc(pause+rand.N(pause), func() { s.takeIfQuiet(index) })
}

// takeIfQuiet takes a snapshot if the entry at index is still the last one that
// was applied. Otherwise, or if it fails, it watches on. A log that is written
// to shows by itself that all but its newest entries are committed; one that is
// not needs this snapshot to say so of the last ones.
func (s *snapshotter) takeIfQuiet(index uint64) {
	if now := s.applied.Load(); now != index {
		s.watch(now, s.quiet)
		return
	}
	err := s.takeNew()
	if err != nil && !errors.Is(err, ErrClosed) {
		s.watch(index, s.interval)
		return
	}
	s.watching.Store(false)
	if now := s.applied.Load(); err == nil && now != index { // it came before this stopped watching
		s.recordApplied(now)
	}
}

// takeNew takes a snapshot if entries were applied since the last one. It logs
// a failure.
func (s *snapshotter) takeNew() error {
	s.taking <- struct{}{}
	defer func() { <-s.taking }()
	if s.applied.Load() <= s.last.Load() {
		return nil
	}
	err := s.snapshot()
	if err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		s.warn("no snapshot taken: retrying later", "err", err)
	}
	return err
}
