package nameindex

import (
	"iter"
	"strings"

	"github.com/zeebo/xxh3"
)

// Key identifies one thing that transactions are found by.
type Key uint64

// An entry is the upper keyBits of a key, and below them the distance of a
// transaction from the first one that the run, or the memory, has.
const (
	offsetBits = 22
	keyBits    = 64 - offsetBits
	offsetMask = 1<<offsetBits - 1

	// idBit is set in the keys of message ids, and in no others.
	idBit = 1 << offsetBits

	// maxRun is how many transactions a run has at most.
	maxRun = 1 << offsetBits
)

// Hasher makes keys. The keys of two seeds have nothing in common.
type Hasher struct{ seed uint64 }

// NewHasher returns a Hasher with a seed.
func NewHasher(seed uint64) Hasher { return Hasher{seed} }

// What a key is made of, so that a kind never has the key of a lock.
const (
	pointKey   = 'p' // a point was recorded
	subtreeKey = 's' // a subtree was recorded
	belowKey   = 'b' // something in the subtree of a prefix was recorded
	kindKey    = 'k'
	msgIDKey   = 'i'
	numberKey  = 'n'
)

func (h Hasher) key(what byte, name string) Key {
	return Key(xxh3.HashStringSeed(name, h.seed^uint64(what)<<56) &^ (offsetMask | idBit))
}

// Kind returns the key of a kind.
func (h Hasher) Kind(kind string) Key { return h.key(kindKey, kind) }

// MsgID returns the key of a message id.
func (h Hasher) MsgID(id string) Key { return h.key(msgIDKey, id) | idBit }

// Number returns the key of a text that identifies a number in a session.
func (h Hasher) Number(text string) Key { return h.key(numberKey, text) }

func (k Key) isMsgID() bool { return k&idBit != 0 }

// Recorded appends the keys that a transaction is found by which has recorded a
// lock. The lock is a valid lock name of subjects.md.
func (h Hasher) Recorded(keys []Key, lock string) []Key {
	prefix, subtree := subtreeOf(lock)
	if subtree {
		keys = append(keys, h.key(subtreeKey, prefix))
	} else {
		keys = append(keys, h.key(pointKey, lock))
	}
	for prefix := range prefixes(lock) {
		keys = append(keys, h.key(belowKey, prefix))
	}
	return keys
}

// Overlapping appends the keys of all transactions that have recorded a lock
// which overlaps lock: each of these has one of the keys. It returns none for
// the lock ">", which every recorded lock overlaps.
func (h Hasher) Overlapping(keys []Key, lock string) []Key {
	prefix, subtree := subtreeOf(lock)
	switch {
	case !subtree:
		keys = append(keys, h.key(pointKey, lock))
	case prefix == "":
		return nil
	default:
		keys = append(keys, h.key(belowKey, prefix))
	}
	keys = append(keys, h.key(subtreeKey, ""))
	for prefix := range prefixes(lock) {
		keys = append(keys, h.key(subtreeKey, prefix))
	}
	return keys
}

// subtreeOf returns the prefix of a subtree lock, which is "" for ">".
func subtreeOf(lock string) (prefix string, ok bool) {
	if lock == ">" {
		return "", true
	}
	return strings.CutSuffix(lock, ".>")
}

// prefixes iterates over what is before each dot of a lock, the shortest first.
func prefixes(lock string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range len(lock) {
			if lock[i] == '.' && !yield(lock[:i]) {
				return
			}
		}
	}
}
