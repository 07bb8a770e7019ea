package lockmgr

import "strings"

// What a session has recorded does not conflict with its own transactions. So a
// lock, or a prefix, whose newest recorder is of a session also has the newest
// one that is not. Of which other session or none that one is makes no
// difference, and a transaction of another session conflicts with the newest
// recorder itself.
//
// If there is no such one, the table does not know that: one may have been
// forgotten. But the session's own transactions say so. One that checked a lock
// is in the log only because nobody else had recorded it after its high-water
// mark. So an owner also has the newest of those, as an interval in which the
// session was alone. If that ends above the floor, the table knows the rest, up
// to now. Then the next transaction of the session need not be looked up in the
// log, however far behind its mark is, unless that lies before the interval.
//
// All of this is a function of the log above the floor, so a rebuilt table has
// the same. A read lock leaves no trace where nothing is recorded, and a
// condition is not in the log: what the session has only checked in these ways
// is looked up.

// owner is what a table knows of the sessions of a lock or a prefix, for its
// newest recorder and for its newest committed one.
type owner struct{ pending, committed owned }

// owned is the session of a recorder, zero if it has none; and, unless it is
// zero, the newest recorder before that which is not of the session, 0 if none
// is known, and where the session was alone.
type owned struct {
	session ID
	other   uint64
	alone   interval
}

// interval says that after txid after, up to txid through, nobody but the
// session recorded a lock that overlaps this one, or one below this prefix. It
// stays true whatever happens later. The zero interval says nothing.
type interval struct{ after, through uint64 }

// recorder is what a table needs to know of a transaction that records a lock.
type recorder struct {
	txid    uint64
	session ID // zero if it has none, and then the rest is, too
	mark    uint64

	// covered is how many of the lock and the prefixes above it, from the lock
	// on, locks that the transaction checks cover.
	covered uint32
}

// recorderOf returns the recorder of the locks of a transaction, without what
// it covers.
func recorderOf(txid uint64, tx *Transaction) recorder {
	r := recorder{txid: txid, session: tx.Session}
	if tx.Session != (ID{}) && tx.HasHighWaterMark {
		r.mark = tx.HighWaterMark
	}
	return r
}

// of makes r the recorder of lock number i of its transaction.
func (r *recorder) of(i int, tx *Transaction) {
	if r.session != (ID{}) {
		r.covered = covered(tx.Locks[i].Name, tx.Locks)
	}
}

// covered returns how many of the lock of a name and the prefixes above it,
// from the lock on, are covered by the checked ones of locks.
func covered(name string, locks []Lock) (n uint32) {
	for i := range locks {
		l := &locks[i]
		if !l.Mode.checked() {
			continue
		}
		above, subtree := strings.CutSuffix(l.Name, wildcard)
		below, ok := strings.CutPrefix(name, above)
		switch {
		case subtree && ok:
			n = max(n, uint32(strings.Count(below, "."))+2)
		case l.Name == name:
			n = max(n, 1)
		}
	}
	return n
}

// by returns what becomes of o when r records the lock, or one below the
// prefix, after newest. covered says that r has checked all of it.
func (o owned) by(r *recorder, covered bool, newest uint64) owned {
	switch r.session {
	case ID{}:
		return owned{}
	case o.session:
	default:
		o = owned{session: r.session, other: newest}
	}
	if covered {
		o.alone = interval{r.mark, r.txid}
	}
	return o
}

// ownerKey is the index of a lock times two, or of a prefix times two plus one.
type ownerKey uint64

func lockKey(i uint32) ownerKey   { return ownerKey(i) << 1 }
func prefixKey(i uint32) ownerKey { return ownerKey(i)<<1 | 1 }

// others is what is known of the recorders that are not of a session.
type others struct {
	session ID
	floor   uint64
	newest  uint64 // of those that are known, 0 for none
	most    uint64 // if none is known above the floor, the newest one is at most this
}

// add adds the recorders of a lock or prefix, of which newest is the newest.
func (s *others) add(t *table, key ownerKey, newest uint64) {
	o := t.owners[key].pending
	if o.session != s.session {
		s.newest = max(s.newest, newest)
		return
	}
	s.newest = max(s.newest, o.other)
	if o.alone.through > s.floor {
		s.most = min(s.most, o.alone.after)
	}
}

// newestOther returns the newest recorder of locks that overlap name other than
// of a session, and the index of name as overlapping does. If none is known
// above the floor, it is at most txid, if there ever was one.
func (t *table) newestOther(name string, session ID, floor uint64) (txid uint64, known bool, i uint32) {
	found := others{session: session, floor: floor, most: floor}
	i = t.addOthers(name, &found)
	if found.newest > floor {
		return found.newest, true, i
	}
	return found.most, false, i
}

func (t *table) addOthers(name string, found *others) (i uint32) {
	var at uint32
	for {
		token, rest, last := cut(name)
		p := t.prefixes.at(at)
		if p.subtree != 0 {
			found.add(t, lockKey(p.subtree), t.locks.at(p.subtree).newest)
		}
		if last && token == wildcard {
			found.add(t, prefixKey(at), p.newest)
			return 0
		}
		hash := t.hash(at, token)
		if last {
			if i = t.findLock(hash, at, token); i != 0 {
				found.add(t, lockKey(i), t.locks.at(i).newest)
			}
			return i
		}
		if at = t.findPrefix(hash, at, token); at == 0 {
			return 0
		}
		name = rest
	}
}

// setOwner sets what is known of a lock or prefix, and forgets it if that is
// nothing. was reports whether something was known before, and is whether it is
// now.
func (t *table) setOwner(key ownerKey, o owner, was bool) (is bool) {
	if is = o != (owner{}); is {
		t.owners[key] = o
	} else if was {
		delete(t.owners, key)
	}
	return is
}

// eachOwner changes the owners of a lock and of the prefixes above it, because
// of a transaction of a session, or of none. change gets the recorders that
// they have, and whether by covers them. A transaction without a session does
// not change what has no owner.
func (t *table) eachOwner(i uint32, by *recorder, change func(o owner, r recorders, covered bool) owner) {
	l := t.locks.at(i)
	if o, was := t.owners[lockKey(i)]; was || by.session != (ID{}) {
		t.setOwner(lockKey(i), change(o, l.recorders, by.covered > 0), was)
	}
	at := l.parent
	for n := uint32(1); ; n++ {
		p := t.prefixes.at(at)
		if p.owned || by.session != (ID{}) {
			key := prefixKey(at)
			p.owned = t.setOwner(key, change(t.owners[key], p.recorders, by.covered > n), p.owned)
		}
		if at == 0 {
			return
		}
		at = p.parent
	}
}

// ownPending is called before a transaction of a session, or of none, becomes
// the newest recorder of a lock.
func (t *table) ownPending(i uint32, by *recorder) {
	if by.session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, by, func(o owner, r recorders, covered bool) owner {
		o.pending = o.pending.by(by, covered, r.newest)
		return o
	})
}

// ownCommitted is ownPending for the newest committed recorder.
func (t *table) ownCommitted(i uint32, by *recorder) {
	if by.session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, by, func(o owner, r recorders, covered bool) owner {
		o.committed = o.committed.by(by, covered, r.committed)
		return o
	})
}

// ownOlder is called before recordOlder has recorded a lock.
func (t *table) ownOlder(i uint32, by *recorder) {
	if by.session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, by, func(o owner, r recorders, covered bool) owner {
		if r.committed == 0 {
			o.committed = owned{session: by.session}
		}
		switch is := &o.committed; {
		case is.session == (ID{}) || is.other != 0:
		case is.session != by.session:
			is.other = by.txid
		case covered && is.alone == (interval{}):
			is.alone = interval{by.mark, by.txid}
		}
		o.pending = o.committed
		return o
	})
}

// revertOwners is called when the newest recorders of a lock, and of the
// prefixes above it, become the committed ones.
func (t *table) revertOwners(i uint32) {
	if len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, &recorder{}, func(o owner, _ recorders, _ bool) owner {
		o.pending = o.committed
		return o
	})
}

// disownCommitted is called when a lock or prefix has no committed recorder any
// more, and disown when it has none at all.
func (t *table) disownCommitted(key ownerKey) {
	if o, ok := t.owners[key]; ok {
		o.committed = owned{}
		t.setOwner(key, o, true)
	}
}

func (t *table) disown(key ownerKey) { delete(t.owners, key) }
