package lockmgr

import (
	"hash/maphash"
	"slices"
	"strings"
)

// table maps lock names to the newest transaction that recorded them, and
// answers for all names that overlap one. See the package comment for its layout.
type table struct {
	seed   maphash.Seed
	tokens arena

	locks  ring[lock] // by (txid, position in the transaction)
	byName index      // of locks, by parent and last token

	prefixes slab[prefix] // 0 is the root, the empty prefix
	byPath   index        // of prefixes, by parent and last token
}

// lock is a known name: the prefix that it stands under, and its last token.
type lock struct {
	txid   uint64
	parent uint32
	token  token
}

// prefix is a proper prefix of at least one known name.
type prefix struct {
	newest  uint64 // of all locks below
	parent  uint32
	subtree uint32 // the lock that covers all below, 0 if it is not known
	below   uint32 // locks and prefixes directly below
	token   token
}

func newTable() *table {
	t := &table{seed: maphash.MakeSeed(), locks: newRing[lock]()}
	t.prefixes.take()
	return t
}

func (t *table) len() int { return t.locks.n }

// newest returns the newest txid that recorded a lock overlapping name, 0 if none
// is known.
func (t *table) newest(name string) uint64 {
	var at uint32
	var txid uint64
	for {
		token, rest, last := cut(name)
		p := t.prefixes.at(at)
		if last && token == wildcard {
			return max(txid, p.newest)
		}
		if p.subtree != 0 {
			txid = max(txid, t.locks.at(p.subtree).txid)
		}
		hash := t.hash(at, token)
		if last {
			if i := t.findLock(hash, at, token); i != 0 {
				txid = max(txid, t.locks.at(i).txid)
			}
			return txid
		}
		if at = t.findPrefix(hash, at, token); at == 0 {
			return txid
		}
		name = rest
	}
}

// record makes txid, at least as new as any, the newest recorder of name. The
// lock's index stays valid until it is dropped.
func (t *table) record(name string, txid uint64) uint32 {
	parent, token := t.descend(name)
	hash := t.hash(parent, token)
	i := t.findLock(hash, parent, token)
	if i != 0 {
		t.locks.renew(i)
	} else {
		i = t.locks.addNewest()
		t.enter(i, hash, parent, token)
	}
	t.locks.at(i).txid = txid
	t.raise(parent, txid)
	return i
}

// recordOlder makes name known as of txid, at most as new as any, unless it is
// known already. It reports false, and changes nothing, if that would need more
// than limit names.
func (t *table) recordOlder(name string, txid uint64, limit int) bool {
	if t.len() >= limit {
		return t.known(name)
	}
	parent, token := t.descend(name)
	hash := t.hash(parent, token)
	if t.findLock(hash, parent, token) == 0 {
		i := t.locks.addOldest()
		t.enter(i, hash, parent, token)
		t.locks.at(i).txid = txid
		t.raise(parent, txid)
	}
	return true
}

// dropOldest forgets the lock recorded longest ago and returns its txid.
func (t *table) dropOldest() uint64 {
	i := t.locks.oldest()
	l := *t.locks.at(i)
	token := t.tokens.get(&l.token)
	t.byName.remove(t.hashBytes(l.parent, token), i)
	if string(token) == wildcard {
		t.prefixes.at(l.parent).subtree = 0
	}
	t.tokens.drop(&l.token)
	t.locks.remove(i)
	t.release(l.parent)
	return l.txid
}

// forget drops everything recorded before txid first.
func (t *table) forget(first uint64) {
	for t.len() > 0 && t.locks.at(t.locks.oldest()).txid < first {
		t.dropOldest()
	}
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

// name spells a lock out.
func (t *table) name(i uint32) string {
	l := t.locks.at(i)
	tokens := []string{string(t.tokens.get(&l.token))}
	for at := l.parent; at != 0; at = t.prefixes.at(at).parent {
		tokens = append(tokens, string(t.tokens.get(&t.prefixes.at(at).token)))
	}
	slices.Reverse(tokens)
	return strings.Join(tokens, ".")
}

// descend returns the prefix that name stands under, which it adds if need be, and
// its last token.
func (t *table) descend(name string) (parent uint32, token string) {
	for {
		token, rest, last := cut(name)
		if last {
			return parent, token
		}
		hash := t.hash(parent, token)
		at := t.findPrefix(hash, parent, token)
		if at == 0 {
			at = t.prefixes.take()
			*t.prefixes.at(at) = prefix{parent: parent, token: t.tokens.put(token)}
			t.prefixes.at(parent).below++
			t.byPath.add(hash, at)
		}
		parent, name = at, rest
	}
}

// enter makes a record of the ring findable as a lock.
func (t *table) enter(i, hash, parent uint32, token string) {
	*t.locks.at(i) = lock{parent: parent, token: t.tokens.put(token)}
	t.byName.add(hash, i)
	p := t.prefixes.at(parent)
	p.below++
	if token == wildcard {
		p.subtree = i
	}
}

// raise tells the prefixes from at upwards of a recorder below. One that knows
// a newer already has told those above.
func (t *table) raise(at uint32, txid uint64) {
	for {
		p := t.prefixes.at(at)
		if p.newest >= txid {
			return
		}
		p.newest = txid
		if at == 0 {
			return
		}
		at = p.parent
	}
}

// release tells a prefix that one below it has gone.
func (t *table) release(at uint32) {
	for {
		p := t.prefixes.at(at)
		p.below--
		if p.below > 0 {
			return
		}
		p.newest = 0
		if at == 0 {
			return
		}
		gone := *p
		t.byPath.remove(t.hashBytes(gone.parent, t.tokens.get(&gone.token)), at)
		t.tokens.drop(&gone.token)
		t.prefixes.give(at)
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

// mix adds the parent to a token's hash: by an odd constant (2^64 over the golden
// ratio) and a product, whose upper half depends on all bits of both.
func mix(hash uint64, parent uint32) uint32 {
	const odd = 0x9e3779b97f4a7c15
	hash ^= uint64(parent) * odd
	hash ^= hash >> 32
	return uint32(hash * odd >> 32)
}
