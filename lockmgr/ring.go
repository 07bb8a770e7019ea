package lockmgr

// ring is a slab whose records stand in an order, from the newest to the oldest:
// a doubly linked ring of indices. Index 0 is the ring's own node and holds no
// record.
type ring[T any] struct {
	nodes slab[node[T]]
	n     int
}

// node keeps links and record together: who reads the one mostly needs the other.
type node[T any] struct {
	newer, older uint32
	record       T
}

func newRing[T any]() ring[T] {
	var r ring[T]
	r.nodes.take()
	return r
}

func (r *ring[T]) at(i uint32) *T { return &r.nodes.at(i).record }

func (r *ring[T]) newest() uint32       { return r.nodes.at(0).older }
func (r *ring[T]) oldest() uint32       { return r.nodes.at(0).newer }
func (r *ring[T]) next(i uint32) uint32 { return r.nodes.at(i).older }

// addNewest returns the index of a zero record, the newest; addOldest, the oldest.
func (r *ring[T]) addNewest() uint32 { return r.add(0, r.newest()) }
func (r *ring[T]) addOldest() uint32 { return r.add(r.oldest(), 0) }

func (r *ring[T]) add(newer, older uint32) uint32 {
	i := r.nodes.take()
	r.link(i, newer, older)
	r.n++
	return i
}

// renew makes a record the newest.
func (r *ring[T]) renew(i uint32) {
	r.unlink(i)
	r.link(i, 0, r.newest())
}

func (r *ring[T]) remove(i uint32) {
	r.unlink(i)
	r.nodes.give(i)
	r.n--
}

func (r *ring[T]) link(i, newer, older uint32) {
	n := r.nodes.at(i)
	n.newer, n.older = newer, older
	r.nodes.at(newer).older = i
	r.nodes.at(older).newer = i
}

func (r *ring[T]) unlink(i uint32) {
	n := r.nodes.at(i)
	r.nodes.at(n.newer).older = n.older
	r.nodes.at(n.older).newer = n.newer
}
