package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// removeTrimmed deletes the log's entries below its first index from Badger, in
// the background, and has the space reclaimed if there is enough. Entries that
// remain when the store closes are deleted after the next start. They are never
// read again.
func (l *Log) removeTrimmed() {
	l.store.inBackground(func() {
		if err := l.deleteBelow(); err != nil && l.store.Failed() == nil {
			l.store.opts.Logger.Warn("trimmed entries are not deleted yet", "group", l.group, "err", err)
		}
	})
}

// deleteBelow deletes in pieces, so that its memory and the time for which it
// blocks writers have a bound.
func (l *Log) deleteBelow() error {
	l.mu.RLock()
	first, emptied := l.first, l.emptied
	l.mu.RUnlock()
	// Entries in the applier's queue would come back after the deletion.
	if !l.store.applier.wait(l.store.lastLogsSeq()) {
		return l.store.Failed()
	}
	for more := true; more; {
		select {
		case <-l.store.done:
			return nil
		default:
		}
		var err error
		l.store.badgerWrite.Lock()
		more, err = l.deletePiece(first, emptied)
		l.store.badgerWrite.Unlock()
		if errors.Is(err, ErrNoSpace) {
			select { // deleting makes space: there may be enough next time
			case <-l.store.done:
				return nil
			case <-time.After(roomInterval):
			}
			more, err = true, nil
		}
		if err != nil {
			return err
		}
	}
	if l.store.muchDeleted() {
		l.store.wakeCheckpoint()
	}
	return nil
}

// deletePiece deletes some of the entries below index first, unless the log was
// emptied meanwhile: it may then begin at any index.
func (l *Log) deletePiece(first, emptied uint64) (more bool, err error) {
	l.removing.Lock()
	defer l.removing.Unlock()
	l.mu.RLock()
	same := l.emptied == emptied
	l.mu.RUnlock()
	if !same || l.removed >= first {
		return false, nil
	}
	entries, txs := groupKey(opEntry, l.group), groupKey(opTx, l.group)
	below := func(item *badger.Item) bool { return keyIndex(item.Key()) < first }
	keys, err := l.store.deleteSome(indexKey(opEntry, l.group, l.removed), entries, below)
	if err != nil || len(keys) > 0 {
		return true, err
	}
	pointsBelow := func(item *badger.Item) bool {
		index, err := valueIndex(item)
		return err == nil && index < first
	}
	if keys, err = l.store.deleteSome(txs, txs, pointsBelow); err != nil || len(keys) > 0 {
		return true, err
	}
	l.removed = first
	return false, nil
}

// valueIndex returns the index that a key by txid points to.
func valueIndex(item *badger.Item) (index uint64, err error) {
	err = item.Value(func(v []byte) error {
		if len(v) != 8 {
			return fmt.Errorf("%w: key %x holds %d bytes", ErrDamaged, item.Key(), len(v))
		}
		index = binary.BigEndian.Uint64(v)
		return nil
	})
	return index, err
}

// deleteKeys deletes keys with a prefix, from start on, while goes returns
// true.
func (s *Store) deleteKeys(start, prefix []byte, goes func(*badger.Item) bool) error {
	for {
		keys, err := s.deleteSome(start, prefix, goes)
		if err != nil || len(keys) == 0 {
			return err
		}
		start = keys[len(keys)-1]
	}
}

// deleteSome is one step of deleteKeys. It returns the deleted keys.
func (s *Store) deleteSome(start, prefix []byte, goes func(*badger.Item) bool) (keys [][]byte, err error) {
	const piece = 10_000
	bytes := int64(0)
	err = s.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: prefix})
		defer it.Close()
		for it.Seek(start); it.Valid() && len(keys) < piece && goes(it.Item()); it.Next() {
			keys = append(keys, it.Item().KeyCopy(nil))
			bytes += it.Item().EstimatedSize()
		}
		return nil
	})
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	var d demand
	for _, k := range keys {
		d.put(len(k), 0, 1)
	}
	d.put(deletedKeySize, deletedValueSize, deletedValueSize+1)
	if err := s.prepare(d); err != nil {
		return nil, err
	}
	wb := s.db.NewWriteBatch()
	defer wb.Cancel()
	for _, k := range keys {
		if err := wb.Delete(k); err != nil {
			return nil, err
		}
	}
	if err := s.putDeleted(wb, s.deleted.Add(bytes)); err != nil {
		return nil, err
	}
	return keys, wb.Flush()
}

// The size of the entry that holds how much was deleted.
const (
	deletedKeySize   = 1
	deletedValueSize = 8
)

// putDeleted stores how many bytes were deleted since tables were merged: a
// store that starts often must not forget it each time.
func (s *Store) putDeleted(wb *badger.WriteBatch, bytes int64) error {
	return wb.Set([]byte{opDeleted}, indexValue(uint64(bytes)))
}

// storeDeleted stores what is left to be merged after a merge. Without space
// for that, tables are merged once more after a start.
func (s *Store) storeDeleted() error {
	s.badgerWrite.Lock()
	defer s.badgerWrite.Unlock()
	var d demand
	d.put(deletedKeySize, deletedValueSize, deletedValueSize+1)
	if err := s.prepare(d); errors.Is(err, ErrNoSpace) {
		return nil
	} else if err != nil {
		return err
	}
	wb := s.db.NewWriteBatch()
	defer wb.Cancel()
	if err := s.putDeleted(wb, s.deleted.Load()); err != nil {
		return err
	}
	return wb.Flush()
}

// loadDeleted reads what storeDeleted and deleteSome have stored.
func (s *Store) loadDeleted() error {
	bytes, err := s.storedIndex(opDeleted)
	s.deleted.Store(max(int64(bytes), 0))
	return err
}
