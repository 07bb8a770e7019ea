package raftstore

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// asyncWrites holds the entries that a leader has passed to the journal and
// that are not synced yet. The leader sends them to its followers in the
// meantime, so that all replicas write in parallel (Ongaro, "Consensus:
// Bridging Theory and Practice", 10.2.1).
//
// Raft assumes that these entries are synced here, and may consider them
// committed. This has no effect before they are synced: commit indexes sent to
// followers are limited to the entries before them (limit), and the FSM does
// not apply them (waitSynced). So a committed entry is always on the leader's
// disk too, as it would be without asynchronous writes.
//
// Four kinds of goroutines use it. Raft's main goroutine adds entries, and
// waits for all of them before it stores a term or a vote, or truncates the
// log. The journal's callback reports their outcome; it does not block. Raft's
// goroutines for the peers read entries and limit commit indexes. The FSM's
// goroutine waits until the entries that it is to apply are synced. A failed
// write ends every wait with its error.
type asyncWrites struct {
	mu      sync.Mutex  // guards all fields; not held while waiting
	entries []*raft.Log // dense, in order
	err     error       // why the oldest entry, and so every entry, will never be synced
	// changed is closed at the next change; nil if no goroutine waits.
	changed chan struct{}
	// synced holds the times when entries were synced, by index modulo its
	// length.
	synced [syncTimes]struct {
		index uint64
		at    time.Time
	}
}

// syncTimes is the number of entries whose sync times are kept: more than raft
// stores at once.
const syncTimes = 2 * maxAppend

// add adds entries. It is called before they are passed to the journal.
func (w *asyncWrites) add(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = append(w.entries, logs...)
}

// undo removes the newest entries, which the journal has not accepted.
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

// recordSynced records that entries of this leader are now synced.
func (w *asyncWrites) recordSynced(logs []*raft.Log) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recordSyncedLocked(logs)
}

func (w *asyncWrites) recordSyncedLocked(logs []*raft.Log) {
	now := time.Now()
	for _, l := range logs {
		s := &w.synced[l.Index%syncTimes]
		s.index, s.at = l.Index, now
	}
}

// syncedAt returns the time when an entry of this leader was synced, or the
// zero time if it is not known.
func (w *asyncWrites) syncedAt(index uint64) (at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.synced[index%syncTimes]; s.index == index {
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

// get returns the entry at an index, or nil if w does not hold it.
func (w *asyncWrites) get(index uint64) *raft.Log {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.entries) == 0 || index < w.entries[0].Index || index-w.entries[0].Index >= uint64(len(w.entries)) {
		return nil
	}
	return w.entries[index-w.entries[0].Index]
}

// limit returns the lower of index and the index before the oldest entry.
func (w *asyncWrites) limit(index uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.entries) == 0 {
		return index
	}
	return min(index, w.entries[0].Index-1)
}

// allEntries is the argument of waitSynced to wait for every entry.
const allEntries = math.MaxUint64

// waitSynced blocks until the entries up to index are synced. It returns an
// error if they never will be.
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
