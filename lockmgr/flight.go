package lockmgr

import "iter"

// flight holds the transactions that have passed but are not yet committed, oldest
// first. The tables know what they record already; flight knows where.
type flight struct {
	txs  []flying
	refs []uint32 // locks recorded by txs, in order: indices into the table
	head int      // txs before it have left
	ref  int      // refs before it have left
	ids  int      // of them have a message id
}

type flying struct {
	time  int64
	id    uint64 // its number among the ids, 0 if it has none
	again bool   // the id was known, and too old to count
	refs  int
}

func (f *flight) len() int { return len(f.txs) - f.head }

// add puts a transaction in flight behind the others. Its locks are the refs that
// were added since the last one.
func (f *flight) add(fl flying) {
	f.txs = append(f.txs, fl)
	if fl.id != 0 {
		f.ids++
	}
}

// leave takes out the oldest transaction. Its refs are good until the next
// call of any method.
func (f *flight) leave() (flying, []uint32) {
	fl := f.txs[f.head]
	refs := f.refs[f.ref : f.ref+fl.refs]
	f.head++
	f.ref += fl.refs
	if fl.id != 0 {
		f.ids--
	}
	return fl, refs
}

// compact moves what is left to the front once that is the smaller part, so that
// each transaction is moved at most once on average and nothing grows.
func (f *flight) compact() {
	if f.head*2 < len(f.txs) {
		return
	}
	f.txs = f.txs[:copy(f.txs, f.txs[f.head:])]
	f.refs = f.refs[:copy(f.refs, f.refs[f.ref:])]
	f.head, f.ref = 0, 0
}

// cut keeps the oldest transactions only, and gives the others with their refs.
// Both are good until the next call of any method.
func (f *flight) cut(keep int) (gone []flying, refs []uint32) {
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

// all runs over the transactions in flight, of which first is the oldest's txid,
// with the locks that they record.
func (f *flight) all(first uint64) iter.Seq2[uint64, []uint32] {
	return func(yield func(uint64, []uint32) bool) {
		ref := f.ref
		for i, fl := range f.txs[f.head:] {
			if !yield(first+uint64(i), f.refs[ref:ref+fl.refs]) {
				return
			}
			ref += fl.refs
		}
	}
}
