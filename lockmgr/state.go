package lockmgr

import "slices"

// State is everything that a Manager's verdicts depend on, in a form that can
// be compared with another one's.
type State struct {
	Committed, Last, Floor uint64
	Time                   int64
	Locks, InFlightLocks   []TrackedLock // newest first
	IDs, InFlightIDs       []TrackedID   // newest first
}

// TrackedLock is a lock that is known, and its newest recorder.
type TrackedLock struct {
	Name string
	Txid uint64
}

// TrackedID is a message id that is remembered.
type TrackedID struct {
	ID          ID
	Txid        uint64
	Time        int64
	Fingerprint uint64
}

// Equal reports whether two states are the same; if committed, without regard
// to transactions in flight.
func (s State) Equal(o State, committed bool) bool {
	return s.Committed == o.Committed && s.Floor == o.Floor && s.Time == o.Time &&
		slices.Equal(s.Locks, o.Locks) && slices.Equal(s.IDs, o.IDs) &&
		(committed || s.Last == o.Last && slices.Equal(s.InFlightLocks, o.InFlightLocks) && slices.Equal(s.InFlightIDs, o.InFlightIDs))
}

// StateOf returns a copy of a Manager's state. It is for tests: it takes time
// and memory in proportion to all that is tracked.
func StateOf(m *Manager) State {
	s := State{
		Committed: m.committed, Last: m.Last(), Floor: m.floor, Time: m.time,
		Locks: m.locks.tracked(), InFlightLocks: m.inFlightLocks(),
	}
	s.IDs, s.InFlightIDs = m.trackedIDs()
	return s
}

func (t *table) tracked() []TrackedLock {
	var out []TrackedLock
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		out = append(out, TrackedLock{t.name(i), t.locks.at(i).committed})
	}
	return out
}

// inFlightLocks returns the locks that transactions in flight record, each with
// its newest recorder in the table.
func (m *Manager) inFlightLocks() []TrackedLock {
	var refs []uint32
	for _, some := range m.inflight.all(m.committed + 1) {
		refs = append(refs, some...)
	}
	var out []TrackedLock
	seen := map[uint32]bool{}
	for _, i := range slices.Backward(refs) {
		if !seen[i] {
			seen[i] = true
			out = append(out, TrackedLock{m.locks.name(i), m.locks.locks.at(i).newest})
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
