package lockmgr

// What a session has recorded does not conflict with its own transactions. So a
// lock, or a prefix, whose newest recorder is of a session also has the newest
// one that is not. That is all it takes: of which other session or none that
// one is makes no difference, and a transaction of another session conflicts
// with the newest recorder itself.

// owner is what a table knows of the sessions of a lock or a prefix, for its
// newest recorder and for its newest committed one.
type owner struct{ pending, committed owned }

// owned is the session of a recorder, zero if it has none; and, unless it is
// zero, the newest recorder before that which is not of the session, 0 if none
// is known.
type owned struct {
	session ID
	other   uint64
}

// by returns what becomes of o when a transaction of a session records the lock
// after newest.
func (o owned) by(session ID, newest uint64) owned {
	switch session {
	case ID{}:
		return owned{}
	case o.session:
		return o
	}
	return owned{session, newest}
}

// ownerKey is the index of a lock times two, or of a prefix times two plus one.
type ownerKey uint64

func lockKey(i uint32) ownerKey   { return ownerKey(i) << 1 }
func prefixKey(i uint32) ownerKey { return ownerKey(i)<<1 | 1 }

// other returns the newest recorder that is not of a session, 0 if none is
// known.
func (t *table) other(key ownerKey, newest uint64, session ID) uint64 {
	if o := t.owners[key].pending; o.session == session {
		return o.other
	}
	return newest
}

// newestOther returns the newest recorder of locks that overlap name other than
// of a session, 0 if none is known, and the index of name as overlapping does.
func (t *table) newestOther(name string, session ID) (newest uint64, i uint32) {
	var at uint32
	for {
		token, rest, last := cut(name)
		p := t.prefixes.at(at)
		if last && token == wildcard {
			return max(newest, t.other(prefixKey(at), p.newest, session)), 0
		}
		if p.subtree != 0 {
			newest = max(newest, t.other(lockKey(p.subtree), t.locks.at(p.subtree).newest, session))
		}
		hash := t.hash(at, token)
		if last {
			if i = t.findLock(hash, at, token); i != 0 {
				newest = max(newest, t.other(lockKey(i), t.locks.at(i).newest, session))
			}
			return newest, i
		}
		if at = t.findPrefix(hash, at, token); at == 0 {
			return newest, 0
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
// they have. A transaction without a session does not change what has no owner.
func (t *table) eachOwner(i uint32, session ID, change func(o owner, r recorders) owner) {
	l := t.locks.at(i)
	if o, was := t.owners[lockKey(i)]; was || session != (ID{}) {
		t.setOwner(lockKey(i), change(o, l.recorders), was)
	}
	for at := l.parent; ; {
		p := t.prefixes.at(at)
		if p.owned || session != (ID{}) {
			key := prefixKey(at)
			p.owned = t.setOwner(key, change(t.owners[key], p.recorders), p.owned)
		}
		if at == 0 {
			return
		}
		at = p.parent
	}
}

// ownPending is called before a transaction of a session, or of none, becomes
// the newest recorder of a lock.
func (t *table) ownPending(i uint32, session ID) {
	if session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, session, func(o owner, r recorders) owner {
		o.pending = o.pending.by(session, r.newest)
		return o
	})
}

// ownCommitted is ownPending for the newest committed recorder.
func (t *table) ownCommitted(i uint32, session ID) {
	if session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, session, func(o owner, r recorders) owner {
		o.committed = o.committed.by(session, r.committed)
		return o
	})
}

// ownOlder is called before recordOlder has recorded a lock.
func (t *table) ownOlder(i uint32, txid uint64, session ID) {
	if session == (ID{}) && len(t.owners) == 0 {
		return
	}
	t.eachOwner(i, session, func(o owner, r recorders) owner {
		switch is := o.committed; {
		case r.committed == 0:
			o.committed = owned{session: session}
		case is.session != session && is.session != (ID{}) && is.other == 0:
			o.committed.other = txid
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
	t.eachOwner(i, ID{}, func(o owner, _ recorders) owner {
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
