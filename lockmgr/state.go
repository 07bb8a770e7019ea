package lockmgr

import "slices"

// State is all that a Manager's verdicts depend on, in a form that can be compared
// with another one's.
type State struct {
	Committed, Last, Floor uint64
	Time                   int64
	Locks, FlightLocks     []TrackedLock // newest first
	IDs, FlightIDs         []TrackedID   // newest first
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

// Equal reports whether two states are the same; with committed, apart from what is
// in flight.
func (s State) Equal(o State, committed bool) bool {
	return s.Committed == o.Committed && s.Floor == o.Floor && s.Time == o.Time &&
		slices.Equal(s.Locks, o.Locks) && slices.Equal(s.IDs, o.IDs) &&
		(committed || s.Last == o.Last && slices.Equal(s.FlightLocks, o.FlightLocks) && slices.Equal(s.FlightIDs, o.FlightIDs))
}

// StateOf returns a copy of a Manager's state. It is for tests: it takes time and
// memory in proportion to all that is tracked.
func StateOf(m *Manager) State {
	s := State{
		Committed: m.committed, Last: m.Last(), Floor: m.floor, Time: m.time,
		Locks: m.locks.tracked(), FlightLocks: m.flightLocks(),
	}
	s.IDs, s.FlightIDs = m.trackedIDs()
	return s
}

func (t *table) tracked() []TrackedLock {
	var out []TrackedLock
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		out = append(out, TrackedLock{t.name(i), t.locks.at(i).committed})
	}
	return out
}

// flightLocks returns the locks recorded by what is in flight, each as its newest
// recorder stands in the table.
func (m *Manager) flightLocks() []TrackedLock {
	var refs []uint32
	for _, some := range m.flight.all(m.committed + 1) {
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
