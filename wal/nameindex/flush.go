package nameindex

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
)

const (
	// mergeCount is how many runs of one size class are merged.
	mergeCount = 32
	// mergeBytes bounds what is merged.
	mergeBytes = 1 << 30
)

// Publish makes the transactions that were added visible to searches. The stamp
// is the log's at the last one. If enough is in memory it writes a run. The
// error is that of Flush: the transactions are visible nevertheless, and the
// next Publish tries again.
func (x *Index) Publish(stamp uint64) error {
	x.stamp = stamp
	x.adopt()
	for len(x.later) > 0 && x.later[0].first < x.next {
		x.remove(x.later[0]) // it begins within what was added again
		x.later = x.later[1:]
	}
	x.count()
	x.show()
	x.LevelFilter()
	switch over := x.budget.used.Load() > x.budget.limit; {
	case x.next-x.first >= runTransactions,
		len(x.later) > 0 && x.later[0].first == x.next,
		over && x.counted >= max(leastRun, x.budget.limit/max(1, x.budget.indexes.Load())):
		return x.Flush()
	}
	return nil
}

// Full reports whether so much is in memory that no more is to be added before
// Flush has succeeded: Publish could not write it.
func (x *Index) Full() bool { return x.next-x.first >= 2*runTransactions }

// ErrNoRoom is returned if the disk has no room for what is in memory.
var ErrNoRoom = errors.New("nameindex: the disk has no room")

// Flush writes what is in memory as a run.
func (x *Index) Flush() error {
	x.adopt()
	if x.next == x.first {
		return nil
	}
	n := len(x.fresh)
	for _, r := range x.sorted {
		n += len(r)
	}
	if !x.room(8*int64(n) + x.common.size()) {
		return ErrNoRoom // nothing is sorted: every Publish tries again
	}
	x.sortFresh()
	scratch := x.budget.borrow(2 * n)
	defer x.budget.giveBack(scratch)
	all := scratch[:0]
	for _, r := range x.sorted {
		all = append(all, r...)
	}
	sortEntries(all, all, scratch[n:2*n])
	s := run{first: x.first, last: x.next - 1, seed: x.hasher.seed, label: x.label, stamp: x.stamp}
	path, temporary := x.paths(&s)
	made, err := writeTail(temporary, s, all, x.common.sorted(), x.places)
	if err == nil {
		err = place(made, path)
	}
	if err != nil {
		x.count()
		x.show()
		return fmt.Errorf("nameindex: write run: %w", err)
	}
	x.runs = append(x.runs, made)
	for len(x.later) > 0 && x.later[0].first == x.next {
		x.runs, x.later = append(x.runs, x.later[0]), x.later[1:]
		x.next = x.runs[len(x.runs)-1].last + 1
		x.ids.forget() // nobody has added those of the run
	}
	x.stamp = x.runs[len(x.runs)-1].stamp
	x.clearTail(x.next)
	x.show()
	x.startMerge()
	return nil
}

// paths returns a run's path, and the one that it has while it is written.
func (x *Index) paths(s *run) (path, temporary string) {
	path = filepath.Join(x.dir, fmt.Sprintf("%016x-%016x", s.first, s.last))
	return path + runSuffix, path + temporarySuffix
}

// place gives a run its path once it is written.
func place(s *run, path string) error {
	if err := os.Rename(s.path, path); err != nil {
		return err
	}
	s.path = path
	return nil
}

// sizeClass returns the number of a run's size class, which has runs up to
// eight times as long as the one before.
func sizeClass(s *run) int { return bits.Len64(s.count()) / 3 }

// toMerge returns runs that lie next to each other and are to be merged:
// at least as many as are merged, of one size class or smaller ones.
func toMerge(runs []*run, least int) []*run {
	for class := range 64 / 3 {
		for end := len(runs); end > 0; {
			begin, count, size := end, uint64(0), uint64(0)
			for begin > 0 && sizeClass(runs[begin-1]) <= class {
				next := runs[begin-1]
				if count += next.count(); count > maxRun {
					break
				}
				if size += next.size; size > mergeBytes {
					break
				}
				begin--
			}
			if end-begin >= least {
				return runs[begin:end]
			}
			end = min(begin, end-1)
		}
	}
	return nil
}

// startMerge begins to merge runs, unless a merge is under way, of this
// index or of another one that shares the budget.
func (x *Index) startMerge() {
	from := slices.Clone(toMerge(x.runs, x.merge))
	if x.merged != nil || len(from) == 0 || x.closing {
		return
	}
	size := uint64(0)
	for _, s := range from {
		size += s.size
	}
	if !x.room(int64(size)) {
		return
	}
	select {
	case x.budget.merging <- struct{}{}:
	default:
		return
	}
	// Not the path of Flush: if a run is dropped meanwhile, that may write the
	// same transactions again.
	path, _ := x.paths(&run{first: from[0].first, last: from[len(from)-1].last})
	temporary := path + temporarySuffix
	done := make(chan mergeResult, 1)
	x.merged = done
	go func() {
		defer func() { <-x.budget.merging }()
		to, err := merge(temporary, from)
		done <- mergeResult{from, to, err}
	}()
}

// adopt puts a merged run in the place of those that it was made of, if the
// merge has ended.
func (x *Index) adopt() {
	select {
	case r := <-x.merged:
		x.merged = nil
		x.replace(r)
		x.startMerge()
	default:
	}
}

// replace puts a merged run in place. If one that it was made of is gone,
// nothing changes; a damaged one is removed.
func (x *Index) replace(r mergeResult) {
	if r.err != nil {
		x.dropDamaged(r.err)
		return
	}
	at := slices.Index(x.runs, r.from[0])
	if at < 0 || len(x.runs) < at+len(r.from) || !slices.Equal(x.runs[at:at+len(r.from)], r.from) {
		x.remove(r.to)
		return
	}
	path, _ := x.paths(r.to)
	if place(r.to, path) != nil {
		x.remove(r.to)
		return
	}
	x.runs = slices.Replace(x.runs, at, at+len(r.from), r.to)
	x.show()
	for _, s := range r.from {
		x.remove(s)
	}
}

// trim removes the runs that have only transactions before first.
func (x *Index) trim(first uint64) {
	n := 0
	for n < len(x.runs) && x.runs[n].last < first {
		x.remove(x.runs[n])
		n++
	}
	if n == 0 {
		return
	}
	x.runs = x.runs[n:]
	x.show()
}

// Close waits for a merge, and flushes what is in memory.
func (x *Index) Close() error {
	x.closing = true
	x.ids.stop()
	if x.merged != nil {
		r := <-x.merged
		x.merged = nil
		x.replace(r)
	}
	err := x.Flush()
	for _, s := range append(slices.Clone(x.runs), x.later...) {
		x.budget.files.forget(s)
	}
	x.budget.used.Add(-x.counted)
	x.counted = 0
	x.budget.indexes.Add(-1)
	return err
}
