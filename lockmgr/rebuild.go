package lockmgr

import "fmt"

// rebuild is the state of a walk through the log from its end towards its
// beginning.
type rebuild struct {
	next      uint64 // the next txid of the walk
	time      int64  // of the transaction before
	locksDone bool   // the table is full, and the floor is known
	idsDone   bool

	sessionsDone bool // as many as are remembered were found
}

// Reset empties the Manager, in-flight transactions included, and begins a
// rebuild of its state. committed is the last committed txid, and time the
// partition's time: that transaction's, or that of a later Advance (0 and 0 for
// an empty log). Until Rebuilt, only RecordOlder and the methods that read may
// be called; others panic.
func (m *Manager) Reset(committed uint64, time int64) {
	*m = *New(m.opts)
	m.committed, m.time = committed, time
	m.rebuild = &rebuild{next: committed, time: time}
}

// RecordOlder records a transaction while the tables are being rebuilt. It is
// called from the committed transaction given to Reset downwards, leaving none
// out, until it returns false, which means that no older one can matter, or the
// log begins. It panics if a txid is out of order or the time increases.
func (m *Manager) RecordOlder(txid uint64, time int64, tx *Transaction) (more bool) {
	r := m.rebuild
	if r == nil {
		panic("lockmgr: RecordOlder outside a rebuild")
	}
	if txid != r.next || txid == 0 {
		panic(fmt.Sprintf("lockmgr: rebuild: txid %d where %d is next", txid, r.next))
	}
	if time > r.time {
		panic(fmt.Sprintf("lockmgr: rebuild: time of txid %d rises from %d to %d", txid, r.time, time))
	}
	if txid == m.committed {
		m.lastTime = time
	}
	r.next, r.time = txid-1, time
	m.olderLocks(txid, tx)
	m.olderID(txid, time, tx)
	m.olderSession(txid, tx)
	return !r.locksDone || !r.idsDone
}

// olderLocks records the locks of a transaction from the last to the first,
// against their order in time. The first that finds no room is the one that,
// going forward, was forgotten last.
func (m *Manager) olderLocks(txid uint64, tx *Transaction) {
	by := recorderOf(txid, tx)
	for i := len(tx.Locks) - 1; i >= 0 && !m.rebuild.locksDone; i-- {
		l := &tx.Locks[i]
		if !l.Mode.recorded() {
			continue
		}
		by.of(i, tx)
		if !m.locks.recordOlder(l.Name, &by, m.opts.Locks) {
			m.floor = txid
			m.rebuild.locksDone = true
		}
	}
}

func (m *Manager) olderID(txid uint64, time int64, tx *Transaction) {
	r := m.rebuild
	if time < m.time-m.window && !r.idsDone {
		r.idsDone, m.ids.from = true, txid+1
	}
	if !r.idsDone && tx.ID != (ID{}) {
		m.ids.addOlder(idRecord{id: tx.ID, txid: txid, time: time, fingerprint: tx.Fingerprint})
		if m.ids.len() == m.opts.IDs {
			r.idsDone, m.ids.from = true, txid
		}
	}
}

// olderSession records the session of a transaction. Sessions don't make a walk
// longer.
func (m *Manager) olderSession(txid uint64, tx *Transaction) {
	if r := m.rebuild; !r.sessionsDone && tx.Session != (ID{}) && !m.sessions.recordOlder(tx.Session, tx.SessionSeq, txid) {
		m.sessions.floor = txid
		r.sessionsDone = true
	}
}

// Rebuilt ends a rebuild. first is the first txid that the log keeps, Committed
// plus one if it keeps none. The Manager then is as it would be had every
// transaction been recorded, and the log trimmed at first.
//
// If the caller stops the walk before RecordOlder returns false and before the
// log begins, the floor is just below the last transaction walked: no conflict
// is missed, but message ids of older transactions are. In any case sessions
// without a transaction that was walked are forgotten.
func (m *Manager) Rebuilt(first uint64) {
	r := m.rebuild
	if r == nil {
		panic("lockmgr: Rebuilt outside a rebuild")
	}
	if !r.locksDone {
		m.floor = r.next
	}
	if !r.idsDone {
		m.ids.from = r.next + 1
	}
	if !r.sessionsDone {
		m.sessions.floor = r.next
	}
	m.rebuild = nil
	m.forget(first)
}

func (m *Manager) mustNotRebuild() {
	if m.rebuild != nil {
		panic("lockmgr: used during a rebuild")
	}
}
