package lockmgr

import "math/bits"

// slab holds records of one size, named by index. It grows by chunks, each as
// large as all before it together, so that nothing is ever copied, and a record is
// found in few steps. What is not used yet of the last one takes no memory but
// addresses.
type slab[T any] struct {
	chunks [][]T
	used   uint32
	free   []uint32
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

// take returns the index of a zero record.
func (s *slab[T]) take() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	if k := len(s.chunks); s.used == start(k) {
		s.chunks = append(s.chunks, makeHuge[T](int(start(k+1)-start(k))))
	}
	s.used++
	return s.used - 1
}

func (s *slab[T]) give(i uint32) {
	var zero T
	*s.at(i) = zero
	s.free = append(s.free, i)
}
