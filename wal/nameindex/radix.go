package nameindex

import (
	"runtime"
	"slices"
)

// The digits by which entries are sorted are the first ones of their keys.
const (
	digitBits = 11
	digits    = 2
	cellBits  = digits * digitBits
)

// sortEntries writes entries to sorted in the order of their keys, and those
// with one key in the order of their transactions. The three slices have one
// length, and sorted may be entries.
//
// It is a least-significant-digit radix sort (Knuth, The Art of Computer
// Programming, volume 3, section 5.2.5) by the first 22 bits, without
// comparisons. Few keys have the same first bits, since keys are hashes: these
// are then sorted among themselves.
func sortEntries(sorted, entries, scratch []uint64) {
	var counts [digits][1 << digitBits]uint32
	for _, e := range entries {
		for p := range digits {
			counts[p][e>>(64-cellBits+p*digitBits)&(1<<digitBits-1)]++
		}
	}
	from, to := entries, scratch
	for p := range digits {
		count, at := &counts[p], uint32(0)
		for d := range count {
			count[d], at = at, at+count[d]
		}
		for _, e := range from {
			d := e >> (64 - cellBits + p*digitBits) & (1<<digitBits - 1)
			to[count[d]] = e
			count[d]++
		}
		from, to = scratch, sorted
		runtime.Gosched() // see yieldEvery
	}
	for i := 1; i < len(sorted); i++ {
		if sorted[i] < sorted[i-1] {
			i = sortCell(sorted, i)
		}
	}
}

// sortCell sorts the entries that have the first bits of the one at i, and
// returns where they end.
func sortCell(entries []uint64, i int) (end int) {
	same := func(e uint64) bool { return e>>(64-cellBits) == entries[i]>>(64-cellBits) }
	begin := i
	for begin > 0 && same(entries[begin-1]) {
		begin--
	}
	for end = i; end < len(entries) && same(entries[end]); {
		end++
	}
	slices.Sort(entries[begin:end])
	return end
}
