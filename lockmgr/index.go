package lockmgr

// index finds records by hash: locks by name, prefixes by path, message ids. It
// is a hash table with linear probing whose cells hold a record's hash and
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
	cells []uint64 // hash<<32 | index; 0 is empty. A power of two, or none yet
	n     int
}

const (
	shardBits   = 6
	indexShards = 1 << shardBits
	firstCells  = 8
)

func (x *index) shard(hash uint32) *shard { return &x.shards[hash>>(32-shardBits)] }

// probe iterates over the records that have one hash.
type probe struct {
	cells []uint64
	pos   uint32
	hash  uint32
}

func (x *index) probe(hash uint32) probe {
	return probe{cells: x.shard(hash).cells, pos: hash, hash: hash}
}

// next returns the index of the next candidate, 0 if there is none.
func (p *probe) next() uint32 {
	if len(p.cells) == 0 {
		return 0
	}
	mask := uint32(len(p.cells) - 1)
	for {
		cell := p.cells[p.pos&mask]
		p.pos++
		if cell == 0 {
			return 0
		}
		if uint32(cell>>32) == p.hash {
			return uint32(cell)
		}
	}
}

func (x *index) add(hash, i uint32) {
	s := x.shard(hash)
	if s.n >= len(s.cells)/4*3 && !x.clean(s) {
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
	for _, cell := range s.cells {
		if cell != 0 && x.holds(uint32(cell)) {
			held = append(held, cell)
		}
	}
	clear(s.cells)
	for _, cell := range held {
		s.place(cell)
	}
	s.n, x.held = len(held), held
	return s.n < len(s.cells)/8*5
}

// grow moves a shard to its part of the newest block, or of a larger one.
func (x *index) grow(number uint32) {
	s := &x.shards[number]
	old := s.cells
	size := len(x.block) / indexShards
	if size <= len(old) {
		size = max(firstCells, 2*len(old))
		x.block = makeHuge[uint64](size * indexShards)
	}
	from := int(number) * size
	s.cells = x.block[from : from+size : from+size]
	for _, cell := range old {
		if cell != 0 {
			s.place(cell)
		}
	}
}

func (s *shard) place(cell uint64) {
	mask := uint32(len(s.cells) - 1)
	pos := uint32(cell>>32) & mask
	for s.cells[pos] != 0 {
		pos = (pos + 1) & mask
	}
	s.cells[pos] = cell
}

// remove removes a record that is in the index.
func (x *index) remove(hash, i uint32) {
	s := x.shard(hash)
	mask := uint32(len(s.cells) - 1)
	hole := hash & mask
	for s.cells[hole] != uint64(hash)<<32|uint64(i) {
		hole = (hole + 1) & mask
	}
	// Records behind the hole move up, so that no probe ends too early: each
	// that does not start its probe between the hole and where it is.
	for pos := (hole + 1) & mask; s.cells[pos] != 0; pos = (pos + 1) & mask {
		home := uint32(s.cells[pos]>>32) & mask
		if (pos-home)&mask >= (pos-hole)&mask {
			s.cells[hole] = s.cells[pos]
			hole = pos
		}
	}
	s.cells[hole] = 0
	s.n--
}
