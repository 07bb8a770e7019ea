package lockmgr

import "fmt"

// Check returns the first error in a Manager's structures.
func Check(m *Manager) error {
	pending := map[uint32]uint64{}
	for r := range m.inflight.all(m.committed + 1) {
		for _, ref := range r.refs {
			pending[ref.lock] = r.txid
		}
	}
	if err := m.locks.check(pending); err != nil {
		return err
	}
	if err := m.locks.checkOwners(); err != nil {
		return err
	}
	if m.locks.len() > m.opts.Locks || m.ids.len()-m.inflight.ids > m.opts.IDs {
		return fmt.Errorf("%d locks and %d ids are tracked, over the limit", m.locks.len(), m.ids.len())
	}
	if err := m.ids.check(); err != nil {
		return err
	}
	if err := m.sessions.check(m.opts.Sessions); err != nil {
		return err
	}
	refs := 0
	for _, fl := range m.inflight.txs[m.inflight.head:] {
		refs += fl.refs
	}
	if refs != len(m.inflight.refs)-m.inflight.ref {
		return fmt.Errorf("in flight are %d lock references, want %d", len(m.inflight.refs)-m.inflight.ref, refs)
	}
	return nil
}

// check compares the sessions in the order with those that are known.
func (s *sessions) check(most int) error {
	inOrder := 0
	for i := s.records.newest(); i != 0; i = s.records.next(i) {
		if r := s.records.at(i); r.committedTxid == 0 || s.byID[r.id] != i {
			return fmt.Errorf("session %x of txid %d is number %d, and known as %d", r.id, r.committedTxid, i, s.byID[r.id])
		}
		inOrder++
	}
	if inOrder != s.len() || inOrder > most {
		return fmt.Errorf("%d sessions in the order, which says %d: at most %d", inOrder, s.len(), most)
	}
	for id, i := range s.byID {
		if r := s.records.at(i); r.id != id || r.txid == 0 || r.txid < r.committedTxid {
			return fmt.Errorf("session %x is known as %d: %+v", id, i, *r)
		}
	}
	return nil
}

// checkOwners returns an error if the table has owners of locks or prefixes
// that are not known.
func (t *table) checkOwners() error {
	for key, o := range t.owners {
		p := t.prefixes.at(uint32(key >> 1))
		r := p.recorders
		if key&1 == 0 {
			r = t.locks.at(uint32(key >> 1)).recorders
		} else if !p.owned {
			return fmt.Errorf("prefix %d has the owner %+v, and does not say so", key>>1, o)
		}
		if o.pending.session != (ID{}) && r.newest <= o.pending.other || o.committed.session != (ID{}) && r.committed <= o.committed.other {
			return fmt.Errorf("owner %d of %+v: %+v", key, r, o)
		}
		if r.newest < o.pending.alone.through || r.committed < o.committed.alone.through {
			return fmt.Errorf("owner %d of %+v was alone up to a later one: %+v", key, r, o)
		}
	}
	return nil
}

// check compares the table's counts with its locks, and with the locks that are
// pending, with their newest recorder in flight.
func (t *table) check(pending map[uint32]uint64) error {
	var all []uint32
	last := ^uint64(0)
	for i := t.locks.newest(); i != 0; i = t.locks.next(i) {
		l := t.locks.at(i)
		if l.committed > last || l.committed == 0 {
			return fmt.Errorf("lock %s of txid %d stands behind %d", t.name(i), l.committed, last)
		}
		last = l.committed
		all = append(all, i)
	}
	if len(all) != t.len() {
		return fmt.Errorf("%d locks in the list, which says %d", len(all), t.len())
	}
	for i := range pending {
		if t.locks.at(i).committed == 0 {
			all = append(all, i)
		}
	}
	if len(all) != t.byName.count() {
		return fmt.Errorf("%d locks are known, %d in the index", len(all), t.byName.count())
	}
	want := map[uint32]*prefix{}
	for _, i := range all {
		if err := t.checkLock(i, pending[i], want); err != nil {
			return err
		}
	}
	prefixes := len(want)
	if prefixes > 0 {
		prefixes-- // the root is not in the index
	}
	if prefixes != t.byPath.count() {
		return fmt.Errorf("%d prefixes in use, %d in the index", prefixes, t.byPath.count())
	}
	for at, w := range want {
		if p := t.prefixes.at(at); p.recorders != w.recorders || p.below != w.below || p.kept != w.kept {
			return fmt.Errorf("prefix %d: %+v, want %+v", at, *p, *w)
		}
	}
	return nil
}

// checkLock checks one lock, and counts it in each of its prefixes.
func (t *table) checkLock(i uint32, pending uint64, want map[uint32]*prefix) error {
	l := t.locks.at(i)
	name := t.name(i)
	if newest := max(pending, l.committed); l.newest != newest {
		return fmt.Errorf("lock %s: newest recorder %d, want %d", name, l.newest, newest)
	}
	if _, at := t.overlapping(name); string(t.tokens.get(&l.token)) != wildcard && at != i {
		return fmt.Errorf("lock %s is known, but not found", name)
	}
	if sub := t.prefixes.at(l.parent).subtree; (string(t.tokens.get(&l.token)) == wildcard) != (sub == i) {
		return fmt.Errorf("lock %s: the subtree of its prefix is %d, itself %d", name, sub, i)
	}
	below, kept := uint32(1), uint32(0)
	if l.committed != 0 {
		kept = 1
	}
	for at := l.parent; ; at = t.prefixes.at(at).parent {
		w := want[at]
		fresh := w == nil
		if fresh {
			w = &prefix{}
			want[at] = w
		}
		w.below += below
		first := kept > 0 && w.kept == 0
		w.kept += kept
		w.add(l.recorders)
		below, kept = 0, 0
		if fresh {
			below = 1
		}
		if first {
			kept = 1
		}
		if at == 0 {
			return nil
		}
	}
}

// check looks up every id that is held.
func (s *ids) check() error {
	void := 0
	for i := s.records.first; i < s.records.next; i++ {
		r := s.records.at(i)
		if r.id == (ID{}) {
			void++
		} else if _, at := s.below(r.id, i+1); at != i {
			return fmt.Errorf("id %x is number %d, and found at %d", r.id, i, at)
		}
	}
	if void != s.void || s.len() > 0 && s.oldest().id == (ID{}) {
		return fmt.Errorf("%d ids are void, counted as %d; or the oldest is", void, s.void)
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
