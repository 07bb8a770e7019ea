package nameindex

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// Searches meet runs that are written, merged and removed meanwhile. Each finds
// all that the index had when it began, or says that a part is missing.
func TestSearchesBesideChanges(t *testing.T) {
	t.Parallel()
	budget := NewBudget(1 << 20)
	budget.files.most = 3
	x, err := Open(t.TempDir(), Options{Budget: budget, merge: 4})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	rare := x.Keys().Kind("rare")
	r := rand.New(rand.NewPCG(3, 4))
	stop := make(chan struct{})
	var searching sync.WaitGroup
	for range 3 {
		searching.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, last := x.Covers()
				want := (first+30)/32*32 + 1 // the first one of them from first on
				for n, err := range x.Search([]Item{{{rare}}}, Range{From: first, To: last}) {
					if errors.Is(err, ErrNotCovered) {
						want = last + 1
						break
					}
					if err != nil || n != want {
						t.Errorf("found %d, and not %d: %v", n, want, err)
						return
					}
					want += 32
				}
				for n := first; n <= last; n += 7 {
					if may, _, to := x.MayHave(x.Keys().MsgID(fmt.Sprint(n))); !may && to >= n {
						t.Errorf("the id of %d is not there", n)
						return
					}
				}
				if want <= last {
					t.Errorf("the search ends before %d of %d", want, last)
				}
			}
		})
	}
	for x.Next() < testkit.Sized[uint64](5_000, 20_000, 1_000_000) {
		n := x.Next()
		keys := []Key{x.Keys().MsgID(fmt.Sprint(n))}
		if n%32 == 1 {
			keys = append(keys, rare)
		}
		x.Add(n, n, keys...)
		if r.IntN(100) > 0 {
			continue
		}
		if err := x.Publish(n); err != nil {
			t.Fatal(err)
		}
		if r.IntN(3) == 0 {
			if err := x.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if first, last := x.Covers(); r.IntN(200) == 0 && first <= last {
			x.Drop(first + r.Uint64N(last-first+1))
		}
	}
	close(stop)
	searching.Wait()
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(x.budget.files.open); n > 0 {
		t.Errorf("%d files are open", n)
	}
}
