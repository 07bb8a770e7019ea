package wal

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cantuslog/cantus/wal/journal"
)

// Log is one group's log of entries, dense by index, and the small state
// that goes with it. Reads are safe for concurrent use, also beside writes.
// Append and TruncateSuffix are called by one goroutine at a time, and so are
// TruncateSuffix and TrimHead; SetMeta and Void may be called beside them.
type Log struct {
	store *Store
	group uint32
	read  atomic.Uint64 // entries

	// mu guards what follows; only fold changes it.
	mu    sync.RWMutex
	first uint64 // index of the oldest entry, 0 if there is none
	last  uint64 // index of the newest entry, 0 if there is none
	meta  map[string][]byte
	voids []uint64
	tail  tail
	// promised is the newest entry that is or was on its way to the journal.
	promised uint64
	cuts     uint64 // how often a suffix was truncated
	history  history
	emptied  uint64 // how often nothing was left then

	// removing guards removed, and orders deletions in Badger: those of
	// trimmed entries against those of a log that begins anew.
	removing sync.Mutex
	removed  uint64 // Badger holds nothing below this index; 0 if not known
}

func newLog(s *Store, group uint32) *Log {
	return &Log{store: s, group: group, meta: map[string][]byte{}, tail: tail{most: s.opts.TailBytes}}
}

// fold brings the log's state forward by one synced operation.
func (l *Log) fold(seq uint64, op journal.Op, applied uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch op.Key[0] {
	case opEntry:
		l.last = keyIndex(op.Key)
		if l.first == 0 {
			l.first = l.last
		}
		l.history = l.history.appended(l.last, l.cuts)
		l.tail.put(seq, l.last, op.Value, applied)
	case opTruncate:
		l.truncate(binary.BigEndian.Uint64(op.Value))
	case opTrim:
		l.first = binary.BigEndian.Uint64(op.Value)
		l.tail.trim(l.first)
		l.history = l.history.trimmed(l.first)
		l.voids = slices.DeleteFunc(slices.Clone(l.voids), func(v uint64) bool { return v < l.first })
	case opVoid:
		if index := binary.BigEndian.Uint64(op.Value); !slices.Contains(l.voids, index) {
			l.voids = append(slices.Clip(l.voids), index)
		}
	case opMeta:
		name := string(op.Key[5:])
		if op.Delete {
			delete(l.meta, name)
		} else {
			l.meta[name] = op.Value
		}
	}
}

func (l *Log) truncate(from uint64) {
	l.cuts++
	l.last, l.promised = from-1, 0
	if l.last < l.first {
		l.first, l.last = 0, 0
		l.emptied++
	}
	l.tail.truncate(from)
	l.history = l.history.truncated(from)
	l.voids = slices.DeleteFunc(slices.Clone(l.voids), func(v uint64) bool { return v >= from })
}

// FirstIndex is the index of the oldest entry, 0 if there is none.
func (l *Log) FirstIndex() uint64 {
	first, _ := l.ends()
	return first
}

// LastIndex is the index of the newest entry, 0 if there is none.
func (l *Log) LastIndex() uint64 {
	_, last := l.ends()
	return last
}

func (l *Log) ends() (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.first, l.last
}

// Append adds entries, which continue the log without a gap; an empty log may
// begin at any index. When it returns nil they survive power loss. All are in
// one frame: none or all are there after a crash. It blocks for one or two
// syncs; the entries' bytes are copied. The errors to test for are
// [ErrNoSpace] (nothing was written), [ErrFailed] and [ErrClosed].
func (l *Log) Append(entries ...Entry) error {
	ops, err := l.appendOps(entries)
	if err != nil {
		return err
	}
	return l.store.commit(ops)
}

// Promise is Append for who goes on before the entries are synced: if it
// returns true, they have their place in the log and are synced before anything
// that is written later; that can fail only with the store as a whole. then is
// told the outcome, nil or an error that wraps [ErrFailed], once and in order,
// when the entries can be read; it must not block or write to the store. False
// says that nothing was done: Append can do it, or say why not. TruncateSuffix
// is not to be called before all that was promised has its outcome.
func (l *Log) Promise(then func(error), entries ...Entry) bool {
	ops, err := l.appendOps(entries)
	if err != nil || !l.store.promise(ops, then) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promised = max(l.promised, entries[len(entries)-1].Index)
	return true
}

// appendOps gives what it takes to append entries, which must be the next ones.
func (l *Log) appendOps(entries []Entry) ([]journal.Op, error) {
	if l.store.overfull() && slices.ContainsFunc(entries, func(e Entry) bool { return e.NeedsRoom() }) {
		return nil, fmt.Errorf("append to group %d: %w", l.group, ErrNoSpace)
	}
	l.mu.RLock()
	next, cuts := max(l.last, l.promised)+1, l.cuts
	l.mu.RUnlock()
	ops := make([]journal.Op, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.Index != next && (next != 1 || i > 0) || e.Index == 0 {
			return nil, fmt.Errorf("append entry %d to group %d: the next index is %d", e.Index, l.group, next)
		}
		next = e.Index + 1
		ops[i] = journal.Op{Key: indexKey(opEntry, l.group, e.Index), Value: e.encode(l.group, cuts)}
	}
	return ops, nil
}

// TruncateSuffix removes the entries from index from on, durably when it
// returns nil. The error wraps [ErrNotFound] if the log does not hold from.
func (l *Log) TruncateSuffix(from uint64) error {
	first, last := l.ends()
	if from > last || from < first || from == 0 {
		return fmt.Errorf("truncate group %d from %d: %w: it holds %d to %d", l.group, from, ErrNotFound, first, last)
	}
	if from == first {
		from = 1 // nothing stays, of what was trimmed before neither
	}
	return l.store.commit([]journal.Op{{Key: groupKey(opTruncate, l.group), Value: indexValue(from)}})
}

// TrimHead removes the entries up to and including index through, durably
// when it returns nil. The newest entry can't be removed. The space on the disk
// comes back in the background, and late: Badger learns what is dead as it
// compacts its tables, which hold some 300,000 keys each.
func (l *Log) TrimHead(through uint64) error {
	first, last := l.ends()
	if through >= last {
		return fmt.Errorf("trim group %d through %d: %w: the newest entry, %d, stays", l.group, through, ErrNotFound, last)
	}
	if through < first {
		return nil
	}
	err := l.store.commit([]journal.Op{{Key: groupKey(opTrim, l.group), Value: indexValue(through + 1)}})
	if err == nil {
		l.removeTrimmed()
	}
	return err
}

// Meta returns the value that was last set for a name, nil if none. It is not
// to be changed.
func (l *Log) Meta(name string) []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.meta[name]
}

// Metas returns the names and values that begin with prefix.
func (l *Log) Metas(prefix string) map[string][]byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	found := map[string][]byte{}
	for name, v := range l.meta {
		if strings.HasPrefix(name, prefix) {
			found[name] = v
		}
	}
	return found
}

// Meta is a name and a value; a nil value deletes.
type Meta struct {
	Name  string
	Value []byte
}

// SetMeta sets values, all or none, durably when it returns nil. They are
// kept in memory and written whole at each checkpoint: keep them small. The
// values are the store's from then on.
func (l *Log) SetMeta(metas ...Meta) error {
	ops := make([]journal.Op, len(metas))
	for i, m := range metas {
		ops[i] = journal.Op{Key: append(groupKey(opMeta, l.group), m.Name...), Value: m.Value, Delete: m.Value == nil}
	}
	return l.store.commit(ops)
}

// Void marks the batch at index as one that did not count: it carried other
// txids than were due. Lookups by txid pass over it. The mark is durable when
// it returns nil, and goes when the entry does.
func (l *Log) Void(index uint64) error {
	if slices.Contains(l.Voids(), index) {
		return nil
	}
	return l.store.commit([]journal.Op{{Key: groupKey(opVoid, l.group), Value: indexValue(index)}})
}

// Voids returns the indexes of batches that did not count, in the order in which
// they were marked. The slice is not to be changed.
func (l *Log) Voids() []uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clip(l.voids)
}
