package raftstore

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// marks has the state marked some time after enough entries were applied. Raft
// would look by the clock, in every group, whether there is anything to mark.
type snapshotter struct {
	entries   uint64        // that make a mark worth while
	interval  time.Duration // from then until it is taken, up to twice as long
	snapshot  func() error
	warn      func(msg string, args ...any)
	scheduled atomic.Bool   // one is to be taken
	applied   atomic.Uint64 // the index of the newest entry applied
	last      atomic.Uint64 // the index that the last marker is at
}

func newSnapshotter(o Options, mark func() error, warn func(msg string, args ...any)) (*snapshotter, error) {
	m := &snapshotter{entries: o.SnapshotEntries, interval: o.SnapshotInterval, snapshot: mark, warn: warn}
	return m, m.recordLast(snapshotStore{o.Log})
}

// note takes note of the last marker.
func (m *snapshotter) recordLast(at snapshotStore) error {
	k, err := at.load()
	if err == nil {
		m.last.Store(k.Index)
	}
	return err
}

// passed takes note that the entries up to index were applied.
func (m *snapshotter) recordApplied(index uint64) {
	m.applied.Store(index)
	if index >= m.last.Load()+m.entries && m.scheduled.CompareAndSwap(false, true) {
		time.AfterFunc(m.interval+rand.N(m.interval), m.take) // groups take turns
	}
}

// take marks the state, and again later if that failed or there is more.
func (m *snapshotter) take() {
	err := m.snapshot()
	m.scheduled.Store(false)
	if errors.Is(err, ErrClosed) {
		return
	}
	if err != nil && !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		m.warn("the state was not marked and will be later", "err", err)
	}
	m.recordApplied(m.applied.Load())
}
