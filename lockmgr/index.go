package lockmgr

// index finds records by hash: locks by name, prefixes by path, message ids. It
// is a hash table with linear probing whose slots hold a record's hash and
// index, so that a record is read only if its whole hash matches; the caller
// compares keys. It is split into shards that grow on their own: no single
// insertion pays for moving all. They grow into one block, so that it can use
// huge pages; a block is freed when the last shard has left it.
type index struct {
	shards [indexShards]shard
	block  []uint64 // the newest

	// holds, if given, reports whether a record still exists: those that do not
	// need not be removed, and are dropped when a shard is full.
	holds func(i uint32) bool
	held  []uint64 // scratch of clean
}

type shard struct {
	slots []uint64 // hash<<32 | index; 0 is empty. A power of two, or none yet
	n     int
}

const (
	shardBits   = 6
	indexShards = 1 << shardBits
	firstSlots  = 8
)

func (x *index) shard(hash uint32) *shard { return &x.shards[hash>>(32-shardBits)] }

// probe iterates over the records that have one hash.
type probe struct {
	slots []uint64
	pos   uint32
	hash  uint32
}

func (x *index) probe(hash uint32) probe {
	return probe{slots: x.shard(hash).slots, pos: hash, hash: hash}
}

// next returns the index of the next candidate, 0 if there is none.
func (p *probe) next() uint32 {
	if len(p.slots) == 0 {
		return 0
	}
	mask := uint32(len(p.slots) - 1)
	for {
		slot := p.slots[p.pos&mask]
		p.pos++
		if slot == 0 {
			return 0
		}
		if uint32(slot>>32) == p.hash {
			return uint32(slot)
		}
	}
}

func (x *index) add(hash, i uint32) {
	s := x.shard(hash)
	if s.n >= len(s.slots)/4*3 && !x.clean(s) {
		x.grow(hash >> (32 - shardBits))
	}
	s.place(uint64(hash)<<32 | uint64(i))
	s.n++
}

// clean drops the records of a shard that no longer exist, and reports whether
// that makes enough room for long.
func (x *index) clean(s *shard) bool {
	if x.holds == nil {
		return false
	}
	held := x.held[:0]
	for _, slot := range s.slots {
		if slot != 0 && x.holds(uint32(slot)) {
			held = append(held, slot)
		}
	}
	clear(s.slots)
	for _, slot := range held {
		s.place(slot)
	}
	s.n, x.held = len(held), held
	return s.n < len(s.slots)/8*5
}

// grow moves a shard to its part of the newest block, or of a larger one.
func (x *index) grow(number uint32) {
	s := &x.shards[number]
	old := s.slots
	size := len(x.block) / indexShards
	if size <= len(old) {
		size = max(firstSlots, 2*len(old))
		x.block = makeHuge[uint64](size * indexShards)
	}
	from := int(number) * size
	s.slots = x.block[from : from+size : from+size]
	for _, slot := range old {
		if slot != 0 {
			s.place(slot)
		}
	}
}

func (s *shard) place(slot uint64) {
	mask := uint32(len(s.slots) - 1)
	pos := uint32(slot>>32) & mask
	for s.slots[pos] != 0 {
		pos = (pos + 1) & mask
	}
	s.slots[pos] = slot
}

// remove removes a record that is in the index.
func (x *index) remove(hash, i uint32) {
	s := x.shard(hash)
	mask := uint32(len(s.slots) - 1)
	hole := hash & mask
	for s.slots[hole] != uint64(hash)<<32|uint64(i) {
		hole = (hole + 1) & mask
	}
	// Records behind the hole move up, so that no probe ends too early: each
	// that does not start its probe between the hole and where it is.
	for pos := (hole + 1) & mask; s.slots[pos] != 0; pos = (pos + 1) & mask {
		home := uint32(s.slots[pos]>>32) & mask
		if (pos-home)&mask >= (pos-hole)&mask {
			s.slots[hole] = s.slots[pos]
			hole = pos
		}
	}
	s.slots[hole] = 0
	s.n--
}
