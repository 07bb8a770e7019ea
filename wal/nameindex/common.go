package nameindex

import (
	"cmp"
	"slices"
)

// commonSlots is how many keys are watched for being common, at most.
const (
	commonBits  = 6
	commonSlots = 1 << commonBits
)

// common has the transactions of keys that many transactions in memory have,
// such as a kind and the first token of locks. They are in the order in which
// they were added, and so need no sorting.
//
// A key is common when it comes twice while no other one comes that has its
// slot. From then on its transactions are only here; those before are among the
// entries.
type common struct {
	lists []commonList
	slots [commonSlots]slot
}

type commonList struct {
	key     Key
	offsets []uint32
}

// slot is for the keys with some first bits: it has the last one that came, or
// one that is common.
type slot struct {
	key  Key
	list int // its number, from 1 on; 0 if the key is not common
}

// add adds a transaction that has a key, if the key is common.
func (c *common) add(k Key, offset uint32) (ok bool) {
	s := &c.slots[k>>(64-commonBits)]
	switch {
	case s.key != k && s.list == 0:
		s.key = k
		return false
	case s.key != k:
		return false
	case s.list == 0:
		c.lists = append(c.lists, commonList{key: k})
		s.list = len(c.lists)
	}
	l := &c.lists[s.list-1]
	if n := len(l.offsets); n == 0 || l.offsets[n-1] != offset {
		l.offsets = append(l.offsets, offset)
	}
	return true
}

// size returns the bytes of the lists.
func (c *common) size() (bytes int64) {
	for _, l := range c.lists {
		bytes += 4 * int64(cap(l.offsets))
	}
	return bytes
}

// sorted returns the lists in the order of their keys.
func (c *common) sorted() []commonList {
	return slices.SortedFunc(slices.Values(c.lists), func(a, b commonList) int { return cmp.Compare(a.key, b.key) })
}

// findCommon returns the transactions of a key among lists.
func findCommon(lists []commonList, k Key) list {
	for _, l := range lists {
		if l.key == k {
			return list{len(l.offsets), func() ([]uint32, error) { return slices.Clone(l.offsets), nil }}
		}
	}
	return list{}
}
