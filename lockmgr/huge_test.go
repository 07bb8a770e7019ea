package lockmgr

import (
	"slices"
	"testing"
)

func TestMakeHuge(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 4<<20/12 + 1, 10<<20/12 + 7} { // small, about the bound, of some huge pages
		s := makeHuge[[12]byte](n)
		if len(s) != n {
			t.Fatalf("%d elements, want %d", len(s), n)
		}
		for i := range s {
			if s[i] != [12]byte{} {
				t.Fatalf("element %d of %d is not zero", i, n)
			}
			s[i][0] = byte(i)
		}
		if n > 0 && s[n-1][0] != byte(n-1) || slices.IndexFunc(s, func(e [12]byte) bool { return e[0] == 1 }) > 1 {
			t.Fatalf("%d elements don't keep what they are given", n)
		}
	}
}
