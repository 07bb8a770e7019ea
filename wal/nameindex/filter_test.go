package nameindex

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// A filter at its capacity has all of its keys, and few others.
func TestFilter(t *testing.T) {
	t.Parallel()
	h := NewHasher(7)
	for _, capacity := range []int{leastFilter, 100_000} {
		f := newFilter(capacity)
		if c := f.capacity(); c < capacity || c > capacity+blockBits {
			t.Errorf("a filter for %d keys is for %d", capacity, c)
		}
		for i := range capacity {
			f.add(h.MsgID(fmt.Sprint("in ", i)))
		}
		wrong := 0
		for i := range capacity {
			if !f.mayHave(h.MsgID(fmt.Sprint("in ", i))) {
				t.Fatalf("key %d of %d is not in it", i, capacity)
			}
			if f.mayHave(h.MsgID(fmt.Sprint("out ", i))) {
				wrong++
			}
		}
		if wrong > 2+capacity/5000 {
			t.Errorf("%d of %d other keys look as if they were in it", wrong, capacity)
		}
	}
	if f := newFilter(1 << 40); len(f.blocks)*blockBits/8 != mostFilterSize || !f.isLargest() {
		t.Errorf("the largest has %d blocks", len(f.blocks))
	}
}

// awaitFilter waits until the filter is made.
func awaitFilter(x *Index) {
	for x.LevelFilter(); x.ids.made != nil; x.LevelFilter() {
		x.ids.making.Wait()
	}
}

// A filter grows with the index, has what was there when the index was opened,
// and forgets what was trimmed when it is made again.
func TestFilterOfAnIndex(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *Index {
		x, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	id := func(x *Index, n uint64) Key { return x.Keys().MsgID(fmt.Sprint("id ", n)) }
	add := func(x *Index, to uint64) {
		for n := x.Next(); n <= to; n++ {
			x.Add(n, n, x.Keys().Kind(fmt.Sprint("kind ", n)), id(x, n))
			if n%500 > 0 && n < to {
				continue
			}
			if err := x.Publish(n); err != nil {
				t.Fatal(err)
			}
			awaitFilter(x)
		}
	}
	check := func(when string, x *Index) {
		t.Helper()
		first, last := x.Covers()
		for n := first; n <= last; n++ {
			may, from, to := x.MayHave(id(x, n))
			if !may || from != first || to != last {
				t.Fatalf("%s: the id of %d may be there: %v, from %d to %d", when, n, may, from, to)
			}
		}
		wrong := 0
		for n := range uint64(5000) {
			if may, _, _ := x.MayHave(id(x, last+1+n)); may {
				wrong++
			}
		}
		if wrong > 5 {
			t.Errorf("%s: %d of 5000 ids that are not there may be there", when, wrong)
		}
	}
	x := open()
	x.Begin(1)
	last := testkit.Sized[uint64](10*leastFilter, 20*leastFilter, 1000*leastFilter)
	add(x, last/2)
	check("of what was added", x)
	if err := x.Flush(); err != nil {
		t.Fatal(err)
	}
	add(x, last)
	check("with a run", x)
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	x = open()
	if x.ids.current != nil {
		t.Error("an index that was opened has a filter at once")
	}
	if may, _, _ := x.MayHave(id(x, last+1)); !may {
		t.Error("without a filter an id is not there")
	}
	awaitFilter(x)
	check("after a restart", x)
	x.Drop(last)
	add(x, last)
	check("after a run was lost", x)
	size := x.ids.current.count.Load()
	x.Begin(last/2 + 1)
	x.makeFilter(x.ids.current.capacity())
	awaitFilter(x)
	check("after a trim", x)
	if n := x.ids.current.count.Load(); n > size*2/3 {
		t.Errorf("after a trim of a half the filter has %d of %d keys", n, size)
	}
	x.Reset(1)
	if may, _, _ := x.MayHave(id(x, last)); may {
		t.Error("an id is there after a reset")
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
}

// A run that is damaged is removed when the filter is made from it, and a run
// that the index takes up again after a gap is in the filter.
func TestFilterOfDamagedRuns(t *testing.T) {
	t.Parallel()
	x, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	id := func(n uint64) Key { return x.Keys().MsgID(fmt.Sprint("id ", n)) }
	add := func(to uint64) {
		for n := x.Next(); n <= to; n++ {
			x.Add(n, n, id(n))
		}
		if err := x.Publish(to); err != nil {
			t.Fatal(err)
		}
		if err := x.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	add(100)
	add(200)
	add(300)
	x.ids.forget()
	flipByte(t, x.runs[1].path, int64(x.runs[1].size)-3)
	x.LevelFilter()
	awaitFilter(x)
	if _, last := x.Covers(); last != 100 || len(x.later) != 1 {
		t.Fatalf("after the damage was met, the index reaches to %d, and %d runs are after the gap", last, len(x.later))
	}
	awaitFilter(x)
	add(200)
	awaitFilter(x)
	if _, last := x.Covers(); last != 300 {
		t.Fatalf("the index reaches to %d", last)
	}
	for n := uint64(1); n <= 300; n++ {
		if may, _, _ := x.MayHave(id(n)); !may {
			t.Fatalf("the id of %d is not there", n)
		}
	}
	if may, _, _ := x.MayHave(id(301)); may {
		t.Error("an id that is not there may be there")
	}
}

// flipByte changes a byte of a file.
func flipByte(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0xff
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// An index whose disk is full keeps what is added in memory, and does not sort
// it each time that it tries to write it.
func TestPublishWithoutRoom(t *testing.T) {
	t.Parallel()
	x, err := Open(t.TempDir(), Options{Budget: NewBudget(0), Room: func(int64) bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	full := 0
	for n := uint64(1); n < freshEntries; n++ {
		x.Add(n, n, x.Keys().MsgID(fmt.Sprint(n)))
		if err := x.Publish(n); errors.Is(err, ErrNoRoom) {
			full++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if len(x.sorted) > 0 || full == 0 {
		t.Errorf("%d parts are sorted, and %d times there was no room", len(x.sorted), full)
	}
}
