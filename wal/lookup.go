package wal

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// FindTx returns the index of the batch that holds a txid, searching up to
// index to: the caller has marked all void batches up to there. The error is
// [ErrTrimmed] if txid, or every entry up to index to, was trimmed,
// [ErrNotFound] if no batch up to there holds it, or one of those of
// [Log.Entry].
func (l *Log) FindTx(txid, to uint64) (index uint64, err error) {
	e, err := l.findTx(txid, to)
	return e.Index, err
}

// findTx is [Log.FindTx], and returns the entry.
func (l *Log) findTx(txid, to uint64) (e Entry, err error) {
	for {
		first, _ := l.ends()
		e, err = l.tryFindTx(txid, to)
		if !errors.Is(err, ErrNotFound) {
			return e, err
		}
		if now, _ := l.ends(); now == first {
			return e, err
		}
		// The log was trimmed during the search, which may have missed an
		// entry.
	}
}

func (l *Log) tryFindTx(txid, to uint64) (Entry, error) {
	l.mu.RLock()
	first, voids := l.first, l.voids
	to = min(to, l.last)
	index, last, ok := l.tail.find(txid, to, voids)
	l.mu.RUnlock()
	switch {
	case ok && txid <= last:
		return l.Entry(index)
	case ok || txid == 0 || first == 0 || to == 0:
		return Entry{}, ErrNotFound
	case to < first:
		return Entry{}, ErrTrimmed
	}
	start, err := l.hintBefore(txid, first, to, voids)
	if err != nil || start.found {
		return start.entry, err
	}
	return l.searchTx(txid, start, to, voids)
}

// start is the place where a search for a txid begins.
type start struct {
	index uint64
	found bool  // entry holds the txid
	entry Entry // if found
	seen  bool  // a batch before index holds older txids
}

// searchTx looks for txid from a start to index to.
func (l *Log) searchTx(txid uint64, from start, to uint64, voids []uint64) (Entry, error) {
	seen := from.seen
	for e, err := range l.Entries(from.index, to) {
		if err != nil {
			return Entry{}, err
		}
		b, ok := e.transactions()
		if !ok || slices.Contains(voids, e.Index) {
			continue
		}
		if b.First > txid && !seen {
			return Entry{}, ErrTrimmed // txids are dense from 1: it was before
		}
		if b.First > txid {
			break
		}
		if txid <= b.Last() {
			return e, nil
		}
		seen = true
	}
	return Entry{}, ErrNotFound
}

// transactions returns the batch in e if it holds transactions. It checks only
// the header: the entry's checksum covers the rest.
func (e *Entry) transactions() (Batch, bool) {
	if e.Type != 0 {
		return Batch{}, false
	}
	b, err := peekBatch(e.Data)
	return b, err == nil && b.Kind == Transactions && b.Count > 0 && !e.outOfTerm(&b)
}

// hintBefore returns where to search for txid: at a batch that holds it, after
// a batch shortly before it, or at index first. Keys by txid are hints: those
// that a truncation has left may point to any entry.
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
					return start{found: true, entry: e}, nil
				}
				return start{index: index + 1, seen: true}, nil
			}
		}
		below = at - 1
	}
	return start{index: first}, nil
}

// hintAt returns the index that the nearest key at or below txid points to, and
// that key's txid; 0 if there is none.
func (l *Log) hintAt(txid uint64) (index, at uint64, err error) {
	low, err := l.lowestHint()
	switch {
	case err != nil || txid < low.at:
		return 0, 0, err
	case txid < low.next:
		return low.index, low.at, nil
	}
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

// lowHint is the lowest key by txid of a log.
type lowHint struct {
	index, at uint64
	next      uint64 // the one after it
	// Of the log when it was read: it may change with these.
	first, epoch, emptied uint64
}

// lowestHint returns the lowest key by txid. An iteration backwards from there
// would come to the key of opApplied, of which Badger has thousands of
// versions, and Badger reads one item ahead.
func (l *Log) lowestHint() (low lowHint, err error) {
	l.mu.RLock()
	now := lowHint{first: l.first, epoch: l.epoch, emptied: l.emptied, at: math.MaxUint64, next: math.MaxUint64}
	l.mu.RUnlock()
	if low := l.lowest.Load(); low != nil && low.first == now.first && low.epoch == now.epoch && low.emptied == now.emptied {
		return *low, nil
	}
	err = l.store.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: groupKey(opTx, l.group)})
		defer it.Close()
		if it.Rewind(); !it.Valid() {
			return nil
		}
		now.at = keyIndex(it.Item().Key())
		if now.index, err = valueIndex(it.Item()); err != nil {
			return err
		}
		if it.Next(); it.Valid() {
			now.next = keyIndex(it.Item().Key())
			l.lowest.Store(&now)
		}
		return nil
	})
	return now, err
}

// longRun is how many entries without a transaction are read before the next
// batch is looked up. The applier writes a key by txid for a batch after so
// long a run.
const longRun = 4 * hintEntries

// Batches iterates over the batches of transactions with their indexes, from
// the one that holds txid up to index to. It leaves out void batches, and skips
// long runs of other entries without reading them. It stops after the first
// error: [ErrTrimmed] if txid was trimmed, [ErrNotFound] if it is newer than
// the transactions up to index to, or one of those of [Log.Entry].
//
// A caller that knows the last txid up to index to should stop there: otherwise
// all entries up to index to are read in search of another batch.
func (l *Log) Batches(txid, to uint64) iter.Seq2[uint64, BatchOrError] {
	return func(yield func(uint64, BatchOrError) bool) {
		e, err := l.findTx(txid, to)
		if err != nil {
			yield(0, BatchOrError{Err: err})
			return
		}
		b := batches{log: l, from: e.Index + 1, to: min(to, l.LastIndex()), voids: l.Voids(), yield: yield}
		if _, err := b.entry(&e); err != nil {
			yield(0, BatchOrError{Err: err})
			return
		}
		for b.next > 0 && b.from > 0 {
			b.run()
		}
	}
}

// batches is the state of an iteration by Batches.
type batches struct {
	log   *Log
	from  uint64 // the entry to continue at, 0 at the end
	to    uint64
	next  uint64 // the next txid, 0 if the consumer wants no more
	voids []uint64
	yield func(uint64, BatchOrError) bool
}

// run reads until the end, or a long run without transactions.
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

// entry yields the batch in an entry, if it is the next one. If the consumer
// wants no more, it sets next to 0.
func (b *batches) entry(e *Entry) (found bool, err error) {
	if e.Type != 0 {
		return false, nil
	}
	batch, err := peekBatch(e.Data) // the entry's checksum covers the rest
	if err != nil {
		return false, fmt.Errorf("%w: entry %d of group %d: %w", ErrDamaged, e.Index, b.log.group, err)
	}
	if batch.Kind != Transactions || batch.Count == 0 || b.next != 0 && batch.First != b.next || e.outOfTerm(&batch) || slices.Contains(b.voids, e.Index) {
		return false, nil // another kind, or void
	}
	b.next = batch.Last() + 1
	if !b.yield(e.Index, BatchOrError{Batch: batch}) {
		b.next = 0
	}
	return true, nil
}

// nearTries is how many entries BatchNear reads at most.
const nearTries = 6

// BatchNear returns the batch that holds a txid, if that is the entry at index
// near or one that is found from there in a few steps. It is for those that
// know about where the batch is, and need not be right: if ok is false, or the
// batch is behind index to, [Log.Batches] finds it or says why there is none.
// The batch is valid until buf, into which it is read, is used again.
func (l *Log) BatchNear(txid, near, to uint64, buf *[]byte) (b Batch, ok bool) {
	voids := l.Voids()
	for range nearTries {
		if near == 0 || near > to {
			return Batch{}, false
		}
		e, err := l.entryIn(near, buf)
		if err != nil {
			return Batch{}, false
		}
		b, ok := e.transactions()
		switch {
		case !ok || slices.Contains(voids, near):
			near++
		case txid < b.First:
			near -= min(near, 1+(b.First-txid-1)/uint64(b.Count))
		case txid > b.Last():
			near += min(to, 1+(txid-b.Last()-1)/uint64(b.Count))
		default:
			return b, true
		}
	}
	return Batch{}, false
}

// batchAt looks up the batch that begins at a txid, between index after and
// index to. It returns 0 if the batch has to be searched for.
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

// BatchOrError is a batch, or the error in place of one.
type BatchOrError struct {
	Batch Batch
	Err   error
}
