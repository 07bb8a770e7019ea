package wal

import (
	"slices"
	"sort"
)

// history tells, for each index, after how many truncations of its log the
// entry was appended. An index may be written anew once for each truncation;
// the number is part of an entry's checksum, so that one which was replaced is
// never taken for the one that replaced it, whatever Badger has lost.
//
// It is not changed in place: readers go on with the one that they have.
type history []span

// span is the entries from index From to where the next span begins.
type span struct {
	From uint64 `json:"from"`
	Cuts uint64 `json:"cuts"`
}

// cuts returns the number for index, 0 before the first span.
func (h history) cuts(index uint64) uint64 {
	i := sort.Search(len(h), func(i int) bool { return h[i].From > index })
	if i == 0 {
		return 0
	}
	return h[i-1].Cuts
}

// appended returns h after the entry at index was appended.
func (h history) appended(index, cuts uint64) history {
	last := uint64(0)
	if len(h) > 0 {
		last = h[len(h)-1].Cuts
	}
	if cuts == last {
		return h
	}
	return append(slices.Clip(h), span{index, cuts})
}

// truncated returns h without the entries from index on.
func (h history) truncated(from uint64) history {
	n := sort.Search(len(h), func(i int) bool { return h[i].From >= from })
	return h[:n:n]
}

// trimmed returns h without the entries before index first.
func (h history) trimmed(first uint64) history {
	i := sort.Search(len(h), func(i int) bool { return h[i].From > first })
	return h[max(i-1, 0):]
}
