package lockmgr

import "unsafe"

// hugePage is the size of huge pages on the processors that are common, and a
// multiple of others' base pages.
const hugePage = 2 << 20

// makeHuge makes a slice of n zero elements that are reached at random. A large
// one is of huge pages where the system has some for those who ask: a look at a
// table of tens of megabytes then costs one miss, of the data, and not a second
// one of the page table. T must not hold pointers.
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
