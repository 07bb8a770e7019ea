package wal

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cantuslog/cantus/internal/invariant"
	"github.com/cantuslog/cantus/wal/journal"
)

// Log is one group's log of entries, dense by index, and its small state. Reads
// are safe for concurrent use, also with writes. Append, AppendAsync,
// TruncateSuffix and Replace must not be called concurrently with one another,
// nor TruncateSuffix and Replace with TrimHead. SetMeta and Void may be called
// at any time.
type Log struct {
	store *Store
	group uint32
	read  atomic.Uint64 // entries

	lowest atomic.Pointer[lowHint] // see lowestHint

	// mu guards the fields below; only applyOp and a start change them, except
	// lastAsync.
	mu    sync.RWMutex
	first uint64 // index of the oldest entry, 0 if there is none
	last  uint64 // index of the newest entry, 0 if there is none
	meta  map[string][]byte
	voids []uint64
	tail  tail
	// lastAsync is the newest entry that AppendAsync has put on its way to the
	// journal since the last truncation.
	lastAsync uint64
	epoch     uint64 // how often a suffix was truncated
	epochs    epochs
	emptied   uint64 // how often a truncation has left no entry

	// removing guards removed, and orders deletions in Badger: those of
	// trimmed entries against those of a log that begins anew.
	removing sync.Mutex
	removed  uint64 // Badger holds nothing below this index; 0 if not known
}

func newLog(s *Store, group uint32) *Log {
	return &Log{store: s, group: group, meta: map[string][]byte{}, tail: tail{most: s.opts.TailBytes}}
}

// applyOp applies one synced operation to the log's state in memory.
func (l *Log) applyOp(seq uint64, op journal.Op, applied uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch op.Key[0] {
	case opEntry:
		index := keyIndex(op.Key)
		invariant.EntriesDense.Check(l.last == 0 || index == l.last+1, index, l.last+1)
		l.last = index
		if l.first == 0 {
			l.first = l.last
		}
		l.epochs = l.epochs.appended(l.last, l.epoch)
		l.tail.put(seq, l.last, op.Value, applied)
	case opTruncate:
		l.truncate(binary.BigEndian.Uint64(op.Value))
	case opTrim:
		l.first = binary.BigEndian.Uint64(op.Value)
		l.tail.trim(l.first)
		l.epochs = l.epochs.trimmed(l.first)
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
	l.epoch++
	l.last, l.lastAsync = from-1, 0
	if l.last < l.first {
		l.first, l.last = 0, 0
		l.emptied++
	}
	l.tail.truncate(from)
	l.epochs = l.epochs.truncated(from)
	l.voids = slices.DeleteFunc(slices.Clone(l.voids), func(v uint64) bool { return v >= from })
}

// FirstIndex returns the index of the oldest entry, 0 if there is none.
func (l *Log) FirstIndex() uint64 {
	first, _ := l.ends()
	return first
}

// LastIndex returns the index of the newest entry, 0 if there is none.
func (l *Log) LastIndex() uint64 {
	_, last := l.ends()
	return last
}

func (l *Log) ends() (first, last uint64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.first, l.last
}

// Append adds entries, which must continue the log without a gap; an empty log
// may begin at any index. When it returns nil they survive power loss. They are
// in one frame: after a crash all of them are there, or none. Append blocks for
// one or two syncs and copies the entries' bytes. The errors to test for are
// [ErrNoSpace] (nothing was written), [ErrFailed] and [ErrClosed].
func (l *Log) Append(entries ...Entry) error {
	ops, err := l.appendOps(entries)
	if err != nil {
		return err
	}
	return l.store.commit(ops)
}

// AppendAsync is Append without waiting for the sync. If it returns true, the
// entries have their position in the log and will be synced before any later
// write; only a failure of the whole store can prevent that. then is called
// once with the outcome, nil or an error that wraps [ErrFailed], in order, as
// soon as the entries can be read. It must not block or write to the store. If
// AppendAsync returns false, nothing was done: the caller calls Append, which
// appends the entries or returns the reason. TruncateSuffix and Replace must
// not be called before every AppendAsync has its outcome.
func (l *Log) AppendAsync(then func(error), entries ...Entry) bool {
	ops, err := l.appendOps(entries)
	if err != nil || !l.store.commitAsync(ops, then) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastAsync = max(l.lastAsync, entries[len(entries)-1].Index)
	return true
}

// Replace is TruncateSuffix from the first of entries on and Append, in one
// frame: after an error or a crash the log is as it was before, or has all of
// entries. The errors are those of both.
func (l *Log) Replace(entries ...Entry) error {
	truncate, err := l.truncateOp(entries[0].Index)
	if err != nil {
		return err
	}
	l.mu.RLock()
	epoch := l.epoch + 1
	l.mu.RUnlock()
	ops, err := l.entryOps(entries, entries[0].Index, epoch)
	if err != nil {
		return err
	}
	return l.store.commit(append([]journal.Op{truncate}, ops...))
}

// appendOps returns the journal operations that append entries, which must be
// the next ones.
func (l *Log) appendOps(entries []Entry) ([]journal.Op, error) {
	l.mu.RLock()
	next, epoch := max(l.last, l.lastAsync)+1, l.epoch
	l.mu.RUnlock()
	return l.entryOps(entries, next, epoch)
}

// entryOps returns the journal operations that append entries in an epoch, from
// index next on.
func (l *Log) entryOps(entries []Entry, next, epoch uint64) ([]journal.Op, error) {
	if l.store.overfull() && slices.ContainsFunc(entries, func(e Entry) bool { return e.NeedsRoom() }) {
		return nil, fmt.Errorf("append to group %d: %w", l.group, ErrNoSpace)
	}
	ops := make([]journal.Op, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.Index != next && (next != 1 || i > 0) || e.Index == 0 {
			return nil, fmt.Errorf("append entry %d to group %d: the next index is %d", e.Index, l.group, next)
		}
		next = e.Index + 1
		ops[i] = journal.Op{Key: indexKey(opEntry, l.group, e.Index), Value: e.encode(l.group, epoch)}
	}
	return ops, nil
}

// TruncateSuffix removes the entries from index from on. When it returns nil
// that is durable. The error wraps [ErrNotFound] if the log does not hold from.
func (l *Log) TruncateSuffix(from uint64) error {
	op, err := l.truncateOp(from)
	if err != nil {
		return err
	}
	return l.store.commit([]journal.Op{op})
}

// truncateOp returns the journal operation that removes the entries from index
// from on.
func (l *Log) truncateOp(from uint64) (journal.Op, error) {
	first, last := l.ends()
	if from > last || from < first || from == 0 {
		return journal.Op{}, fmt.Errorf("truncate group %d from %d: %w: it holds %d to %d", l.group, from, ErrNotFound, first, last)
	}
	if from == first {
		from = 1 // no entry remains: delete the trimmed ones as well
	}
	return journal.Op{Key: groupKey(opTruncate, l.group), Value: indexValue(from)}, nil
}

// TrimHead removes the entries up to and including index through. When it
// returns nil that is durable. The newest entry can't be removed. The space on
// the disk is freed later, in the background: Badger learns what was deleted
// when it compacts its tables, which hold some 300,000 keys each.
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

// Meta returns the value that was last set for a name, nil if there is none.
// The caller must not change it.
func (l *Log) Meta(name string) []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.meta[name]
}

// Metas returns the values whose names begin with prefix, by name.
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

// SetMeta sets values, all or none. When it returns nil they are durable. They
// stay in memory and are written whole at each checkpoint: keep them small. The
// caller must not change the values afterwards.
func (l *Log) SetMeta(metas ...Meta) error {
	ops := make([]journal.Op, len(metas))
	for i, m := range metas {
		ops[i] = journal.Op{Key: append(groupKey(opMeta, l.group), m.Name...), Value: m.Value, Delete: m.Value == nil}
	}
	return l.store.commit(ops)
}

// Void marks the batch at index as void: it does not count. Lookups by txid
// skip it. When Void returns nil the mark is durable. It is removed with the
// entry.
func (l *Log) Void(index uint64) error {
	if slices.Contains(l.Voids(), index) {
		return nil
	}
	return l.store.commit([]journal.Op{{Key: groupKey(opVoid, l.group), Value: indexValue(index)}})
}

// Voids returns the indexes of void batches in the order in which they were
// marked. The caller must not change the slice.
func (l *Log) Voids() []uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.Clip(l.voids)
}
