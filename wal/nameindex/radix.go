package nameindex

import "runtime"

// sortEntries writes entries to sorted in the order of their keys. Those with
// one key stay in the order that they are in, which is that of their
// transactions. The four slices have one length, and sorted may be entries.
//
// It is a least-significant-digit radix sort (Knuth, The Art of Computer
// Programming, volume 3, section 5.2.5): no comparisons, and four passes for
// the 42 bits of a key.
func sortEntries(sorted, entries, scratch1, scratch2 []uint64) {
	const (
		digit  = 11
		passes = (keyBits + digit - 1) / digit
	)
	var counts [passes][1 << digit]uint32
	for _, e := range entries {
		for p := range passes {
			counts[p][e>>(offsetBits+p*digit)&(1<<digit-1)]++
		}
	}
	for p := range passes {
		shift := offsetBits + p*digit
		count, at := &counts[p], uint32(0)
		for d := range count {
			count[d], at = at, at+count[d]
		}
		from, to := scratch1, scratch2
		if p%2 == 1 {
			from, to = to, from
		}
		switch p {
		case 0:
			from = entries
		case passes - 1:
			to = sorted
		}
		for _, e := range from {
			d := e >> shift & (1<<digit - 1)
			to[count[d]] = e
			count[d]++
		}
		runtime.Gosched() // see yieldEvery
	}
}
