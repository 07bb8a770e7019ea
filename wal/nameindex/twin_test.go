package nameindex

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
)

// twin is a log and its index.
type twin struct {
	t     *testing.T
	r     *rand.Rand
	dir   string
	x     *Index
	log   []transaction // the transaction at i has the txid i+1
	first uint64
}

type transaction struct {
	kind, id string
	locks    []string
}

func (w *twin) token() string { return string(rune('a' + w.r.IntN(4))) }

func (w *twin) lock() string {
	tokens := make([]string, 1+w.r.IntN(3))
	for i := range tokens {
		tokens[i] = w.token()
	}
	if w.r.IntN(5) == 0 {
		tokens[len(tokens)-1] = ">"
	}
	return strings.Join(tokens, ".")
}

// overlap is the rule of subjects.md.
func overlap(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; ; i++ {
		switch {
		case i == len(as) || i == len(bs):
			return len(as) == len(bs)
		case as[i] == ">" || bs[i] == ">":
			return true
		case as[i] != bs[i]:
			return false
		}
	}
}

func (w *twin) keys(n uint64) (keys []Key) {
	t, h := w.log[n-1], w.x.Keys()
	keys = append(keys, h.Kind(t.kind))
	if t.id != "" {
		keys = append(keys, h.MsgID(t.id))
	}
	for _, l := range t.locks {
		keys = h.Recorded(keys, l)
	}
	return keys
}

// entryOf returns the entry of a transaction: there are two in each.
func entryOf(txid uint64) uint64 { return 5 + txid/2 }

// place compares the place of a transaction.
func (w *twin) place() {
	w.t.Helper()
	first, last := w.x.Covers()
	if last < first {
		return
	}
	txid := first + w.r.Uint64N(last-first+1)
	v := w.x.view.Load()
	from, to := v.first, v.through
	for _, s := range v.runs {
		if s.first <= txid && txid <= s.last {
			from, to = s.first, s.last
		}
	}
	before := txid / placeEvery * placeEvery
	want := entryOf(txid)
	switch {
	case before < from:
		want = 0
	case before+placeEvery > to:
		want = entryOf(before)
	}
	if got := w.x.Near(txid); got != want {
		w.t.Fatalf("the place of %d in %d to %d is %d, and not %d", txid, from, to, got, want)
	}
}

// grow appends transactions to the log.
func (w *twin) grow(count int) {
	for range count {
		t := transaction{kind: "kind." + w.token()}
		if w.r.IntN(2) == 0 {
			t.id = fmt.Sprint(w.r.IntN(1000))
		}
		for range w.r.IntN(3) {
			t.locks = append(t.locks, w.lock())
		}
		w.log = append(w.log, t)
	}
}

// follow adds what the index does not have yet.
func (w *twin) follow() {
	w.t.Helper()
	for w.x.Next() <= uint64(len(w.log)) {
		n := w.x.Next()
		w.x.Add(n, entryOf(n), w.keys(n)...)
		if n%7 == 0 || n == uint64(len(w.log)) {
			if err := w.x.Publish(n); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// question is one item, and what it means.
type question struct {
	kinds, locks []string
	id           string
}

func (w *twin) question() (q question) {
	for range w.r.IntN(3) {
		q.kinds = append(q.kinds, "kind."+w.token())
	}
	for range w.r.IntN(3) {
		if l := w.lock(); l != ">" {
			q.locks = append(q.locks, l)
		}
	}
	if len(q.kinds)+len(q.locks) == 0 || w.r.IntN(8) == 0 {
		q.id = fmt.Sprint(w.r.IntN(1000))
	}
	return q
}

func (q question) item(h Hasher) (item Item) {
	var kinds Term
	for _, k := range q.kinds {
		kinds = append(kinds, h.Kind(k))
	}
	if kinds != nil {
		item = append(item, kinds)
	}
	for _, l := range q.locks {
		item = append(item, h.Overlapping(nil, l))
	}
	if q.id != "" {
		item = append(item, Term{h.MsgID(q.id)})
	}
	return item
}

func (q question) matches(t transaction) bool {
	all := q.id == "" || q.id == t.id
	all = all && (q.kinds == nil || slices.Contains(q.kinds, t.kind))
	for _, l := range q.locks {
		all = all && slices.ContainsFunc(t.locks, func(r string) bool { return overlap(l, r) })
	}
	return all
}

// ask compares the answers to a question.
func (w *twin) ask() {
	w.t.Helper()
	first, last := w.x.Covers()
	if last < first {
		return
	}
	r := Range{From: first + w.r.Uint64N(last-first+1), Descending: w.r.IntN(2) == 0}
	r.To = r.From + w.r.Uint64N(last-r.From+1)
	asked := []question{w.question()}
	if w.r.IntN(3) == 0 {
		asked = append(asked, w.question())
	}
	matches := func(n uint64) bool {
		return slices.ContainsFunc(asked, func(q question) bool { return q.matches(w.log[n-1]) })
	}
	var items []Item
	for _, q := range asked {
		items = append(items, q.item(w.x.Keys()))
	}
	var want, got []uint64
	for n := r.From; n <= r.To; n++ {
		if matches(n) {
			want = append(want, n)
		}
	}
	if r.Descending {
		slices.Reverse(want)
	}
	for n, err := range w.x.Search(items, r) {
		if err != nil {
			w.t.Fatalf("search %v: %v", r, err)
		}
		if matches(n) {
			got = append(got, n)
		}
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("%+v in %+v: %v, and not %v", asked, r, got, want)
	}
}

// mayHave looks for all message ids that the index has.
func (w *twin) mayHave() {
	w.t.Helper()
	first, last := w.x.Covers()
	for n := first; n <= last; n++ {
		if id := w.log[n-1].id; id != "" {
			if may, from, to := w.x.MayHave(w.x.Keys().MsgID(id)); !may || from != first || to != last {
				w.t.Fatalf("the id of %d may be there: %v, from %d to %d, and not to %d", n, may, from, to, last)
			}
		}
	}
}

func (w *twin) open() {
	w.t.Helper()
	budget := NewBudget(1 << 20)
	budget.files.most = 2
	x, err := Open(w.dir, Options{Label: "a log", Budget: budget, merge: 4})
	if err != nil {
		w.t.Fatal(err)
	}
	w.x = x
	x.Begin(w.first)
}

// files returns the paths of the runs.
func (w *twin) files() []string {
	files, err := filepath.Glob(filepath.Join(w.dir, "*"+runSuffix))
	if err != nil {
		w.t.Fatal(err)
	}
	return files
}

// step changes the log or the index.
func (w *twin) step() {
	w.t.Helper()
	switch w.r.IntN(12) {
	case 0, 1, 2, 3:
		w.grow(w.r.IntN(200))
		w.follow()
	case 4, 5, 6:
		if err := w.x.Flush(); err != nil {
			w.t.Fatal(err)
		}
	case 7:
		if err := w.x.Close(); err != nil {
			w.t.Fatal(err)
		}
		w.open()
	case 8: // a crash
		if w.x.merged != nil {
			<-w.x.merged
		}
		w.open()
	case 9:
		if first, last := w.x.Covers(); first <= last {
			w.x.Drop(first + w.r.Uint64N(last-first+1))
		}
	case 10:
		if files := w.files(); len(files) > 0 {
			if err := os.Remove(files[w.r.IntN(len(files))]); err != nil {
				w.t.Fatal(err)
			}
			w.open()
		}
	case 11:
		if _, last := w.x.Covers(); w.r.IntN(4) == 0 && last > w.first {
			w.first += w.r.Uint64N(last - w.first)
			w.x.Begin(w.first)
		}
	}
}

// Whatever happens to an index, it finds what a look at each transaction finds.
func TestIndexTwin(t *testing.T) {
	t.Parallel()
	for seed := range testkit.Sized(10, 40, 3000) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := &twin{t: t, r: rand.New(rand.NewPCG(uint64(seed), 18)), dir: t.TempDir(), first: 1}
			w.open()
			for range 60 {
				w.step()
				w.mayHave()
				w.follow()
				w.mayHave()
				for range 5 {
					w.ask()
					w.place()
				}
			}
			for _, s := range w.x.runs {
				if err := s.verify(); err != nil {
					t.Error(err)
				}
			}
			if err := w.x.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// While runs are merged, the same transactions may be added and flushed again:
// the two do not write to one file.
func TestAMergeHasAFileOfItsOwn(t *testing.T) {
	t.Parallel()
	w := &twin{t: t, r: rand.New(rand.NewPCG(1, 2)), dir: t.TempDir(), first: 1}
	w.open()
	for range w.x.merge {
		w.grow(100)
		w.follow()
		if err := w.x.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	r := <-w.x.merged
	if r.err != nil || r.to.first != 1 || r.to.last != uint64(len(w.log)) {
		t.Fatalf("merged %+v, %v", r.to, r.err)
	}
	if _, flushed := w.x.paths(r.to); r.to.path == flushed {
		t.Errorf("both write to %s", flushed)
	}
	w.x.merged <- r
	w.x.Drop(1)
	w.follow()
	if err := errors.Join(w.x.Flush(), w.x.Close()); err != nil {
		t.Fatal(err)
	}
	if files := w.files(); len(files) != 1 {
		t.Errorf("the files are %q", files)
	}
	if err := w.x.runs[0].verify(); err != nil {
		t.Error(err)
	}
}

// A damaged run gives an error, or the right answer, never a wrong one. It
// is made again.
func TestDamagedRuns(t *testing.T) {
	t.Parallel()
	w := &twin{t: t, r: rand.New(rand.NewPCG(1, 2)), dir: t.TempDir(), first: 1}
	w.open()
	w.grow(1500)
	w.follow()
	if err := w.x.Flush(); err != nil {
		t.Fatal(err)
	}
	path := w.files()[0]
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := Range{From: 1, To: 1500}
	questions := []question{{kinds: []string{"kind.a"}}, {locks: []string{"a.b"}}, {locks: []string{"c.>"}}, {id: "17"}}
	answer := func(q question) (found []uint64, err error) {
		for n, err := range w.x.Search([]Item{q.item(w.x.Keys())}, whole) {
			if err != nil {
				return nil, err
			}
			if q.matches(w.log[n-1]) {
				found = append(found, n)
			}
		}
		return found, nil
	}
	noticed := 0
	for i := 0; i < len(good); i += 1 + w.r.IntN(40) {
		bad := slices.Clone(good)
		bad[i] ^= 1 << w.r.IntN(8)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := openRun(path); err == nil {
			if err := s.verify(); err == nil && i >= headerSize {
				t.Fatalf("byte %d is changed, and the run is whole", i)
			}
		}
		w.x.Near(1 + w.r.Uint64N(1500)) // a wrong place is no error
		for _, q := range questions {
			got, err := answer(q)
			var damage *DamageError
			if err != nil && !errors.As(err, &damage) {
				t.Fatal(err)
			}
			if err != nil {
				noticed++
				continue
			}
			for n := uint64(1); n <= 1500; n++ {
				if q.matches(w.log[n-1]) != slices.Contains(got, n) {
					t.Fatalf("byte %d is changed, and %+v has another answer for %d", i, q, n)
				}
			}
		}
	}
	if noticed == 0 {
		t.Error("no search met the damage")
	}
	w.x.Drop(1)
	w.follow()
	w.ask()
	w.place()
}

// What many transactions have is not looked up, and a file that is gone counts
// as damage when it is opened.
func TestSearchesThatDoNotPay(t *testing.T) {
	t.Parallel()
	x, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	x.Begin(1)
	const count = 2 * denseLeast
	common, rare := x.Keys().Kind("common"), x.Keys().Kind("rare")
	for n := uint64(1); n <= count; n++ {
		keys := []Key{common}
		if n%(2*dense) == 0 {
			keys = []Key{rare}
		}
		x.Add(n, n, keys...)
	}
	if err := x.Publish(1); err != nil {
		t.Fatal(err)
	}
	search := func(items ...Item) (found int, err error) {
		for _, err := range x.Search(items, Range{From: 1, To: count}) {
			if err != nil {
				return found, err
			}
			found++
		}
		return found, nil
	}
	for _, where := range []string{"in memory", "in a run"} {
		if _, err := search(Item{{common}}); !errors.Is(err, ErrDense) {
			t.Errorf("%s: %v", where, err)
		}
		if _, err := search(Item{{rare}}, Item{{common}}); !errors.Is(err, ErrDense) {
			t.Errorf("%s: one of two: %v", where, err)
		}
		if found, err := search(Item{{rare}}); err != nil || found != count/2/dense {
			t.Errorf("%s: %d are rare, %v", where, found, err)
		}
		if err := x.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	x.budget.files.forget(x.runs[0])
	if err := os.Remove(x.runs[0].path); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, err := search(Item{{rare}}); !errors.As(err, &damage) || damage.First != 1 {
		t.Errorf("without its file: %v", err)
	}
}
