package nameindex

import "testing"

// The files of runs stay open between searches, up to a number, until the runs
// or the index go.
func TestFilesStayOpen(t *testing.T) {
	t.Parallel()
	x, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	const runs = 5
	key := x.Keys().Kind("a")
	for n := uint64(1); n <= runs; n++ {
		x.Add(n, n, key)
		if err := x.Publish(n); err != nil {
			t.Fatal(err)
		}
		if err := x.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	open := &x.budget.files
	search := func(from, want int) {
		t.Helper()
		for n, err := range x.Search([]Item{{{key}}}, Range{From: uint64(from), To: runs}) {
			if err != nil || n != uint64(from) {
				t.Fatalf("found %d, %v, and not %d", n, err, from)
			}
			from++
		}
		if from != runs+1 || len(open.open) != want {
			t.Errorf("%d files are open, and not %d", len(open.open), want)
		}
	}
	search(1, runs)
	kept := open.open[x.runs[1]]
	search(1, runs)
	if open.open[x.runs[1]] != kept {
		t.Error("a file was opened again")
	}
	x.Begin(3)
	search(3, runs-2)
	for s := range open.open {
		open.forget(s)
	}
	open.most = 2
	search(3, 2)
	if err := x.Close(); err != nil || len(open.open) > 0 {
		t.Errorf("%d files are open after Close, %v", len(open.open), err)
	}
}
