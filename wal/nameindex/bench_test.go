package nameindex

import (
	"fmt"
	"testing"
)

// BenchmarkAdd adds transactions of three names, in batches of 256.
func BenchmarkAdd(b *testing.B) {
	x, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	x.Begin(1)
	h := x.Keys()
	locks := make([]string, 1<<16)
	for i := range locks {
		locks[i] = fmt.Sprintf("account.%d", i*7919%100_000)
	}
	var keys []Key
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		n++
		keys = append(keys[:0], h.Kind("pay"))
		for i := range uint64(3) {
			keys = h.Recorded(keys, locks[(n*3+i)%uint64(len(locks))])
		}
		x.Add(n, n, keys...)
		if n%256 == 0 {
			if err := x.Publish(n); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := x.Close(); err != nil {
		b.Fatal(err)
	}
}
