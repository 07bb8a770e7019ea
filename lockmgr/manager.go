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

	committed uint64
	time      int64 // the newest of committed transactions, and of Advance
	lastTime  int64 // of the last transaction
	locks     *table
	floor     uint64 // the highest committed txid that locks has forgotten
	trimmed   uint64 // the last txid of Forget
	ids       *ids
	sessions  *sessions

	inflight inflight
	found    []uint32  // index of each lock being certified, 0 if it is not known
	entered  int       // how many of them have entered
	use      *idRecord // the newest of the message id being certified, nil if it is not known
	rebuild  *rebuild  // nil except between Reset and Rebuilt
}

// New returns a Manager of a partition whose log is empty.
func New(opts Options) *Manager {
	opts = opts.withDefaults()
	return &Manager{
		opts:   opts,
		window: int64(opts.IDWindow),
		locks:  newTable(),
		ids:    newIDs(),

		sessions: newSessions(opts.Sessions),
	}
}

// Certify decides whether a transaction may commit as txid Last()+1. If it
// passes it is in flight, and Last then returns its txid. now is the time
// that it will be recorded with, in Unix nanoseconds; the caller ensures that
// it never decreases.
//
// The message id is checked first, then the high-water mark, the session, the
// time, the expected last txid, and the locks.
func (m *Manager) Certify(tx *Transaction, now int64) Verdict {
	v := m.Check(tx, now)
	if v.Outcome == Pass {
		v.Txid = m.Enter(tx, now)
	}
	return v
}

// Check is Certify for a transaction that does not enter yet: the verdict of
// one that passes has no txid.
func (m *Manager) Check(tx *Transaction, now int64) Verdict {
	m.mustNotRebuild()
	m.use = m.newestUse(tx)
	if v := m.checkID(tx, m.use, now); v.Outcome != Pass {
		return v
	}
	if m.opts.IDsInLog && tx.Earlier.Txid > m.trimmed {
		return m.repeats(tx, tx.Earlier)
	}
	if tx.HasHighWaterMark && tx.HighWaterMark > m.Last() {
		return Verdict{Outcome: Ahead}
	}
	if v := m.checkSession(tx); v.Outcome != Pass {
		return v
	}
	if tx.HasNotAfter && now > tx.NotAfter {
		return Verdict{Outcome: Expired}
	}
	if v := m.checkLast(tx); v.Outcome != Pass {
		return v
	}
	return m.checkLocks(tx)
}

// Enter adds a transaction to those in flight and returns its txid. It must be
// the one that Check has just passed, with the same time: nothing may have been
// called in between but methods that only read.
//
// What Check has passed may also enter as several transactions, one after the
// other, which commit together: then Locks of each are the next ones of those
// that were checked, and the times may rise.
func (m *Manager) Enter(tx *Transaction, now int64) uint64 {
	txid := m.Last() + 1
	by := recorderOf(txid, tx)
	fl := inflightTx{time: now, again: m.use != nil, mark: by.mark}
	for i := range tx.Locks {
		l := &tx.Locks[i]
		if !l.Mode.recorded() {
			continue
		}
		at := m.found[m.entered+i]
		if at == 0 {
			at = m.locks.index(l.Name)
		}
		by.of(i, tx)
		r := ref{at, by.covered}
		if m.locks.newest(at) == txid {
			// Keep one reference, the last: a lock may be forgotten as soon as
			// its recorder commits.
			refs := m.inflight.refs
			twice := len(refs) - fl.refs + slices.Index(refs[len(refs)-fl.refs:], r)
			m.inflight.refs = append(slices.Delete(refs, twice, twice+1), r)
			continue
		}
		m.locks.recordPending(at, &by)
		m.inflight.refs = append(m.inflight.refs, r)
		fl.refs++
	}
	if tx.Session != (ID{}) {
		fl.session, fl.seq = m.sessions.recordPending(tx.Session, tx.SessionSeq, txid), tx.SessionSeq
	}
	if tx.ID != (ID{}) {
		fl.id = m.ids.add(idRecord{id: tx.ID, txid: txid, time: now, fingerprint: tx.Fingerprint})
	}
	m.entered += len(tx.Locks)
	m.inflight.add(fl)
	return txid
}

// Repeat checks the message id alone, as Certify does first: its Outcome is
// Duplicate or IDReused, or Pass if the table does not know the id or none was
// given. It changes nothing.
func (m *Manager) Repeat(tx *Transaction, now int64) Verdict {
	m.mustNotRebuild()
	return m.checkID(tx, m.newestUse(tx), now)
}

// newestUse returns the newest use of the message id, nil if none is known.
func (m *Manager) newestUse(tx *Transaction) *idRecord {
	if tx.ID == (ID{}) {
		return nil
	}
	return m.ids.find(tx.ID)
}

// UnknownID returns the last transaction up to which the log may have the
// message id of a transaction although the table does not know it. It returns 0
// if the table knows the id or every id in the log, if EarlierThrough reaches
// as far, or without [Options.IDsInLog]. A number in a session is known without
// the log.
//
// Otherwise the transaction may only be checked once the caller has looked the
// id up in the log, at least that far.
func (m *Manager) UnknownID(tx *Transaction) (through uint64) {
	if !m.opts.IDsInLog || tx.ID == (ID{}) || tx.Session != (ID{}) {
		return 0
	}
	if through = m.ids.from - 1; through <= max(m.trimmed, tx.EarlierThrough) || m.ids.find(tx.ID) != nil {
		return 0
	}
	return through
}

// OlderIDs returns the transactions, from first to through, whose message ids
// count although the table does not have them; through is less than first if
// there are none.
func (m *Manager) OlderIDs() (first, through uint64) {
	if !m.opts.IDsInLog {
		return 1, 0
	}
	return m.trimmed + 1, m.ids.from - 1
}

// checkID decides what an earlier use of the message id means.
func (m *Manager) checkID(tx *Transaction, first *idRecord, now int64) Verdict {
	if first == nil || first.time < now-m.window && !m.opts.IDsInLog {
		return Verdict{}
	}
	return m.repeats(tx, Use{first.txid, first.time, first.fingerprint})
}

// repeats returns the verdict on a transaction whose message id was used
// before.
func (m *Manager) repeats(tx *Transaction, first Use) Verdict {
	v := Verdict{Outcome: Duplicate, Txid: first.Txid, Time: first.Time}
	if first.Fingerprint != tx.Fingerprint {
		v.Outcome = IDReused
	}
	if first.Txid > m.committed {
		v.DependsOn = first.Txid
	}
	return v
}

// checkLast compares the expected last txid. If the transaction after it is
// still in flight, the refusal depends on that one.
func (m *Manager) checkLast(tx *Transaction) Verdict {
	switch expected := tx.ExpectedLast; {
	case !tx.HasExpectedLast || expected == m.Last():
		return Verdict{}
	case expected < m.committed || expected > m.Last():
		return Verdict{Outcome: WrongLast}
	default:
		return Verdict{Outcome: WrongLast, DependsOn: expected + 1}
	}
}

// checkSession decides whether a transaction is the next one of its session.
func (m *Manager) checkSession(tx *Transaction) Verdict {
	if tx.Session == (ID{}) {
		return Verdict{}
	}
	s := m.sessions.find(tx.Session)
	if s == nil {
		if tx.SessionSeq == 1 && tx.HighWaterMark >= m.sessions.floor {
			return Verdict{}
		}
		return Verdict{Outcome: WrongSeq, HasSessionSeq: m.sessions.floor == 0}
	}
	if tx.SessionSeq == s.seq+1 {
		return Verdict{}
	}
	v := Verdict{Outcome: WrongSeq, SessionSeq: s.seq, HasSessionSeq: true}
	if s.txid > m.committed {
		v.DependsOn = s.txid
	}
	return v
}

func (m *Manager) checkLocks(tx *Transaction) Verdict {
	var mark uint64
	if tx.HasHighWaterMark {
		mark = tx.HighWaterMark
	}
	m.found, m.entered = m.found[:0], 0
	var v Verdict
	for i := range tx.Locks {
		l := &tx.Locks[i]
		if !l.Mode.checked() {
			m.found = append(m.found, 0)
			continue
		}
		txid, known, at := m.newestOther(l.Name, tx.Session)
		m.found = append(m.found, at)
		forgotten := false
		if !known && txid > mark {
			txid, forgotten = m.forgotten(tx, i, txid)
		}
		if txid > mark {
			v.Conflicts = append(v.Conflicts, Conflict{Name: strings.Clone(l.Name), Mode: l.Mode, Txid: txid, Forgotten: forgotten})
		}
	}
	if v.Conflicts == nil {
		return v
	}
	v.Outcome = Conflicted
	slices.SortStableFunc(v.Conflicts, func(a, b Conflict) int { return cmp.Compare(b.Txid, a.Txid) })
	if top := v.Conflicts[0].Txid; top > m.committed {
		v.DependsOn = top
	}
	return v
}

// newestOther returns the newest recorder of locks that overlap name, other
// than of a session, and reports whether the table knows it: otherwise it lies
// at or below txid, if there ever was one. That is the floor, or less if it is
// known where the session was alone. i is the index of name, 0 if it is not
// known or stands for a subtree.
func (m *Manager) newestOther(name string, session ID) (txid uint64, known bool, i uint32) {
	if session != (ID{}) && len(m.locks.owners) > 0 {
		return m.locks.newestOther(name, session, m.floor)
	}
	r, i := m.locks.overlapping(name)
	if r.newest > m.floor || session == (ID{}) && r.newest != 0 {
		return r.newest, true, i
	}
	return m.floor, false, i
}

// forgotten returns where lock number i, of which the table knows only that it
// was recorded at most at a txid, counts as recorded, and reports whether that
// may be wrong.
func (m *Manager) forgotten(tx *Transaction, i int, most uint64) (txid uint64, forgotten bool) {
	if tx.Older == nil || tx.Through < m.floor {
		return most, true
	}
	return tx.Older[i].Txid, tx.Older[i].Forgotten
}

// RecorderOf returns what Check takes as the newest recorder of lock number i
// of a transaction.
func (m *Manager) RecorderOf(tx *Transaction, i int) Recorder {
	newest, known, _ := m.newestOther(tx.Locks[i].Name, tx.Session)
	if known {
		return Recorder{Txid: newest}
	}
	txid, forgotten := m.forgotten(tx, i, newest)
	return Recorder{txid, forgotten}
}

// Unknown appends to where the numbers of the checked locks that, as far as the
// table knows, may have been recorded after the high-water mark, and of which
// the log may say more: it has what was recorded after the last trim.
func (m *Manager) Unknown(where []int, tx *Transaction) []int {
	if known := max(tx.HighWaterMark, m.trimmed); known >= m.floor || tx.Older != nil && tx.Through >= m.floor {
		return where
	}
	for i := range tx.Locks {
		if l := &tx.Locks[i]; l.Mode.checked() {
			if txid, known, _ := m.newestOther(l.Name, tx.Session); !known && txid > tx.HighWaterMark {
				where = append(where, i)
			}
		}
	}
	return where
}

// Commit makes the oldest transaction in flight a committed one, as it was
// certified, and returns its txid. It panics if nothing is in flight.
func (m *Manager) Commit() uint64 {
	m.mustNotRebuild()
	if m.inflight.len() == 0 {
		panic("lockmgr: commit with nothing in flight")
	}
	fl, refs := m.inflight.popOldest()
	m.commitTime(m.committed+1, fl.time)
	by := recorder{txid: m.committed, mark: fl.mark}
	if fl.session != 0 {
		by.session = m.sessions.commit(fl.session, fl.seq, m.committed)
	}
	for _, r := range refs {
		by.covered = r.covered
		m.commitLock(r.lock, &by)
	}
	m.inflight.compact()
	m.commitID(fl.id, fl.again)
	return m.committed
}

// Record records a committed transaction that was not certified here, as
// followers and recovery do: in log order, each once, with its txid and its
// time in Unix nanoseconds.
//
// It panics if anything is in flight, which the caller must roll back first, if
// txid is not Committed plus one, or if the time decreases.
func (m *Manager) Record(txid uint64, time int64, tx *Transaction) {
	m.mustNotRebuild()
	if m.inflight.len() > 0 {
		panic(fmt.Sprintf("lockmgr: record txid %d with %d transactions in flight", txid, m.inflight.len()))
	}
	if txid != m.committed+1 {
		panic(fmt.Sprintf("lockmgr: record txid %d after %d", txid, m.committed))
	}
	if time < m.lastTime {
		panic(fmt.Sprintf("lockmgr: time of txid %d goes back from %d to %d", txid, m.lastTime, time))
	}
	m.commitTime(txid, time)
	by := recorderOf(txid, tx)
	for i := range tx.Locks {
		if l := &tx.Locks[i]; l.Mode.recorded() {
			at := m.locks.index(l.Name)
			by.of(i, tx)
			m.locks.recordPending(at, &by)
			m.commitLock(at, &by)
		}
	}
	if tx.Session != (ID{}) {
		m.sessions.commit(m.sessions.recordPending(tx.Session, tx.SessionSeq, txid), tx.SessionSeq, txid)
	}
	var id uint64
	if tx.ID != (ID{}) {
		id = m.ids.add(idRecord{id: tx.ID, txid: txid, time: time, fingerprint: tx.Fingerprint})
	}
	m.commitID(id, true)
}

// commitTime makes txid the committed transaction. Its time may lie behind that
// of an Advance.
func (m *Manager) commitTime(txid uint64, time int64) {
	m.committed, m.lastTime, m.time = txid, time, max(m.time, time)
}

// Advance moves the partition's time forward to time, in Unix nanoseconds,
// without a transaction: message ids that have expired by then are forgotten.
// An earlier time changes nothing.
func (m *Manager) Advance(time int64) {
	m.mustNotRebuild()
	m.time = max(m.time, time)
	m.ids.expire(m.time-m.window, m.committed)
}

// OldestID returns the oldest committed transaction whose message id still
// counts at now, in Unix nanoseconds; 0 if none does. It takes time in
// proportion to the number of ids that no longer count.
func (m *Manager) OldestID(now int64) (txid uint64) {
	return m.ids.oldestSince(now-m.window, m.committed)
}

// commitLock makes the committed transaction the recorder of a lock.
func (m *Manager) commitLock(i uint32, by *recorder) {
	m.locks.commit(i, by)
	if m.locks.len() > m.opts.Locks {
		m.floor = m.locks.dropOldest()
	}
}

// commitID makes message id i, unless it is 0, count as committed, and forgets
// ids that no longer count. again says that the id may be known.
func (m *Manager) commitID(i uint64, again bool) {
	if i != 0 && again {
		m.ids.only(i)
	}
	m.ids.expire(m.time-m.window, m.committed)
	for m.ids.len()-m.inflight.ids > m.opts.IDs {
		m.ids.dropOldest()
	}
}

// Rollback takes back every transaction in flight whose txid is from or higher.
// It takes time in proportion to what was in flight.
func (m *Manager) Rollback(from uint64) {
	m.mustNotRebuild()
	if from > m.Last() {
		return
	}
	keep := 0
	if from > m.committed {
		keep = int(from - m.committed - 1)
	}
	gone, refs := m.inflight.truncate(keep)
	for _, r := range refs {
		m.locks.revert(r.lock)
	}
	for _, fl := range gone {
		m.sessions.revert(fl.session)
	}
	for kept := range m.inflight.all(m.committed + 1) {
		by := recorder{txid: kept.txid, session: m.sessions.again(kept), mark: kept.mark}
		for _, r := range kept.refs {
			by.covered = r.covered
			m.locks.recordPending(r.lock, &by)
		}
	}
	for _, r := range refs {
		m.locks.dropUnknown(r.lock)
	}
	for _, fl := range gone {
		m.sessions.dropUnknown(fl.session)
		if fl.id != 0 {
			m.ids.dropNewest()
		}
	}
}

// Forget forgets all that was recorded below txid first, locks, message ids and
// sessions, because the log was trimmed to begin there: the floor becomes
// first-1, if it was lower. What is in flight stays. A first past Committed
// plus one counts as that.
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
	m.sessions.forget(first)
	m.floor, m.trimmed = max(m.floor, first-1), max(m.trimmed, first-1)
}

// Newest returns the newest committed transaction that recorded a lock
// overlapping name, and true. If the table does not know one it returns the
// floor and false: the newest, if there ever was one, is at or below.
func (m *Manager) Newest(name string) (txid uint64, exact bool) {
	if r, _ := m.locks.overlapping(name); r.committed != 0 {
		return r.committed, true
	}
	return m.floor, false
}

// NewestBesides returns the newest transaction, in flight or committed, that
// recorded a lock overlapping name and is not of a session (the zero ID is
// none). If the table does not know one it returns a txid, at most the floor:
// the newest, if there ever was one, is at or below.
func (m *Manager) NewestBesides(name string, session ID) uint64 {
	txid, _, _ := m.newestOther(name, session)
	return txid
}

// Committed returns the last txid recorded, 0 at the start.
func (m *Manager) Committed() uint64 { return m.committed }

// Floor returns the highest txid that the lock table has forgotten.
func (m *Manager) Floor() uint64 { return m.floor }

// Time returns the partition's time, in Unix nanoseconds: that of the newest
// committed transaction, or of an Advance past it; 0 at the start.
func (m *Manager) Time() int64 { return m.time }

// Last returns the last txid assigned, in flight included.
func (m *Manager) Last() uint64 { return m.committed + uint64(m.inflight.len()) }

// Stats is what a Manager holds.
type Stats struct {
	Locks    int    // lock names known, in flight not included
	Capacity int    // the most that are known
	Floor    uint64 // the highest txid forgotten by the lock table
	IDs      int    // message ids remembered, in flight not included
	Sessions int    // sessions remembered, in flight not included
	InFlight int    // transactions in flight
}

// Stats returns current figures.
func (m *Manager) Stats() Stats {
	return Stats{
		Locks:    m.locks.len(),
		Capacity: m.opts.Locks,
		Floor:    m.floor,
		IDs:      m.ids.len() - m.inflight.ids,
		Sessions: m.sessions.len(),
		InFlight: m.inflight.len(),
	}
}
