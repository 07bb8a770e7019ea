package lockmgr

// slab holds records of one size, named by index. It grows by chunks, so that a
// large one is never copied or half empty.
type slab[T any] struct {
	chunks []*[chunkSize]T
	used   uint32
	free   []uint32
}

const (
	chunkBits = 6
	chunkSize = 1 << chunkBits
)

func (s *slab[T]) at(i uint32) *T { return &s.chunks[i>>chunkBits][i%chunkSize] }

// take returns the index of a zero record.
func (s *slab[T]) take() uint32 {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	if int(s.used>>chunkBits) == len(s.chunks) {
		s.chunks = append(s.chunks, new([chunkSize]T))
	}
	s.used++
	return s.used - 1
}

func (s *slab[T]) give(i uint32) {
	var zero T
	*s.at(i) = zero
	s.free = append(s.free, i)
}
