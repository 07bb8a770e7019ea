package lockmgr

// ring holds the locks of a table, or sessions: a slab of records, some of
// which are in an order from the newest to the oldest, as a doubly linked ring
// of indices. Index 0 is the ring's own node and holds no record.
type ring[T any] struct {
	nodes slab[node[T]]
	n     int // in the order
}

// node keeps links and record together: a caller that reads one mostly needs
// the other.
type node[T any] struct {
	newer, older uint32
	record       T
}

func newRing[T any]() ring[T] {
	var r ring[T]
	r.nodes.alloc()
	return r
}

func (r *ring[T]) at(i uint32) *T { return &r.nodes.at(i).record }

func (r *ring[T]) newest() uint32       { return r.nodes.at(0).older }
func (r *ring[T]) oldest() uint32       { return r.nodes.at(0).newer }
func (r *ring[T]) next(i uint32) uint32 { return r.nodes.at(i).older }

// alloc returns the index of a zero record that is not in the order yet; free
// returns one to the slab that has left the order.
func (r *ring[T]) alloc() uint32 { return r.nodes.alloc() }
func (r *ring[T]) free(i uint32) { r.nodes.free(i) }

// enterNewest adds a record to the order as the newest; enterOldest, as the
// oldest.
func (r *ring[T]) enterNewest(i uint32) { r.enter(i, 0, r.newest()) }
func (r *ring[T]) enterOldest(i uint32) { r.enter(i, r.oldest(), 0) }

func (r *ring[T]) enter(i, newer, older uint32) {
	r.link(i, newer, older)
	r.n++
}

// renew moves a record of the order to its newest end.
func (r *ring[T]) renew(i uint32) {
	r.unlink(i)
	r.link(i, 0, r.newest())
}

// leave removes a record from the order.
func (r *ring[T]) leave(i uint32) {
	r.unlink(i)
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
