package nameindex

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/zeebo/xxh3"
)

const (
	// freshEntries is how many entries the newest run has before it is sorted. A
	// search looks at each of them.
	freshEntries = 16 << 10
	// runTransactions is how many transactions are in memory before they
	// become a run. 32 such runs make one of the largest.
	runTransactions = 120_000
	// leastRun is how many bytes an index has in memory before it makes a
	// run because all indexes together have too many.
	leastRun = 64 << 10
)

// Budget is what a number of indexes share: memory, open files, and the turn to
// merge.
type Budget struct {
	limit   int64
	used    atomic.Int64
	indexes atomic.Int64
	merging chan struct{}
	scratch chan []uint64 // for sorting, one at a time
	files   files
}

// NewBudget returns a budget of about a number of bytes.
func NewBudget(bytes int64) *Budget {
	b := &Budget{limit: bytes, merging: make(chan struct{}, 1), scratch: make(chan []uint64, 1), files: files{open: map[*run]*openFile{}, most: openFiles}}
	b.scratch <- nil
	return b
}

// borrow returns a slice of at least n entries, once nobody else has it.
func (b *Budget) borrow(n int) []uint64 { return slices.Grow((<-b.scratch)[:0], n)[:n] }

// keptScratch is how many entries of scratch memory are kept.
const keptScratch = 2 << 20

func (b *Budget) giveBack(scratch []uint64) {
	if cap(scratch) > keptScratch {
		scratch = nil
	}
	b.scratch <- scratch
}

// Options are the options of an index.
type Options struct {
	// Label names the log. A run with another label is removed.
	Label string
	// Budget may be nil: the index has one of its own then.
	Budget *Budget
	// Room reports whether the disk has room for a number of bytes. Without it
	// nothing is written. nil means that there always is.
	Room func(bytes int64) bool

	merge int // in place of mergeCount, in tests
}

// Index is the index of one partition. See the package's documentation for
// which goroutine may call what.
type Index struct {
	dir    string
	label  uint64
	budget *Budget
	room   func(bytes int64) bool
	hasher Hasher
	view   atomic.Pointer[view]
	ids    idFilter

	// The fields below belong to the goroutine that changes the index.

	runs    []*run // each follows on the one before
	later   []*run // after a gap
	first   uint64 // of the tail: the transactions in memory
	next    uint64 // the transaction that is added next
	sorted  []sorted
	fresh   fresh
	common  common
	places  []uint64 // see placeEvery
	counted int64    // of the tail, in the budget
	stamp   uint64
	merged  chan mergeResult // not nil while runs are merged
	merge   int              // how many runs are merged
	closing bool
}

// view is the state of an index at one moment. It never changes.
type view struct {
	runs    []*run
	first   uint64 // of the tail
	through uint64
	sorted  []sorted
	fresh   fresh
	common  []commonList
	places  []uint64
	ids     *filter // of all message ids, nil while it is made
}

type mergeResult struct {
	from []*run
	to   *run
	err  error
}

// Open opens the index in a directory, which it makes if it is not there. What
// is left of interrupted work is removed, and so are runs that are not of
// this log or that are damaged: the log's transactions are then to be added
// again.
func Open(dir string, o Options) (*Index, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	x := &Index{dir: dir, label: xxh3.HashString(o.Label), budget: o.Budget, hasher: Hasher{rand.Uint64()}, first: 1, next: 1, merge: cmp.Or(o.merge, mergeCount)}
	x.ids.ready = make(chan struct{}, 1)
	if x.budget == nil {
		x.budget = NewBudget(1 << 20)
	}
	if x.room = o.Room; x.room == nil {
		x.room = func(int64) bool { return true }
	}
	found, err := x.load()
	if err != nil {
		return nil, err
	}
	x.budget.indexes.Add(1)
	if len(found) > 0 {
		x.hasher.seed = found[0].seed
	}
	x.chain(found)
	x.show()
	x.LevelFilter()
	return x, nil
}

// load reads the headers of the runs in the directory, and removes what
// can't be used.
func (x *Index) load() (found []*run, err error) {
	files, err := os.ReadDir(x.dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(x.dir, f.Name())
		if !strings.HasSuffix(f.Name(), runSuffix) {
			if strings.HasSuffix(f.Name(), temporarySuffix) {
				err = errors.Join(err, os.Remove(path))
			}
			continue
		}
		s, openErr := openRun(path)
		if openErr == nil && s.label == x.label {
			found = append(found, s)
			continue
		}
		err = errors.Join(err, os.Remove(path))
	}
	// One that a merge has made comes before those that it was made of.
	slices.SortFunc(found, func(a, b *run) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last))
	})
	return found, err
}

const (
	runSuffix       = ".run"
	temporarySuffix = ".tmp"
)

// chain sets the runs that follow each other, and those after a gap. It removes
// runs that others cover. The tail begins after those that follow each other.
func (x *Index) chain(found []*run) {
	x.runs, x.later = nil, nil
	var end uint64
	for _, s := range found {
		if len(x.runs) > 0 && s.first <= end || s.seed != x.hasher.seed {
			x.remove(s)
			continue
		}
		if len(x.later) > 0 || len(x.runs) > 0 && s.first != end+1 {
			x.later = append(x.later, s)
		} else {
			x.runs = append(x.runs, s)
		}
		end = s.last
	}
	x.first = 1
	if n := len(x.runs); n > 0 {
		x.first, x.stamp = x.runs[n-1].last+1, x.runs[n-1].stamp
	}
	x.clearTail(x.first)
}

// remove removes a run's file. One that can't be removed is found when the
// index is opened next.
func (x *Index) remove(s *run) {
	x.budget.files.forget(s) // some systems do not remove an open file
	_ = os.Remove(s.path)
	x.budget.files.forget(s) // a search may have opened it meanwhile
}

// clearTail forgets what is in memory.
func (x *Index) clearTail(first uint64) {
	x.first, x.next, x.sorted, x.fresh, x.common, x.places = first, first, nil, nil, common{}, nil
	x.count()
}

// count tells the budget how much memory the tail has.
func (x *Index) count() {
	n := int64(cap(x.fresh) + len(x.places))
	for _, r := range x.sorted {
		n += int64(len(r))
	}
	n = 8*n + x.common.size()
	x.budget.used.Add(n - x.counted)
	x.counted = n
}

// show makes the state visible to searches.
func (x *Index) show() {
	x.ids.complete()
	x.view.Store(&view{
		runs: slices.Clone(x.runs), first: x.first, through: x.next - 1, sorted: slices.Clone(x.sorted), fresh: x.fresh[:len(x.fresh):len(x.fresh)], common: slices.Clone(x.common.lists), places: x.places[:len(x.places):len(x.places)],
		ids: x.ids.current,
	})
}

// Keys returns what makes the keys of this index.
func (x *Index) Keys() Hasher { return x.hasher }

// Covers returns the first and the last transaction that the index has; last is
// less than first if it has none.
func (x *Index) Covers() (first, last uint64) {
	v := x.view.Load()
	if len(v.runs) > 0 {
		return v.runs[0].first, v.through
	}
	return v.first, v.through
}

// Size returns the bytes of the index's files.
func (x *Index) Size() (bytes uint64) {
	for _, r := range x.view.Load().runs {
		bytes += r.size
	}
	return bytes
}

// Next returns the transaction that is to be added next.
func (x *Index) Next() uint64 { return x.next }

// Reset removes everything. The next transaction is first.
func (x *Index) Reset(first uint64) {
	for _, s := range append(x.runs, x.later...) {
		x.remove(s)
	}
	x.runs, x.later = nil, nil
	x.clearTail(first)
	x.ids.reset()
	x.show()
}

// Begin has the index begin at or before a transaction, the log's first, and
// removes the runs that have only earlier ones. If the index begins later,
// the transactions from first on are to be added; what it has stays.
func (x *Index) Begin(first uint64) {
	if x.next < first {
		x.Reset(first)
		return
	}
	x.trim(first)
	if has, _ := x.Covers(); has <= first {
		return
	}
	x.runs, x.later = nil, append(x.runs, x.later...)
	x.clearTail(first)
	x.show()
}

// Stamp is the stamp of the log at a transaction.
type Stamp struct{ Txid, Stamp uint64 }

// Stamps returns the stamps of the runs.
func (x *Index) Stamps() (stamps []Stamp) {
	for _, s := range append(slices.Clone(x.runs), x.later...) {
		stamps = append(stamps, Stamp{s.last, s.stamp})
	}
	return stamps
}

// Drop removes the run that has a transaction, because it is damaged or
// of another log. The transactions from Next on are then to be added again.
func (x *Index) Drop(txid uint64) {
	all := append(slices.Clone(x.runs), x.later...)
	at := slices.IndexFunc(all, func(s *run) bool { return s.first <= txid && txid <= s.last })
	if at < 0 {
		return
	}
	gone := all[at]
	x.remove(gone)
	all = slices.Delete(all, at, at+1)
	if at > 0 {
		x.chain(all)
	} else {
		x.runs, x.later = nil, all
		x.clearTail(gone.first)
	}
	x.show()
}

// Add adds the next transaction, which is in the log's entry at an index, with
// its keys. It is found when Publish was called.
func (x *Index) Add(txid, entry uint64, keys ...Key) {
	if txid != x.next {
		panic(fmt.Sprintf("nameindex: transaction %d is added after %d", txid, x.next-1))
	}
	if txid-x.first >= maxRun {
		panic(fmt.Sprintf("nameindex: %d transactions are in memory", maxRun))
	}
	x.next++
	if txid%placeEvery == 0 {
		x.places = append(x.places, entry)
	}
	for _, k := range keys {
		if k.isMsgID() {
			x.ids.add(k)
		}
		if o := txid - x.first; !x.common.add(k, uint32(o)) {
			x.fresh = append(x.fresh, uint64(k)|o)
		}
	}
	if len(x.fresh) >= freshEntries {
		x.sortFresh()
	}
}

func (x *Index) sortFresh() {
	if len(x.fresh) == 0 {
		return
	}
	entries, n := make(sorted, len(x.fresh)), len(x.fresh)
	scratch := x.budget.borrow(n)
	sortEntries(entries, x.fresh, scratch)
	x.budget.giveBack(scratch)
	// Searches may still look at the old slice.
	x.sorted, x.fresh = append(x.sorted, entries), make(fresh, 0, freshEntries+freshEntries/16)
}
