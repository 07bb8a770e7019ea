package raftstore

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// asyncWrites holds the entries that a leader has passed to the journal and
// that are not synced yet. It sends them to its followers at the same time, so
// that all replicas write in parallel (Ongaro, "Consensus: Bridging Theory and
// Practice", 10.2.1).
//
// Raft takes these entries for synced here and may call them committed. Nobody
// else learns of that before they are synced: commit indexes on their way to
// followers are limited to what lies before them (limit), and the FSM does not
// apply them (waitSynced). So a committed entry is on the leader's disk too, as
// it would be without asynchronous writes.
type asyncWrites struct {
	mu      sync.Mutex
	entries []*raft.Log // dense, in order
	err     error       // why the oldest, and so all of them, will never be synced
	// changed is closed at the next change; nil if nobody waits.
	changed chan struct{}
	// synced holds when entries were synced, by index modulo its length.
	synced [rememberedSyncs]struct {
		index uint64
		at    time.Time
	}
}

// rememberedSyncs is the number of entries for which the time of their sync is
// remembered: more than raft stores at once.
const rememberedSyncs = 2 * maxAppend

// add adds entries, before they are passed to the journal.
func (w *asyncWrites) add(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = append(w.entries, logs...)
}

// undo removes the newest entries again: the journal did not accept them.
func (w *asyncWrites) undo(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = slices.Delete(w.entries, len(w.entries)-len(logs), len(w.entries))
	w.notifyLocked()
}

// completed records the outcome of the n oldest entries.
func (w *asyncWrites) completed(n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.err == nil {
		w.recordSyncedLocked(w.entries[:n])
		w.entries = slices.Delete(w.entries, 0, n)
	} else if w.err == nil {
		w.err = err
	}
	w.notifyLocked()
}

// recordSynced records that entries of this leader are synced now.
func (w *asyncWrites) recordSynced(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recordSyncedLocked(logs)
}

func (w *asyncWrites) recordSyncedLocked(logs []*raft.Log) {
	now := time.Now()
	for _, l := range logs {
		s := &w.synced[l.Index%rememberedSyncs]
		s.index, s.at = l.Index, now
	}
}

// syncedAt returns when an entry of this leader was synced, the zero time if
// that is not known any more.
func (w *asyncWrites) syncedAt(index uint64) (at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.synced[index%rememberedSyncs]; s.index == index {
		at = s.at
	}
	return at
}

// notifyLocked wakes the goroutines in waitSynced.
func (w *asyncWrites) notifyLocked() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// get returns the entry at an index, nil if it is not one of these.
func (w *asyncWrites) get(index uint64) *raft.Log {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.entries) == 0 || index < w.entries[0].Index || index-w.entries[0].Index >= uint64(len(w.entries)) {
		return nil
	}
	return w.entries[index-w.entries[0].Index]
}

// limit returns an index, or the one before the oldest entry if that is less.
func (w *asyncWrites) limit(index uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.entries) == 0 {
		return index
	}
	return min(index, w.entries[0].Index-1)
}

// allEntries is an index for waitSynced: everything is before it.
const allEntries = math.MaxUint64

// waitSynced blocks until everything up to an index is synced. An error says
// that it never will be.
func (w *asyncWrites) waitSynced(index uint64) error {
	for {
		w.mu.Lock()
		if w.err != nil {
			defer w.mu.Unlock()
			return w.err
		}
		if len(w.entries) == 0 || index < w.entries[0].Index {
			w.mu.Unlock()
			return nil
		}
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		<-changed
	}
}
