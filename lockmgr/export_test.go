package lockmgr

import (
	"fmt"
	"slices"
)

// State is all that a Manager's future verdicts depend on.
type State struct {
	Committed, Last, Floor uint64
	Time                   int64
	Locks, FlightLocks     []TrackedLock // newest first
	IDs, FlightIDs         []TrackedID   // newest first
}

type TrackedLock struct {
	Name string
	Txid uint64
}

type TrackedID struct {
	ID          ID
	Txid        uint64
	Time        int64
	Fingerprint uint64
}

// Equal compares two states but for what is in flight, if committed says so.
func (s State) Equal(o State, committed bool) bool {
	return s.Committed == o.Committed && s.Floor == o.Floor && s.Time == o.Time &&
		slices.Equal(s.Locks, o.Locks) && slices.Equal(s.IDs, o.IDs) &&
		(committed || s.Last == o.Last && slices.Equal(s.FlightLocks, o.FlightLocks) && slices.Equal(s.FlightIDs, o.FlightIDs))
}

func StateOf(m *Manager) State {
	return State{
		Committed: m.committed, Last: m.Last(), Floor: m.floor, Time: m.time,
		Locks: m.locks.tracked(), FlightLocks: m.flight.locks.tracked(),
		IDs: m.ids.tracked(), FlightIDs: m.flight.ids.tracked(),
	}
}

func (t *table) tracked() []TrackedLock {
	var out []TrackedLock
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		out = append(out, TrackedLock{t.name(i), t.locks.at(i).txid})
	}
	return out
}

func (s *ids) tracked() []TrackedID {
	var out []TrackedID
	for i := s.records.newest(); i != 0; i = s.records.next(i) {
		r := s.records.at(i)
		out = append(out, TrackedID{r.id, r.txid, r.time, r.fingerprint})
	}
	return out
}

// Check returns the first thing found wrong with a Manager's structures.
func Check(m *Manager) error {
	for name, t := range map[string]*table{"committed": m.locks, "in flight": m.flight.locks} {
		if err := t.check(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if m.locks.len() > m.opts.Locks || m.ids.len() > m.opts.IDs {
		return fmt.Errorf("%d locks and %d ids are tracked, over the limit", m.locks.len(), m.ids.len())
	}
	if m.flight.len() == 0 && (m.flight.locks.len() > 0 || m.flight.ids.len() > 0) {
		return fmt.Errorf("nothing is in flight, but %d locks and %d ids are", m.flight.locks.len(), m.flight.ids.len())
	}
	refs := 0
	for _, fl := range m.flight.txs[m.flight.head:] {
		refs += fl.refs
	}
	if refs != len(m.flight.refs)-m.flight.ref {
		return fmt.Errorf("in flight are %d lock references, want %d", len(m.flight.refs)-m.flight.ref, refs)
	}
	return nil
}

func (t *table) check() error {
	newest, below, n := map[uint32]uint64{}, map[uint32]uint32{}, 0
	last := ^uint64(0)
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		l := t.locks.at(i)
		name := t.name(i)
		if l.txid > last || l.txid == 0 {
			return fmt.Errorf("lock %s of txid %d stands behind %d", name, l.txid, last)
		}
		last = l.txid
		if !t.known(name) {
			return fmt.Errorf("lock %s is in the list, but not found", name)
		}
		if sub := t.prefixes.at(l.parent).subtree; (string(t.tokens.get(&l.token)) == wildcard) != (sub == i) {
			return fmt.Errorf("lock %s: the subtree of its prefix is %d, itself %d", name, sub, i)
		}
		below[l.parent]++
		for at := l.parent; ; at = t.prefixes.at(at).parent {
			if _, seen := newest[at]; !seen && at != 0 {
				below[t.prefixes.at(at).parent]++
			}
			newest[at] = max(newest[at], l.txid)
			if at == 0 {
				break
			}
		}
		n++
	}
	if n != t.len() || n != t.byName.count() {
		return fmt.Errorf("%d locks in the list, which says %d, the index %d", n, t.len(), t.byName.count())
	}
	prefixes := len(newest)
	if n > 0 {
		prefixes-- // the root is not in the index
	}
	if prefixes != t.byPath.count() {
		return fmt.Errorf("%d prefixes in use, %d in the index", prefixes, t.byPath.count())
	}
	for at, want := range newest {
		if p := t.prefixes.at(at); p.newest != want || p.below != below[at] {
			return fmt.Errorf("prefix %d: newest %d, below %d; want %d, %d", at, p.newest, p.below, want, below[at])
		}
	}
	return nil
}

func (x *index) count() int {
	n := 0
	for i := range x.shards {
		n += x.shards[i].n
	}
	return n
}
