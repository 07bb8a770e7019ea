package lockmgr

import "unsafe"

// hugePage is the size of huge pages on the processors that are common, and a
// multiple of others' base pages.
const hugePage = 2 << 20

// makeHuge returns a slice of n zero elements for random access: the chunks of
// a slab and the block of an index. A large one uses huge pages where the
// system grants them: an access to a table of tens of megabytes then costs one
// cache miss, for the data, and not a second one for the page table. T must not
// hold pointers.
func makeHuge[T any](n int) []T {
	s := make([]T, n)
	size := uintptr(n) * unsafe.Sizeof(*new(T))
	if size < 2*hugePage {
		return s
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(s)))
	first := (start+hugePage-1)&^(hugePage-1) - start
	whole := (size - first) &^ (hugePage - 1)
	advise(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), first)), whole))
	return s
}
