package broker

import (
	"fmt"
	"slices"

	"github.com/cantuslog/cantus/wal"
)

const (
	// chunkBytes is about how much of the log the walk holds in memory: it goes
	// backwards, and each chunk is read forwards.
	chunkBytes = 4 << 20
	// chunkEntries is how many entries it reads at first, and again after it
	// has skipped entries without transactions.
	chunkEntries = 16
	// walkTransactions bounds the walk if few transactions record locks.
	walkTransactions = 8_000_000
)

// rebuild fills the lock table and the message ids from the end of the log,
// newest first, until they are full or it reaches the log's beginning. It stops
// earlier once no older message id counts and it has read either as many locks
// as the table has room for (of fewer names) or walkTransactions: older locks
// are then below the floor. r.mu is held.
func (s *partitionState) rebuild(snap snapshotState) error {
	err := s.certifier.rebuild(snap.Txid, snap.Time, snap.First, func(older func(*wal.Transaction) bool) error { return s.walk(snap, older) })
	if err != nil {
		return err
	}
	s.mark.Store(snap.Txid)
	return nil
}

// walk passes the log's transactions to older, the newest first, until older
// returns false.
func (s *partitionState) walk(snap snapshotState, older func(*wal.Transaction) bool) error {
	w := walk{state: s, older: older, next: snap.Txid, time: snap.Time, oldestID: snap.Time - int64(s.window), voids: s.log.Voids()}
	entries := uint64(chunkEntries)
	for to, first := snap.Index, s.log.FirstIndex(); to >= first && to > 0 && w.next >= snap.First; {
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

// walk is the state of a walk backwards through the log.
type walk struct {
	state    *partitionState
	older    func(*wal.Transaction) bool // records one, and reports whether older ones matter
	next     uint64                      // the txid that must come next
	time     int64                       // that of the one before, or of the log's end: none that follows is later
	oldestID int64                       // message ids of transactions before this time don't count
	voids    []uint64
	met      bool // there was a batch in the last chunk
	locks    int  // recorded so far
	count    int  // transactions so far
	tx       []wal.Transaction
}

// entries walks the entries from..to, the last first. size is about their size
// in bytes; more is false when the walk may end.
func (w *walk) entries(from, to uint64) (size int, more bool, err error) {
	var batches []wal.Batch
	for e, err := range w.state.log.Entries(from, to) {
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

// skip returns the index of the entry, up to index to, of the transaction that
// comes next, if there was none in the last chunk; otherwise 0.
func (w *walk) skip(to uint64) (index uint64) {
	if w.met {
		return 0
	}
	index, err := w.state.log.FindTx(w.next, to)
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
		if t.Time > w.time {
			return false, fmt.Errorf("%w: txid %d has the time %d, after %d, which is that of a later one", wal.ErrDamaged, t.Txid, t.Time, w.time)
		}
		w.time = t.Time
		if t.Time < w.oldestID {
			if w.locks >= w.state.capacity || w.count >= walkTransactions {
				return false, nil
			}
			t.MsgID = nil // saves hashing it
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
