package nameindex

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// Entries are sorted by whole keys, whatever they have in common.
func TestSortEntries(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 8))
	for _, free := range []int{64, 50, 43, 42, 41, 30, 22, 3, 0} { // bits that differ
		for _, count := range []int{0, 1, 2, 3, 100, 3000} {
			entries := make([]uint64, count)
			for i := range entries {
				entries[i] = 0xabcdef_0123456789 ^ r.Uint64()&(1<<free-1)
			}
			want := slices.Sorted(slices.Values(entries))
			sorted := make([]uint64, count)
			sortEntries(sorted, slices.Clone(entries), make([]uint64, count))
			sortEntries(entries, entries, make([]uint64, count))
			if !slices.Equal(sorted, want) || !slices.Equal(entries, want) {
				t.Errorf("%d entries that differ in %d bits are not in order", count, free)
			}
		}
	}
}
