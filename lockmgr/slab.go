package lockmgr

import "math/bits"

// slab holds the prefixes of a table, and the nodes of its ring of locks:
// records of one size, identified by index. It grows by chunks, each as large
// as all before it together, so that nothing is ever copied and a record is
// found in few steps. The unused part of the last chunk takes no memory but
// addresses.
type slab[T any] struct {
	chunks [][]T
	used   uint32
	unused []uint32 // indices that were freed
}

const (
	firstBits  = 6
	firstChunk = 1 << firstBits
)

func (s *slab[T]) at(i uint32) *T {
	k := bits.Len32(i >> firstBits)
	return &s.chunks[k][i-start(k)]
}

// start is the first index in a chunk: 0, 64, 128, 256 and so on.
func start(k int) uint32 { return firstChunk / 2 << k &^ (firstChunk - 1) }

// alloc returns the index of a zero record.
func (s *slab[T]) alloc() uint32 {
	if n := len(s.unused); n > 0 {
		i := s.unused[n-1]
		s.unused = s.unused[:n-1]
		return i
	}
	if k := len(s.chunks); s.used == start(k) {
		s.chunks = append(s.chunks, makeHuge[T](int(start(k+1)-start(k))))
	}
	s.used++
	return s.used - 1
}

// free makes the index of a record available again.
func (s *slab[T]) free(i uint32) {
	var zero T
	*s.at(i) = zero
	s.unused = append(s.unused, i)
}
