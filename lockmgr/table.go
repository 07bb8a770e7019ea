package lockmgr

import (
	"hash/maphash"
	"iter"
	"slices"
	"strings"
)

// table maps lock names to the newest transactions that recorded them, in
// flight and committed, and finds those of all names that overlap a given one.
// See the package comment for its layout.
type table struct {
	seed   maphash.Seed
	tokens arena

	locks  ring[lock] // in its order those with a committed recorder, by (txid, position in the transaction)
	byName index      // of locks, by parent and last token

	prefixes slab[prefix] // 0 is the root, the empty prefix
	byPath   index        // of prefixes, by parent and last token

	owners map[ownerKey]owner // of locks and prefixes whose newest recorder, or newest committed one, is of a session
}

// recorders are the newest transactions that recorded a lock, or one of
// several, 0 for none that is known.
type recorders struct {
	newest    uint64 // in flight or committed
	committed uint64
}

func (r *recorders) add(o recorders) {
	r.newest = max(r.newest, o.newest)
	r.committed = max(r.committed, o.committed)
}

// lock is a known name: the prefix that it is under, and its last token. It is
// known while it has a recorder.
type lock struct {
	recorders
	parent uint32
	token  token
}

// prefix is a proper prefix of at least one known name.
type prefix struct {
	recorders // of all locks below
	parent    uint32
	subtree   uint32 // the lock that covers all below, 0 if it is not known
	below     uint32 // locks and prefixes directly below
	kept      uint32 // of them have a committed recorder
	token     token
	owned     bool // it is among the table's owners
}

func newTable() *table {
	t := &table{seed: maphash.MakeSeed(), locks: newRing[lock](), owners: map[ownerKey]owner{}}
	t.prefixes.alloc()
	return t
}

// len is the number of locks with a committed recorder.
func (t *table) len() int { return t.locks.n }

// overlapping returns the newest recorders of locks that overlap name, and the
// index of name itself, 0 if it is not known or stands for a subtree.
func (t *table) overlapping(name string) (r recorders, i uint32) {
	var at uint32
	for {
		token, rest, last := cut(name)
		p := t.prefixes.at(at)
		if last && token == wildcard {
			r.add(p.recorders)
			return r, 0
		}
		if p.subtree != 0 {
			r.add(t.locks.at(p.subtree).recorders)
		}
		hash := t.hash(at, token)
		if last {
			if i = t.findLock(hash, at, token); i != 0 {
				r.add(t.locks.at(i).recorders)
			}
			return r, i
		}
		if at = t.findPrefix(hash, at, token); at == 0 {
			return r, 0
		}
		name = rest
	}
}

// index returns the index of name, adding it if need be: the caller then sets
// its recorder.
func (t *table) index(name string) uint32 {
	parent, token := t.descend(name)
	hash := t.hash(parent, token)
	i := t.findLock(hash, parent, token)
	if i == 0 {
		i = t.locks.alloc()
		*t.locks.at(i) = lock{parent: parent, token: t.tokens.put(token)}
		t.byName.add(hash, i)
		p := t.prefixes.at(parent)
		p.below++
		if token == wildcard {
			p.subtree = i
		}
	}
	return i
}

// above iterates over a prefix and the prefixes above it, up to the root.
func (t *table) above(at uint32) iter.Seq[*prefix] {
	return func(yield func(*prefix) bool) {
		for {
			p := t.prefixes.at(at)
			if !yield(p) || at == 0 {
				return
			}
			at = p.parent
		}
	}
}

// newest is the newest recorder of a lock, 0 if it has none.
func (t *table) newest(i uint32) uint64 { return t.locks.at(i).newest }

// recordPending makes a transaction, at least as new as any, the newest
// recorder of a lock. It is in flight until commit or revert.
func (t *table) recordPending(i uint32, by *recorder) {
	t.ownPending(i, by)
	l := t.locks.at(i)
	l.newest = by.txid
	for p := range t.above(l.parent) {
		p.newest = by.txid
	}
}

// commit makes a transaction, at least as new as any that is committed, the
// newest committed recorder of a lock. It was recorded as pending before.
func (t *table) commit(i uint32, by *recorder) {
	t.ownCommitted(i, by)
	l := t.locks.at(i)
	if l.committed != 0 {
		t.locks.renew(i)
	} else {
		t.locks.enterNewest(i)
		t.keep(l.parent)
	}
	l.committed = by.txid
	for p := range t.above(l.parent) {
		p.committed = by.txid
	}
}

// revert sets the newest recorder of a lock, and of the prefixes above it, back
// to the committed one. The caller then re-records the transactions still in
// flight, oldest first, and drops locks that none of them records.
func (t *table) revert(i uint32) {
	t.revertOwners(i)
	l := t.locks.at(i)
	l.newest = l.committed
	for p := range t.above(l.parent) {
		p.newest = p.committed
	}
}

// dropUnknown forgets a lock without a recorder. It may have been forgotten
// already, provided that its index was not reused since.
func (t *table) dropUnknown(i uint32) {
	if l := t.locks.at(i); l.newest == 0 && l.token != (token{}) {
		t.drop(i)
	}
}

// recordOlder makes a transaction, at most as new as any, the recorder of name
// unless name is known already. It returns false and changes nothing if that
// would need more than limit names. Nothing may be in flight.
func (t *table) recordOlder(name string, by *recorder, limit int) bool {
	if t.len() >= limit && !t.known(name) {
		return false
	}
	i := t.index(name)
	t.ownOlder(i, by)
	l := t.locks.at(i)
	if l.committed != 0 {
		return true
	}
	t.locks.enterOldest(i)
	t.keep(l.parent)
	l.recorders = recorders{by.txid, by.txid}
	for p := range t.above(l.parent) {
		p.add(l.recorders)
	}
	return true
}

// dropOldest forgets the oldest committed recorder of any lock and returns its
// txid.
func (t *table) dropOldest() uint64 {
	i := t.locks.oldest()
	l := t.locks.at(i)
	txid := l.committed
	l.committed = 0
	t.disownCommitted(lockKey(i))
	t.locks.leave(i)
	t.leave(l.parent)
	if l.newest == txid {
		t.drop(i)
	}
	return txid
}

// forget drops everything committed before txid first.
func (t *table) forget(first uint64) {
	for t.len() > 0 && t.locks.at(t.locks.oldest()).committed < first {
		t.dropOldest()
	}
}

// drop forgets a lock that is not in the order any more.
func (t *table) drop(i uint32) {
	l := *t.locks.at(i)
	token := t.tokens.get(&l.token)
	t.byName.remove(t.hashBytes(l.parent, token), i)
	if string(token) == wildcard {
		t.prefixes.at(l.parent).subtree = 0
	}
	t.tokens.drop(&l.token)
	t.disown(lockKey(i))
	t.locks.free(i)
	t.release(l.parent)
}

// known reports whether name itself is in the table.
func (t *table) known(name string) bool {
	var at uint32
	for {
		token, rest, last := cut(name)
		hash := t.hash(at, token)
		if last {
			return t.findLock(hash, at, token) != 0
		}
		if at = t.findPrefix(hash, at, token); at == 0 {
			return false
		}
		name = rest
	}
}

// name returns a lock's name.
func (t *table) name(i uint32) string {
	l := t.locks.at(i)
	tokens := []string{string(t.tokens.get(&l.token))}
	for at := l.parent; at != 0; at = t.prefixes.at(at).parent {
		tokens = append(tokens, string(t.tokens.get(&t.prefixes.at(at).token)))
	}
	slices.Reverse(tokens)
	return strings.Join(tokens, ".")
}

// descend returns the prefix that name is under, adding it if need be, and the
// last token of name.
func (t *table) descend(name string) (parent uint32, token string) {
	for {
		token, rest, last := cut(name)
		if last {
			return parent, token
		}
		hash := t.hash(parent, token)
		at := t.findPrefix(hash, parent, token)
		if at == 0 {
			at = t.prefixes.alloc()
			*t.prefixes.at(at) = prefix{parent: parent, token: t.tokens.put(token)}
			t.prefixes.at(parent).below++
			t.byPath.add(hash, at)
		}
		parent, name = at, rest
	}
}

// keep counts, in a prefix, one more child with a committed recorder; leave
// counts one less.
func (t *table) keep(at uint32) {
	for {
		p := t.prefixes.at(at)
		p.kept++
		if p.kept > 1 || at == 0 {
			return
		}
		at = p.parent
	}
}

func (t *table) leave(at uint32) {
	for {
		p := t.prefixes.at(at)
		p.kept--
		if p.kept > 0 {
			return
		}
		p.committed = 0
		if p.owned {
			t.disownCommitted(prefixKey(at))
			_, p.owned = t.owners[prefixKey(at)]
		}
		if at == 0 {
			return
		}
		at = p.parent
	}
}

// release counts, in a prefix, one child less, and drops the prefix with its
// last.
func (t *table) release(at uint32) {
	for {
		p := t.prefixes.at(at)
		p.below--
		if p.below > 0 {
			return
		}
		p.newest = 0
		if p.owned {
			t.disown(prefixKey(at))
			p.owned = false
		}
		if at == 0 {
			return
		}
		gone := *p
		t.byPath.remove(t.hashBytes(gone.parent, t.tokens.get(&gone.token)), at)
		t.tokens.drop(&gone.token)
		t.prefixes.free(at)
		at = gone.parent
	}
}

func (t *table) findLock(hash, parent uint32, token string) uint32 {
	for p := t.byName.probe(hash); ; {
		i := p.next()
		if i == 0 {
			return 0
		}
		if l := t.locks.at(i); l.parent == parent && string(t.tokens.get(&l.token)) == token {
			return i
		}
	}
}

func (t *table) findPrefix(hash, parent uint32, token string) uint32 {
	for p := t.byPath.probe(hash); ; {
		i := p.next()
		if i == 0 {
			return 0
		}
		if q := t.prefixes.at(i); q.parent == parent && string(t.tokens.get(&q.token)) == token {
			return i
		}
	}
}

func (t *table) hash(parent uint32, token string) uint32 {
	return mix(maphash.String(t.seed, token), parent)
}

func (t *table) hashBytes(parent uint32, token []byte) uint32 {
	return mix(maphash.Bytes(t.seed, token), parent)
}

// mix adds the parent to a token's hash: by an odd constant (2^64 over the
// golden ratio) and a product, whose upper half depends on all bits of both.
func mix(hash uint64, parent uint32) uint32 {
	const odd = 0x9e3779b97f4a7c15
	hash ^= uint64(parent) * odd
	hash ^= hash >> 32
	return uint32(hash * odd >> 32)
}
