package lockmgr

import "iter"

// inflight holds the transactions that have passed but are not yet committed,
// oldest first. What they record is in the tables already; inflight says where.
type inflight struct {
	txs  []inflightTx
	refs []ref // the locks that txs record, in order
	head int   // txs before it were removed
	ref  int   // refs before it were removed
	ids  int   // how many of the transactions have a message id
}

type inflightTx struct {
	time  int64
	id    uint64 // its number among the ids, 0 if it has none
	again bool   // the id was known, and too old to count
	refs  int

	session   uint32 // the index of its session, 0 if it has none
	seq, mark uint64 // 0 without a session
}

// ref is a lock that a transaction in flight records: its index in the table,
// and the covered of its recorder.
type ref struct{ lock, covered uint32 }

func (f *inflight) len() int { return len(f.txs) - f.head }

// add adds a transaction as the newest. Its locks are the refs that were added
// since the last one.
func (f *inflight) add(fl inflightTx) {
	f.txs = append(f.txs, fl)
	if fl.id != 0 {
		f.ids++
	}
}

// popOldest removes the oldest transaction and returns it with its refs, which
// are valid until the next call of any method.
func (f *inflight) popOldest() (inflightTx, []ref) {
	fl := f.txs[f.head]
	refs := f.refs[f.ref : f.ref+fl.refs]
	f.head++
	f.ref += fl.refs
	if fl.id != 0 {
		f.ids--
	}
	return fl, refs
}

// compact moves what is left to the front once that is the smaller part, so
// that each transaction is moved at most once on average and nothing grows.
func (f *inflight) compact() {
	if f.head*2 < len(f.txs) {
		return
	}
	f.txs = f.txs[:copy(f.txs, f.txs[f.head:])]
	f.refs = f.refs[:copy(f.refs, f.refs[f.ref:])]
	f.head, f.ref = 0, 0
}

// truncate keeps the oldest transactions and returns the others with their
// refs. Both are valid until the next call of any method.
func (f *inflight) truncate(keep int) (gone []inflightTx, refs []ref) {
	gone = f.txs[f.head+keep:]
	n := 0
	for _, fl := range gone {
		n += fl.refs
		if fl.id != 0 {
			f.ids--
		}
	}
	refs = f.refs[len(f.refs)-n:]
	f.txs, f.refs = f.txs[:f.head+keep], f.refs[:len(f.refs)-n]
	return gone, refs
}

// recording is a transaction in flight with the locks that it records.
type recording struct {
	inflightTx
	txid uint64
	refs []ref
}

// all iterates over the transactions in flight, of which first is the oldest's
// txid.
func (f *inflight) all(first uint64) iter.Seq[recording] {
	return func(yield func(recording) bool) {
		ref := f.ref
		for i, fl := range f.txs[f.head:] {
			if !yield(recording{fl, first + uint64(i), f.refs[ref : ref+fl.refs]}) {
				return
			}
			ref += fl.refs
		}
	}
}
