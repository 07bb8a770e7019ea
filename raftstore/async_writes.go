package raftstore

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// unsynced are the entries that a leader has given to the journal and, before
// they were synced, to its followers: all write at the same time (Ongaro,
// "Consensus: Bridging Theory and Practice", 10.2.1). Raft takes them for
// synced here and may call them committed; nobody else hears of that before
// they are. Commit indexes on their way to followers stop below them, and they
// are not applied. So what counts as committed is on the disk of the leader,
// too, as it is without this.
type asyncWrites struct {
	mu      sync.Mutex
	entries []*raft.Log // dense, in order
	err     error       // why the oldest will never be synced
	// changed is closed at the next change; nil if nobody waits for it.
	changed chan struct{}
	// synced remembers when entries were, by index modulo its length.
	synced [rememberedSyncs]struct {
		index uint64
		at    time.Time
	}
}

// remembered is for how many entries it is known when they were synced: more
// than raft stores at once.
const rememberedSyncs = 2 * maxAppend

// add notes entries before they are given to the journal.
func (u *asyncWrites) add(logs []*raft.Log) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.entries = append(u.entries, logs...)
}

// takeBack forgets entries that were not given to the journal after all.
func (u *asyncWrites) undo(logs []*raft.Log) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.entries = slices.Delete(u.entries, len(u.entries)-len(logs), len(u.entries))
	u.notifyLocked()
}

// settled notes the outcome of the oldest n.
func (u *asyncWrites) completed(n int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil && u.err == nil {
		u.recordSyncedLocked(u.entries[:n])
		u.entries = slices.Delete(u.entries, 0, n)
	} else if u.err == nil {
		u.err = err
	}
	u.notifyLocked()
}

// note remembers that a leader's entries are synced now.
func (u *asyncWrites) recordSynced(logs []*raft.Log) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.recordSyncedLocked(logs)
}

func (u *asyncWrites) recordSyncedLocked(logs []*raft.Log) {
	now := time.Now()
	for _, l := range logs {
		s := &u.synced[l.Index%rememberedSyncs]
		s.index, s.at = l.Index, now
	}
}

// when tells when an entry of this leader's was synced, if that is not long ago.
func (u *asyncWrites) syncedAt(index uint64) (at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s := u.synced[index%rememberedSyncs]; s.index == index {
		at = s.at
	}
	return at
}

func (u *asyncWrites) notifyLocked() {
	if u.changed != nil {
		close(u.changed)
		u.changed = nil
	}
}

// get gives the entry at an index, nil if it is not one of them.
func (u *asyncWrites) get(index uint64) *raft.Log {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.entries) == 0 || index < u.entries[0].Index || index-u.entries[0].Index >= uint64(len(u.entries)) {
		return nil
	}
	return u.entries[index-u.entries[0].Index]
}

// cap gives an index, or the one before the oldest if that is less.
func (u *asyncWrites) limit(index uint64) uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.entries) == 0 {
		return index
	}
	return min(index, u.entries[0].Index-1)
}

// all is the index up to which everything is.
const allEntries = math.MaxUint64

// wait blocks until everything up to an index is synced. An error says that it
// never will be.
func (u *asyncWrites) waitSynced(index uint64) error {
	for {
		u.mu.Lock()
		if u.err != nil {
			defer u.mu.Unlock()
			return u.err
		}
		if len(u.entries) == 0 || index < u.entries[0].Index {
			u.mu.Unlock()
			return nil
		}
		if u.changed == nil {
			u.changed = make(chan struct{})
		}
		changed := u.changed
		u.mu.Unlock()
		<-changed
	}
}
