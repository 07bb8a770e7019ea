package nameindex

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"sort"
)

// Term is a condition on a transaction: it has one of the keys.
type Term []Key

// Item is a condition on a transaction: all of the terms hold. An item has at
// least one.
type Item []Term

// Range is the transactions that are searched, from From to To, both included.
// The index must have all of them.
type Range struct {
	From, To uint64
	// Descending begins with the newest one.
	Descending bool
}

// ErrNotCovered is returned by a search for transactions that the index does
// not have any more.
var ErrNotCovered = errors.New("nameindex: transactions are not in the index")

// Search iterates over the candidates in a range: all transactions to which one
// of the items applies, and perhaps others. It stops after an error, which may
// be [ErrDense], [ErrNotCovered], a [*DamageError] or one of the file system.
func (x *Index) Search(items []Item, r Range) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		for r.From <= r.To && r.From > 0 {
			at := r.From
			if r.Descending {
				at = r.To
			}
			found, first, last, err := x.searchPart(items, at)
			if err != nil {
				yield(0, err)
				return
			}
			if r.Descending {
				slices.Reverse(found)
			}
			for _, o := range found {
				txid := first + uint64(o)
				if txid >= r.From && txid <= r.To && !yield(txid, nil) {
					return
				}
			}
			if r.Descending {
				r.To = first - 1
			} else {
				r.From = last + 1
			}
		}
	}
}

// searchPart returns the candidates of the part that has a transaction, by
// their distances from its first one, and its first and last transaction.
func (x *Index) searchPart(items []Item, txid uint64) (found []uint32, first, last uint64, err error) {
	err = x.withPart(txid, func(p part, v *view, s *run) error {
		first, last = v.first, v.through
		if s != nil {
			first, last = s.first, s.last
		}
		found, err = lookupAny(p, last-first+1, items)
		return err
	})
	return found, first, last, err
}

// withPart calls use with the part that has a transaction, which is what a view
// has in memory, or else a run.
func (x *Index) withPart(txid uint64, use func(p part, v *view, s *run) error) error {
	for {
		v := x.view.Load()
		if txid >= v.first && txid <= v.through {
			return use(tail{v}, v, nil)
		}
		i := sort.Search(len(v.runs), func(i int) bool { return v.runs[i].last >= txid })
		if i == len(v.runs) || v.runs[i].first > txid {
			return fmt.Errorf("%w: %d", ErrNotCovered, txid)
		}
		s := v.runs[i]
		file, err := x.budget.files.acquire(s)
		switch {
		case errors.Is(err, fs.ErrNotExist) && x.view.Load() != v:
			continue // it was merged or trimmed meanwhile
		case errors.Is(err, fs.ErrNotExist):
			return s.damaged("file", err)
		case err != nil:
			return err
		}
		defer x.budget.files.release(file)
		return use(openedRun{run: s, file: file}, v, s)
	}
}

func lookupAny(p part, size uint64, items []Item) (all []uint32, err error) {
	for _, item := range items {
		found, err := lookup(p, size, item)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(items) > 1 {
		slices.Sort(all)
		all = slices.Compact(all)
	}
	return all, nil
}

// tail is what an index has in memory.
type tail struct{ *view }

func (t tail) find(k Key) (list, error) {
	var lists []list
	count := 0
	add := func(l list) {
		if l.count > 0 {
			lists = append(lists, l)
			count += l.count
		}
	}
	for _, r := range t.sorted {
		add(r.find(k))
	}
	add(t.fresh.find(k))
	add(findCommon(t.common, k)) // newer than the others
	return list{count, func() ([]uint32, error) {
		var all []uint32
		for _, l := range lists {
			found, err := l.load()
			if err != nil {
				return nil, err
			}
			for _, o := range found { // a transaction may be in two runs
				if len(all) == 0 || all[len(all)-1] != o {
					all = append(all, o)
				}
			}
		}
		return all, nil
	}}, nil
}
