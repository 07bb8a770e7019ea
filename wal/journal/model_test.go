package journal_test

import (
	"testing"

	"pgregory.net/rapid"
)

// TestRandomOperations does random operations in random order, and compares the
// journal with a list of commits after each opening.
func TestRandomOperations(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rapid.Uint64().Draw(rt, "seed"))
		w.largest <<= 2 * rapid.IntRange(0, 1).Draw(rt, "growth")
		if err := w.open(); err != nil {
			rt.Fatal(err)
		}
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"commit": func(rt *rapid.T) { must(w.commit(rapid.IntRange(1, 9).Draw(rt, "n"))) },
			"release": func(rt *rapid.T) {
				must(w.release(rapid.Uint64Range(0, w.j.Seq()).Draw(rt, "seq")))
			},
			"close": func(*rapid.T) {
				must(w.j.Close())
				must(w.open())
			},
			"kill": func(*rapid.T) { w.mustWork(w.fs.Kill()) },
			"cut":  func(*rapid.T) { w.mustWork(w.fs.PowerCut()) },
		})
		must(w.j.Close())
		w.mu.Lock()
		defer w.mu.Unlock()
		for i := 1; i < len(w.synced); i++ {
			if w.synced[i] <= w.synced[i-1] {
				rt.Fatalf("Synced was called with %v", w.synced)
			}
		}
	})
}
