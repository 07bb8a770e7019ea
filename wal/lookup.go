package wal

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// FindTx gives the index of the batch that holds a txid, looking no further
// than index to: the caller knows up to where it has marked what is void. The
// error is [ErrTrimmed] if txid is older than what is kept, or nothing up to
// index to is, [ErrNotFound] if no batch up to there holds it, or as
// [Log.Entry] gives it.
func (l *Log) FindTx(txid, to uint64) (index uint64, err error) {
	for {
		first, _ := l.ends()
		index, err = l.findTx(txid, to)
		if !errors.Is(err, ErrNotFound) {
			return index, err
		}
		if now, _ := l.ends(); now == first {
			return 0, err
		}
		// Trimmed under the search: what it missed may only have moved on.
	}
}

func (l *Log) findTx(txid, to uint64) (index uint64, err error) {
	l.mu.RLock()
	first, voids := l.first, l.voids
	to = min(to, l.last)
	index, last, ok := l.tail.find(txid, to, voids)
	l.mu.RUnlock()
	switch {
	case ok && txid <= last:
		return index, nil
	case ok || txid == 0 || first == 0 || to == 0:
		return 0, ErrNotFound
	case to < first:
		return 0, ErrTrimmed
	}
	start, err := l.hintBefore(txid, first, to, voids)
	if err != nil || start.found {
		return start.index, err
	}
	return l.searchTx(txid, start, to, voids)
}

// start is where a search for a txid begins.
type start struct {
	index uint64
	found bool // the batch at index holds the txid
	seen  bool // the batch before index is one of older txids
}

// searchTx looks for txid from a start to index to.
func (l *Log) searchTx(txid uint64, from start, to uint64, voids []uint64) (uint64, error) {
	seen := from.seen
	for e, err := range l.Entries(from.index, to) {
		if err != nil {
			return 0, err
		}
		b, ok := e.transactions()
		if !ok || slices.Contains(voids, e.Index) {
			continue
		}
		if b.First > txid && !seen {
			return 0, ErrTrimmed // txids are dense from 1: it was before
		}
		if b.First > txid {
			break
		}
		if txid <= b.Last() {
			return e.Index, nil
		}
		seen = true
	}
	return 0, ErrNotFound
}

// transactions gives the batch in e if it is one of transactions. Its header
// alone is looked at: the entry's checksum covers it.
func (e *Entry) transactions() (Batch, bool) {
	if e.Type != 0 {
		return Batch{}, false
	}
	b, err := peekBatch(e.Data)
	return b, err == nil && b.Kind == Transactions && b.Count > 0
}

// hintBefore gives where to search for txid: at a batch that holds it, behind
// one near before it that the store knows, or at index first. Keys by txid are
// hints: what a truncated log has left of them leads anywhere.
func (l *Log) hintBefore(txid, first, to uint64, voids []uint64) (start, error) {
	for below := txid; below > 0; {
		index, at, err := l.hintAt(below)
		if err != nil {
			return start{}, err
		}
		if at == 0 || index < first {
			break
		}
		if index <= to && !slices.Contains(voids, index) {
			e, err := l.Entry(index)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return start{}, err
			}
			if b, ok := e.transactions(); err == nil && ok && b.First <= txid {
				if txid <= b.Last() {
					return start{index: index, found: true}, nil
				}
				return start{index: index + 1, seen: true}, nil
			}
		}
		below = at - 1
	}
	return start{index: first}, nil
}

// hintAt gives the index that the nearest key at or below txid points to, and
// that key's txid; 0 if there is none.
func (l *Log) hintAt(txid uint64) (index, at uint64, err error) {
	err = l.store.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupKey(opTx, l.group), Reverse: true})
		defer it.Close()
		it.Seek(indexKey(opTx, l.group, txid))
		if !it.Valid() {
			return nil
		}
		at = keyIndex(it.Item().Key())
		index, err = valueIndex(it.Item())
		return err
	})
	return index, at, err
}

// Batches reads the transactions' batches from the one that holds txid on, up
// to index to, each with the index it has. Voided batches are left out. It
// stops after the first error: [ErrTrimmed] if txid is older than what is
// kept, [ErrNotFound] if it is newer than what index to holds, or as
// [Log.Entry] gives it.
func (l *Log) Batches(txid, to uint64) iter.Seq2[uint64, BatchOrError] {
	return func(yield func(uint64, BatchOrError) bool) {
		start, err := l.FindTx(txid, to)
		if err != nil {
			yield(0, BatchOrError{Err: err})
			return
		}
		next := uint64(0)
		for e, err := range l.Entries(start, min(to, l.LastIndex())) {
			if first, _ := l.ends(); errors.Is(err, ErrNotFound) && first > start {
				err = ErrTrimmed
			}
			if err != nil {
				yield(0, BatchOrError{Err: err})
				return
			}
			if e.Type != 0 {
				continue
			}
			b, err := ParseBatch(e.Data)
			if err != nil {
				yield(e.Index, BatchOrError{Err: fmt.Errorf("%w: entry %d of group %d: %w", ErrDamaged, e.Index, l.group, err)})
				return
			}
			if b.Kind != Transactions || b.Count == 0 || next != 0 && b.First != next {
				continue // another kind, or void: it repeats or skips txids
			}
			next = b.Last() + 1
			if !yield(e.Index, BatchOrError{Batch: b}) {
				return
			}
		}
	}
}

// BatchOrError is a batch, or why there is none.
type BatchOrError struct {
	Batch Batch
	Err   error
}
