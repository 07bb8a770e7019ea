package nameindex

import (
	"errors"
	"slices"
)

// list is the transactions of one key in one part of the index. The slice
// that load returns is ascending and belongs to the caller.
type list struct {
	count int
	load  func() ([]uint32, error)
}

// part is consecutive transactions of an index: a run, or what is in memory.
type part interface {
	find(k Key) (list, error)
}

// lookup evaluates a question on one part: a candidate has, of every term, one
// of the keys. It returns the distances of the candidates from the part's first
// transaction, ascending.
//
// The error is ErrDense if so many have the rarest term that it costs less to
// look at all.
//
// The rarest term is evaluated first. One that is much more common than the
// remaining candidates is skipped: looking at these in the log costs less.
func lookup(p part, size uint64, terms []Term) ([]uint32, error) {
	type evaluated struct {
		lists []list
		count int
	}
	all := make([]evaluated, 0, len(terms))
	for _, term := range terms {
		var e evaluated
		for _, k := range term {
			l, err := p.find(k)
			if err != nil {
				return nil, err
			}
			if l.count > 0 {
				e.lists = append(e.lists, l)
				e.count += l.count
			}
		}
		if e.count == 0 {
			return nil, nil
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b evaluated) int { return a.count - b.count })
	if size > denseLeast && uint64(all[0].count)*dense > size {
		return nil, ErrDense
	}
	var left []uint32
	for i, e := range all {
		if i > 0 && (len(left) == 0 || e.count/tooCommon > len(left)) {
			break
		}
		found, err := union(e.lists)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			left = found
		} else {
			left = intersect(left, found)
		}
	}
	return left, nil
}

// ErrDense is returned by a search that meets a part of the index in which a
// large share of the transactions are candidates.
var ErrDense = errors.New("nameindex: too many candidates")

const (
	// dense is how many transactions are read from the log in the time that one
	// candidate takes.
	dense = 16
	// denseLeast is how many transactions a part has at least that counts as
	// dense.
	denseLeast = 4096
)

// tooCommon is how many entries of a list cost as much to read as one candidate
// in the log.
const tooCommon = 1000

func union(lists []list) (all []uint32, err error) {
	for _, l := range lists {
		found, err := l.load()
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(lists) > 1 {
		slices.Sort(all)
		all = slices.Compact(all)
	}
	return all, nil
}

// intersect returns what is in both, which are ascending. It overwrites a.
func intersect(a, b []uint32) []uint32 {
	both := a[:0]
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0] < b[0]:
			a = a[1:]
		case a[0] > b[0]:
			b = b[1:]
		default:
			both = append(both, a[0])
			a, b = a[1:], b[1:]
		}
	}
	return both
}

// sorted is entries in memory in the order of their keys.
type sorted []uint64

func (r sorted) find(k Key) list {
	from, _ := slices.BinarySearch(r, uint64(k))
	to, _ := slices.BinarySearch(r[from:], uint64(k)|offsetMask)
	to += from
	if to < len(r) && r[to] == uint64(k)|offsetMask {
		to++
	}
	return list{to - from, func() ([]uint32, error) { return offsets(r[from:to]), nil }}
}

// fresh is entries in memory in the order of their transactions.
type fresh []uint64

func (f fresh) find(k Key) list {
	var found []uint64
	for _, e := range f {
		if e&^offsetMask == uint64(k) {
			found = append(found, e)
		}
	}
	return list{len(found), func() ([]uint32, error) { return offsets(found), nil }}
}

// offsets returns the distances of entries of one key, each once: a transaction
// may have recorded several locks below one prefix.
func offsets(entries []uint64) []uint32 {
	return appendOffsets(make([]uint32, 0, len(entries)), entries)
}

// appendNewer appends distances that begin at or after the last one of out.
func appendNewer(out, newer []uint32) []uint32 {
	if len(out) > 0 && len(newer) > 0 && out[len(out)-1] == newer[0] {
		newer = newer[1:]
	}
	return append(out, newer...)
}

func appendOffsets(out []uint32, entries []uint64) []uint32 {
	for _, e := range entries {
		if o := uint32(e & offsetMask); len(out) == 0 || out[len(out)-1] != o {
			out = append(out, o)
		}
	}
	return out
}
