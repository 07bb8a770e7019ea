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
type marks struct {
	entries  uint64        // that make a mark worth while
	interval time.Duration // from then until it is taken, up to twice as long
	mark     func() error
	warn     func(msg string, args ...any)
	due      atomic.Bool   // one is to be taken
	applied  atomic.Uint64 // the index of the newest entry applied
	marked   atomic.Uint64 // the index that the last marker is at
}

func newMarks(o Options, mark func() error, warn func(msg string, args ...any)) (*marks, error) {
	m := &marks{entries: o.MarkEntries, interval: o.MarkInterval, mark: mark, warn: warn}
	return m, m.note(markers{o.Log})
}

// note takes note of the last marker.
func (m *marks) note(at markers) error {
	k, err := at.load()
	if err == nil {
		m.marked.Store(k.Index)
	}
	return err
}

// passed takes note that the entries up to index were applied.
func (m *marks) passed(index uint64) {
	m.applied.Store(index)
	if index >= m.marked.Load()+m.entries && m.due.CompareAndSwap(false, true) {
		time.AfterFunc(m.interval+rand.N(m.interval), m.take) // groups take turns
	}
}

// take marks the state, and again later if that failed or there is more.
func (m *marks) take() {
	err := m.mark()
	m.due.Store(false)
	if errors.Is(err, ErrClosed) {
		return
	}
	if err != nil && !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		m.warn("the state was not marked and will be later", "err", err)
	}
	m.passed(m.applied.Load())
}
