package wal

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// FindTx returns the index of the batch that holds a txid, looking no further
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

// transactions returns the batch in e if it is one of transactions. Its header
// alone is looked at: the entry's checksum covers it.
func (e *Entry) transactions() (Batch, bool) {
	if e.Type != 0 {
		return Batch{}, false
	}
	b, err := peekBatch(e.Data)
	return b, err == nil && b.Kind == Transactions && b.Count > 0 && !b.OutOfTerm(e.Term)
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

// longRun is how many entries without a transaction are read before the next batch
// is looked up. The applier gives the batch behind so many a key by its txid.
const longRun = 4 * hintEntries

// Batches reads the transactions' batches from the one that holds txid on, up
// to index to, each with the index it has. Voided batches are left out, and long
// runs of other entries between batches are passed over without being read. It
// stops after the first error: [ErrTrimmed] if txid is older than what is
// kept, [ErrNotFound] if it is newer than what index to holds, or as
// [Log.Entry] gives it.
//
// Whoever knows the last txid up to index to stops there: that no batch comes
// is only known after all entries were read.
func (l *Log) Batches(txid, to uint64) iter.Seq2[uint64, BatchOrError] {
	return func(yield func(uint64, BatchOrError) bool) {
		start, err := l.FindTx(txid, to)
		if err != nil {
			yield(0, BatchOrError{Err: err})
			return
		}
		b := batches{log: l, from: start, to: min(to, l.LastIndex()), yield: yield}
		for b.from > 0 {
			b.run()
		}
	}
}

// batches is Batches under way.
type batches struct {
	log   *Log
	from  uint64 // the entry to go on at, 0 at the end
	to    uint64
	next  uint64 // the txid that comes next, 0 before the first batch
	yield func(uint64, BatchOrError) bool
}

// run reads on until the end, or a long run without transactions.
func (b *batches) run() {
	start, others := b.from, 0
	b.from = 0
	for e, err := range b.log.Entries(start, b.to) {
		if first, _ := b.log.ends(); errors.Is(err, ErrNotFound) && first > start {
			err = ErrTrimmed
		}
		var found bool
		if err == nil {
			found, err = b.entry(&e)
		}
		if err != nil {
			b.yield(0, BatchOrError{Err: err})
			return
		}
		if found {
			others = 0
		} else if others++; others == longRun {
			b.from = b.log.batchAt(b.next, e.Index, b.to)
		}
		if b.from > 0 || b.next == 0 {
			return
		}
	}
}

// entry returns the batch in an entry, if it is the next one. Where no more is
// wanted, next is 0 then.
func (b *batches) entry(e *Entry) (found bool, err error) {
	if e.Type != 0 {
		return false, nil
	}
	batch, err := ParseBatch(e.Data)
	if err != nil {
		return false, fmt.Errorf("%w: entry %d of group %d: %w", ErrDamaged, e.Index, b.log.group, err)
	}
	if batch.Kind != Transactions || batch.Count == 0 || b.next != 0 && batch.First != b.next || batch.OutOfTerm(e.Term) {
		return false, nil // another kind, or void: it repeats or skips txids, or is of another term
	}
	b.next = batch.Last() + 1
	if !b.yield(e.Index, BatchOrError{Batch: batch}) {
		b.next = 0
	}
	return true, nil
}

// batchAt looks up the batch that begins at a txid, between index after and index
// to; 0 says that it has to be searched for.
func (l *Log) batchAt(txid, after, to uint64) (index uint64) {
	l.mu.RLock()
	voids := l.voids
	index, _, ok := l.tail.find(txid, to, voids)
	l.mu.RUnlock()
	if !ok {
		var at uint64
		var err error
		if index, at, err = l.hintAt(txid); err != nil || at != txid {
			return 0
		}
	}
	if index <= after || index > to || slices.Contains(voids, index) {
		return 0
	}
	e, err := l.Entry(index)
	if err != nil {
		return 0
	}
	if b, ok := e.transactions(); !ok || b.First != txid {
		return 0
	}
	return index
}

// BatchOrError is a batch, or why there is none.
type BatchOrError struct {
	Batch Batch
	Err   error
}
