package broker

import (
	"errors"
	"iter"

	"github.com/cantuslog/cantus/wal"
)

// walker reads single transactions of a log, in any order. If the next one is
// near and later, it reads on to it, and otherwise looks it up. What it has
// read is valid until it reads the next one.
type walker struct {
	log  *wal.Log
	to   uint64                   // no later entry may be read
	near func(txid uint64) uint64 // returns about the entry of a transaction, or 0

	buf     []byte
	batch   wal.Batch // the last one that was read
	records wal.BatchReader
	at      uint64 // the transaction that records returns next, 0 for none
	next    func() (uint64, wal.BatchOrError, bool)
	stop    func()
	seeks   int // lookups so far
}

// nearby is how many transactions are read rather than looked up.
const nearby = 512

// walker returns a walker that reads what is committed at a position.
func (r *reader) walker(at position) walker {
	return walker{log: r.store, to: at.index, near: r.indexer.near}
}

// read sets t to a transaction. The error is one of those of [wal.Log.Batches].
func (w *walker) read(txid uint64, t *wal.Transaction) error {
	if !w.holds(txid) {
		if err := w.seek(txid); err != nil {
			return err
		}
	}
	if w.at == 0 || txid < w.at {
		w.records, w.at = w.batch.Read(), w.batch.First
	}
	w.records.Skip(int(txid - w.at))
	w.at = txid + 1
	if !w.records.Next(t) {
		return errors.Join(wal.ErrDamaged, w.records.Err())
	}
	return nil
}

// holds reports whether the last batch has a transaction.
func (w *walker) holds(txid uint64) bool {
	return w.batch.Count > 0 && w.batch.First <= txid && txid <= w.batch.Last()
}

// seek reads the batch that has a transaction.
func (w *walker) seek(txid uint64) error {
	w.at = 0
	readOn := w.batch.Count > 0 && txid > w.batch.Last() && txid <= w.batch.Last()+nearby
	if w.next == nil || !readOn {
		w.close()
		w.seeks++
		if !readOn {
			if b, ok := w.log.BatchNear(txid, w.near(txid), w.to, &w.buf); ok {
				w.batch = b
				return nil
			}
		}
		w.next, w.stop = iter.Pull2(w.log.Batches(txid, w.to))
	}
	for {
		_, b, ok := w.next()
		if !ok {
			b.Err = wal.ErrNotFound
		}
		if b.Err != nil {
			w.close()
			return b.Err
		}
		if w.batch = b.Batch; w.holds(txid) {
			return nil
		}
	}
}

func (w *walker) close() {
	if w.stop != nil {
		w.stop()
	}
	w.next, w.stop, w.batch, w.at = nil, nil, wal.Batch{}, 0
}
