package wal

import (
	"slices"
	"sort"
)

// epochs records in which truncation epoch each entry of a log was appended.
// Each truncation of a log's suffix begins a new epoch. An index can be written
// once in each epoch. The epoch is part of an entry's checksum, so an entry
// that was replaced never passes for its replacement, whatever Badger has lost.
//
// The slice is never changed in place: readers keep the one that they have.
type epochs []epoch

// epoch covers the entries from index From to the start of the next epoch.
type epoch struct {
	From   uint64 `json:"from"`
	Number uint64 `json:"cuts"` // truncations before it
}

// at returns the epoch of the entry at index, 0 before the first truncation.
func (e epochs) at(index uint64) uint64 {
	i := sort.Search(len(e), func(i int) bool { return e[i].From > index })
	if i == 0 {
		return 0
	}
	return e[i-1].Number
}

// appended returns e after the entry at index was appended in epoch number.
func (e epochs) appended(index, number uint64) epochs {
	last := uint64(0)
	if len(e) > 0 {
		last = e[len(e)-1].Number
	}
	if number == last {
		return e
	}
	return append(slices.Clip(e), epoch{index, number})
}

// truncated returns e without the entries from index on.
func (e epochs) truncated(from uint64) epochs {
	n := sort.Search(len(e), func(i int) bool { return e[i].From >= from })
	return e[:n:n]
}

// trimmed returns e without the entries before index first.
func (e epochs) trimmed(first uint64) epochs {
	i := sort.Search(len(e), func(i int) bool { return e[i].From > first })
	return e[max(i-1, 0):]
}
