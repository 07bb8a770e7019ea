package lockmgr

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Manager certifies the transactions of one partition. It is not safe for
// concurrent use.
type Manager struct {
	opts   Options
	window int64 // opts.IDWindow, in nanoseconds

	// Functions of the log up to committed.
	committed uint64
	time      int64 // of the committed transaction
	locks     *table
	floor     uint64 // the highest txid that locks has forgotten
	ids       *ids

	flight  *flight
	rebuild *rebuild // nil but between Reset and Rebuilt
}

// New returns a Manager of a partition whose log is empty.
func New(opts Options) *Manager {
	opts = opts.withDefaults()
	return &Manager{
		opts:   opts,
		window: int64(opts.IDWindow),
		locks:  newTable(),
		ids:    newIDs(),
		flight: newFlight(),
	}
}

// Certify decides whether a transaction may commit as the one after Last. If it
// passes, it is in flight from then on, with Last as its txid. now is the time
// that it will be recorded with, in Unix nanoseconds; the caller sees to it that
// it never goes back.
//
// The message id is looked at first, then the high-water mark, the expected
// last txid, and the locks.
func (m *Manager) Certify(tx *Transaction, now int64) Verdict {
	m.mustNotRebuild()
	if v := m.checkID(tx, now); v.Outcome != Pass {
		return v
	}
	if tx.HasHighWaterMark && tx.HighWaterMark > m.Last() {
		return Verdict{Outcome: Ahead}
	}
	if v := m.checkLast(tx); v.Outcome != Pass {
		return v
	}
	if v := m.checkLocks(tx); v.Outcome != Pass {
		return v
	}
	txid := m.Last() + 1
	m.flight.add(txid, now, tx)
	return Verdict{Outcome: Pass, Txid: txid}
}

// Repeat looks at the message id alone, as Certify does first: its Outcome is
// Duplicate or IDReused, or Pass if the id is new or none was given. Nothing
// changes.
func (m *Manager) Repeat(tx *Transaction, now int64) Verdict {
	m.mustNotRebuild()
	return m.checkID(tx, now)
}

// checkID finds an earlier use of the message id. If the id is both in flight and
// recorded, the recorded one was too old to count already when the other passed.
func (m *Manager) checkID(tx *Transaction, now int64) Verdict {
	if tx.ID == (ID{}) {
		return Verdict{}
	}
	var ground uint64
	first := m.flight.ids.find(tx.ID)
	if first != nil {
		ground = first.txid
	} else {
		first = m.ids.find(tx.ID)
	}
	switch {
	case first == nil || first.time < now-m.window:
		return Verdict{}
	case first.fingerprint != tx.Fingerprint:
		return Verdict{Outcome: IDReused, Txid: first.txid, Time: first.time, Ground: ground}
	default:
		return Verdict{Outcome: Duplicate, Txid: first.txid, Time: first.time, Ground: ground}
	}
}

// checkLast compares the expected last txid. If the transaction after it is still
// in flight, the refusal rests on that one.
func (m *Manager) checkLast(tx *Transaction) Verdict {
	switch expected := tx.ExpectedLast; {
	case !tx.HasExpectedLast || expected == m.Last():
		return Verdict{}
	case expected < m.committed || expected > m.Last():
		return Verdict{Outcome: WrongLast}
	default:
		return Verdict{Outcome: WrongLast, Ground: expected + 1}
	}
}

func (m *Manager) checkLocks(tx *Transaction) Verdict {
	var mark uint64
	if tx.HasHighWaterMark {
		mark = tx.HighWaterMark
	}
	var v Verdict
	for i := range tx.Locks {
		l := &tx.Locks[i]
		if !l.Mode.checked() {
			continue
		}
		if txid := m.newest(l.Name); txid > mark {
			v.Conflicts = append(v.Conflicts, Conflict{Name: strings.Clone(l.Name), Mode: l.Mode, Txid: txid})
		}
	}
	if v.Conflicts == nil {
		return v
	}
	v.Outcome = Conflicted
	slices.SortStableFunc(v.Conflicts, func(a, b Conflict) int { return cmp.Compare(b.Txid, a.Txid) })
	if top := v.Conflicts[0].Txid; top > m.committed {
		v.Ground = top
	}
	return v
}

// newest returns the newest recorder of a lock that overlaps name, in flight or
// committed, or the floor. What is in flight is newer than all that is committed.
func (m *Manager) newest(name string) uint64 {
	if txid := m.flight.locks.newest(name); txid != 0 {
		return txid
	}
	txid, _ := m.Newest(name)
	return txid
}

// Record takes a committed transaction into the tables: in log order, each once,
// with its txid and its time in Unix nanoseconds. It is the same call on leader
// and follower and while recovering. If the txid is in flight it leaves flight;
// if what was certified under it is not what was committed, the caller rolls
// back first.
//
// It panics if txid is not Committed plus one, or the time goes back.
func (m *Manager) Record(txid uint64, time int64, tx *Transaction) {
	m.mustNotRebuild()
	if txid != m.committed+1 {
		panic(fmt.Sprintf("lockmgr: record txid %d after %d", txid, m.committed))
	}
	if time < m.time {
		panic(fmt.Sprintf("lockmgr: time of txid %d goes back from %d to %d", txid, m.time, time))
	}
	m.committed, m.time = txid, time
	for i := range tx.Locks {
		if l := &tx.Locks[i]; l.Mode.recorded() {
			m.locks.record(l.Name, txid)
			if m.locks.len() > m.opts.Locks {
				m.floor = m.locks.dropOldest()
			}
		}
	}
	m.ids.expire(time - m.window)
	if tx.ID != (ID{}) {
		m.ids.record(idRecord{id: tx.ID, txid: txid, time: time, fingerprint: tx.Fingerprint})
		if m.ids.len() > m.opts.IDs {
			m.ids.dropOldest()
		}
	}
	m.flight.leave(txid)
}

// Rollback takes back every transaction in flight whose txid is from or higher.
// It takes time in proportion to what stays in flight.
func (m *Manager) Rollback(from uint64) {
	m.mustNotRebuild()
	if from > m.Last() || m.flight.len() == 0 {
		return
	}
	var keep int
	if from > m.committed {
		keep = int(from - m.committed - 1)
	}
	m.flight.rollback(keep, m.committed+1)
}

// Forget forgets all that was recorded below txid first, locks and message ids,
// because the log was trimmed to begin there: the floor becomes first-1, if it
// was lower. What is in flight stays. A first past Committed plus one
// counts as that.
func (m *Manager) Forget(first uint64) {
	m.mustNotRebuild()
	m.forget(first)
}

func (m *Manager) forget(first uint64) {
	first = min(first, m.committed+1)
	if first == 0 {
		return
	}
	m.locks.forget(first)
	m.ids.forget(first)
	m.floor = max(m.floor, first-1)
}

// Newest returns the newest committed transaction that recorded a lock overlapping
// name, and true. If the table does not know one it returns the floor and
// false: the newest, if there ever was one, is at or below.
func (m *Manager) Newest(name string) (txid uint64, exact bool) {
	if txid := m.locks.newest(name); txid != 0 {
		return txid, true
	}
	return m.floor, false
}

// Committed returns the last txid recorded, 0 at the start.
func (m *Manager) Committed() uint64 { return m.committed }

// Last returns the last txid given, in flight included.
func (m *Manager) Last() uint64 { return m.committed + uint64(m.flight.len()) }

// Stats is what a Manager holds.
type Stats struct {
	Locks    int    // lock names known, in flight not included
	Capacity int    // at most so many
	Floor    uint64 // the highest txid forgotten by the lock table
	IDs      int    // message ids remembered, in flight not included
	InFlight int    // transactions in flight
}

// Stats returns current figures.
func (m *Manager) Stats() Stats {
	return Stats{
		Locks:    m.locks.len(),
		Capacity: m.opts.Locks,
		Floor:    m.floor,
		IDs:      m.ids.len(),
		InFlight: m.flight.len(),
	}
}
