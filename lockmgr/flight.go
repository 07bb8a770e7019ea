package lockmgr

// flight holds the transactions that have passed but are not yet recorded, oldest
// first, and what they would record.
//
// Its tables are of the same kind as the committed ones, without bounds. A name
// stands in them with its newest recorder in flight, so when the oldest
// transaction commits, what leaves is what is older than the next one.
type flight struct {
	locks *table
	ids   *ids

	txs  []flying
	refs []uint32 // locks recorded by txs, in order: indices into locks
	head int      // txs before it have left
	ref  int      // refs before it have left
}

type flying struct {
	id          ID
	fingerprint uint64
	time        int64
	refs        int
}

func newFlight() *flight {
	return &flight{locks: newTable(), ids: newIDs()}
}

func (f *flight) len() int { return len(f.txs) - f.head }

// add puts a transaction in flight behind the others.
func (f *flight) add(txid uint64, time int64, tx *Transaction) {
	before := len(f.refs)
	for i := range tx.Locks {
		if l := &tx.Locks[i]; l.Mode.recorded() {
			f.refs = append(f.refs, f.locks.record(l.Name, txid))
		}
	}
	fl := flying{id: tx.ID, fingerprint: tx.Fingerprint, time: time, refs: len(f.refs) - before}
	f.addID(txid, fl)
	f.txs = append(f.txs, fl)
}

func (f *flight) addID(txid uint64, fl flying) {
	if fl.id != (ID{}) {
		f.ids.record(idRecord{id: fl.id, txid: txid, time: fl.time, fingerprint: fl.fingerprint})
	}
}

// leave takes out the oldest transaction, whose txid is given, if there is one.
func (f *flight) leave(txid uint64) {
	if f.len() == 0 {
		return
	}
	f.locks.forget(txid + 1)
	f.ids.forget(txid + 1)
	f.ref += f.txs[f.head].refs
	f.head++
	// Move what is left to the front once that is the smaller part, so that each
	// transaction is moved at most once on average and nothing grows.
	if f.head*2 >= len(f.txs) {
		f.txs = f.txs[:copy(f.txs, f.txs[f.head:])]
		f.refs = f.refs[:copy(f.refs, f.refs[f.ref:])]
		f.head, f.ref = 0, 0
	}
}

// rollback keeps the oldest transactions only; first is the txid of the oldest.
// The tables are made anew, since they do not know what a name's newest recorder
// hid.
func (f *flight) rollback(keep int, first uint64) {
	names := f.locks
	f.locks, f.ids = newTable(), newIDs()
	f.txs = f.txs[:f.head+keep]
	ref := f.ref
	for i, fl := range f.txs[f.head:] {
		txid := first + uint64(i)
		for range fl.refs {
			f.refs[ref] = f.locks.record(names.name(f.refs[ref]), txid)
			ref++
		}
		f.addID(txid, fl)
	}
	f.refs = f.refs[:ref]
}
