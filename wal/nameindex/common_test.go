package nameindex

import "testing"

// A transaction that has a common key several times is found once, also the one
// with which the key becomes common.
func TestCommonKeysOfOneTransaction(t *testing.T) {
	t.Parallel()
	x, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	const count = 300
	key := x.Keys().Kind("a")
	for n := uint64(1); n <= count; n++ {
		x.Add(n, n, key, key, key)
		if err := x.Publish(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, where := range []string{"in memory", "in a run"} {
		want := uint64(1)
		for n, err := range x.Search([]Item{{{key}}}, Range{From: 1, To: count}) {
			if err != nil || n != want {
				t.Fatalf("%s: found %d, %v, and not %d", where, n, err, want)
			}
			want++
		}
		if want != count+1 {
			t.Errorf("%s: the search ends before %d", where, want)
		}
		if err := x.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := x.runs[0].entries; n != count {
		t.Errorf("the run has %d entries, and not %d", n, count)
	}
}
