package broker

import (
	"fmt"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

const (
	// chunkBytes is about how much of the log the walk holds at a time: it walks
	// backwards, and the log is read forwards.
	chunkBytes = 4 << 20
	// chunkEntries is how many entries it holds at first, and again after a stretch
	// without transactions.
	chunkEntries = 16
	// walkTransactions bounds the walk where few transactions record locks.
	walkTransactions = 8_000_000
)

// rebuild fills the lock table and the message ids from the log's tail, newest first. It
// ends when they are full or the log begins. It also ends when as many locks were
// recorded as the table has room for, though under fewer names, and no older message id
// counts: older locks are then below the floor. r.mu is held.
func (r *replica) rebuild(s snapshotState) error {
	err := r.certifier.rebuild(s.Txid, s.Time, s.First, func(older func(*wal.Transaction) bool) error { return r.walk(s, older) })
	if err != nil {
		return err
	}
	r.mark.Store(s.Txid)
	return nil
}

// walk passes transactions to older, the newest first.
func (r *replica) walk(s snapshotState, older func(*wal.Transaction) bool) error {
	w := walk{r: r, older: older, next: s.Txid, oldestID: s.Time - int64(r.window), voids: r.log.Voids()}
	entries := uint64(chunkEntries)
	for to, first := s.Index, r.log.FirstIndex(); to >= first && to > 0 && w.next >= s.First; {
		from := max(first, to-min(to, entries-1))
		size, more, err := w.entries(from, to)
		if err != nil {
			return fmt.Errorf("rebuild: %w", err)
		}
		if !more {
			break
		}
		to = from - 1
		if index := w.skip(to); index > 0 {
			to, entries = index, chunkEntries // skip the entries between
		} else if size < chunkBytes/2 && entries < 1<<14 {
			entries *= 2
		} else if size > chunkBytes && entries > 1 {
			entries /= 2
		}
	}
	return nil
}

// walk walks the log backwards.
type walk struct {
	r        *replica
	older    func(*wal.Transaction) bool // takes one, and reports whether older ones matter
	next     uint64                      // the txid that it expects next
	oldestID int64                       // message ids of transactions before this time don't count
	voids    []uint64
	met      bool // there was a batch among the last entries
	locks    int  // recorded so far
	count    int  // transactions so far
	tx       []wal.Transaction
}

// entries walks the entries from..to, the last first. size is about how many bytes they
// have; more is false when the walk may end.
func (w *walk) entries(from, to uint64) (size int, more bool, err error) {
	var batches []wal.Batch
	for e, err := range w.r.log.Entries(from, to) {
		if err != nil {
			return 0, false, err
		}
		size += len(e.Data)
		if e.Type != 0 || slices.Contains(w.voids, e.Index) {
			continue
		}
		b, err := wal.ParseBatch(e.Data)
		if err != nil {
			return 0, false, fmt.Errorf("%w: entry %d: %w", wal.ErrDamaged, e.Index, err)
		}
		if b.Kind == wal.Transactions {
			batches = append(batches, b)
		}
	}
	w.met = len(batches) > 0
	for _, b := range slices.Backward(batches) {
		if b.Last() != w.next {
			return 0, false, fmt.Errorf("%w: txid %d is missing below entry %d", wal.ErrDamaged, w.next, to)
		}
		if more, err := w.batch(b); err != nil || !more {
			return 0, false, err
		}
		w.next = b.First - 1
	}
	return size, true, nil
}

// skip returns the entry of the transaction that comes next, up to an entry, if there
// was none among the last entries; otherwise 0.
func (w *walk) skip(to uint64) (index uint64) {
	if w.met {
		return 0
	}
	index, err := w.r.log.FindTx(w.next, to)
	if err != nil {
		return 0 // the walk reads every entry, and returns the error
	}
	return index
}

// batch records a batch's transactions, the last first.
func (w *walk) batch(b wal.Batch) (more bool, err error) {
	for len(w.tx) < b.Count {
		w.tx = append(w.tx, wal.Transaction{})
	}
	n, records := 0, b.Read()
	for n < b.Count && records.Next(&w.tx[n]) {
		n++
	}
	if err := records.Err(); err != nil {
		return false, fmt.Errorf("%w: batch of txid %d: %w", wal.ErrDamaged, b.First, err)
	}
	for i := b.Count - 1; i >= 0; i-- {
		t := &w.tx[i]
		if t.Time < w.oldestID {
			if w.locks >= w.r.capacity || w.count >= walkTransactions {
				return false, nil
			}
			t.MsgID = nil // spare the hashing
		}
		if !w.older(t) {
			return false, nil
		}
		w.count++
		for _, l := range t.Locks {
			if l.Mode != wal.ReadLock {
				w.locks++
			}
		}
	}
	return true, nil
}
