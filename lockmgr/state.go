package lockmgr

import (
	"cmp"
	"slices"
)

// State is everything that a Manager's verdicts depend on, in a form that can
// be compared with another one's.
type State struct {
	Committed, Last, Floor uint64
	Time                   int64
	Locks, InFlightLocks   []TrackedLock    // newest first
	IDs, InFlightIDs       []TrackedID      // newest first
	Sessions               []TrackedSession // newest first
	InFlightSessions       []TrackedSession // newest first
	SessionFloor           uint64
}

// TrackedLock is a lock that is known, and its newest recorder.
type TrackedLock struct {
	Name string
	Txid uint64
	// Session is that of Txid, and Other the newest transaction that recorded
	// the lock and is not of the session, 0 if none above the floor is known.
	Session ID
	Other   uint64
	// AloneAfter and AloneThrough say where Session is known to have been alone
	// at names that overlap, 0 if that is not known up to above the floor.
	AloneAfter, AloneThrough uint64
}

func newTrackedLock(name string, txid uint64, o owned, floor uint64) TrackedLock {
	l := TrackedLock{Name: name, Txid: txid, Session: o.session}
	if o.other > floor {
		l.Other = o.other
	}
	if o.alone.through > floor {
		l.AloneAfter, l.AloneThrough = o.alone.after, o.alone.through
	}
	return l
}

// TrackedSession is a session that is remembered, with its newest transaction.
type TrackedSession struct {
	Session   ID
	Seq, Txid uint64
}

// TrackedID is a message id that is remembered.
type TrackedID struct {
	ID          ID
	Txid        uint64
	Time        int64
	Fingerprint uint64
}

// Equal reports whether two states are the same; if committed, without regard
// to transactions in flight. One may know fewer sessions, the newest: a rebuild
// may end before it has met all.
func (s State) Equal(o State, committed bool) bool {
	return s.Committed == o.Committed && s.Floor == o.Floor && s.Time == o.Time &&
		slices.Equal(s.Locks, o.Locks) && slices.Equal(s.IDs, o.IDs) &&
		areNewest(s.Sessions, o.Sessions) &&
		(committed || s.Last == o.Last && slices.Equal(s.InFlightLocks, o.InFlightLocks) && slices.Equal(s.InFlightIDs, o.InFlightIDs) &&
			slices.Equal(s.InFlightSessions, o.InFlightSessions))
}

// areNewest reports whether one of two lists is the beginning of the other.
func areNewest(a, b []TrackedSession) bool {
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// StateOf returns a copy of a Manager's state. It is for tests: it takes time
// and memory in proportion to all that is tracked.
func StateOf(m *Manager) State {
	s := State{
		Committed: m.committed, Last: m.Last(), Floor: m.floor, Time: m.time,
		Locks: m.locks.tracked(m.floor), InFlightLocks: m.inFlightLocks(), SessionFloor: m.sessions.floor,
	}
	s.Sessions, s.InFlightSessions = m.sessions.tracked(m.committed)
	s.IDs, s.InFlightIDs = m.trackedIDs()
	return s
}

func (t *table) tracked(floor uint64) []TrackedLock {
	var out []TrackedLock
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		out = append(out, newTrackedLock(t.name(i), t.locks.at(i).committed, t.owners[lockKey(i)].committed, floor))
	}
	return out
}

func (s *sessions) tracked(last uint64) (committed, inFlight []TrackedSession) {
	for i := s.records.newest(); i != 0; i = s.records.next(i) {
		r := s.records.at(i)
		committed = append(committed, TrackedSession{r.id, r.committedSeq, r.committedTxid})
	}
	for _, i := range s.byID {
		if r := s.records.at(i); r.txid > last {
			inFlight = append(inFlight, TrackedSession{r.id, r.seq, r.txid})
		}
	}
	slices.SortFunc(inFlight, func(a, b TrackedSession) int { return cmp.Compare(b.Txid, a.Txid) })
	return committed, inFlight
}

// inFlightLocks returns the locks that transactions in flight record, each with
// its newest recorder in the table.
func (m *Manager) inFlightLocks() []TrackedLock {
	var refs []ref
	for some := range m.inflight.all(m.committed + 1) {
		refs = append(refs, some.refs...)
	}
	var out []TrackedLock
	seen := map[uint32]bool{}
	for _, r := range slices.Backward(refs) {
		if i := r.lock; !seen[i] {
			seen[i] = true
			out = append(out, newTrackedLock(m.locks.name(i), m.locks.newest(i), m.locks.owners[lockKey(i)].pending, m.floor))
		}
	}
	return out
}

func (m *Manager) trackedIDs() (committed, inFlight []TrackedID) {
	s := m.ids
	for i := s.records.next; i > s.records.first; i-- {
		r := s.records.at(i - 1)
		if r.id == (ID{}) {
			continue
		}
		id := TrackedID{r.id, r.txid, r.time, r.fingerprint}
		switch {
		case r.txid <= m.committed:
			committed = append(committed, id)
		case !slices.ContainsFunc(inFlight, func(t TrackedID) bool { return t.ID == id.ID }):
			inFlight = append(inFlight, id)
		}
	}
	return committed, inFlight
}
