package client

import (
	"sync"
	"time"
)

// chunk is a batch message and whom it is for. Once it was sent it does not
// change: later tries send the same bytes.
type batch struct {
	data      []byte
	items     []item
	seq       uint64 // order of beginning, within the lane
	attempts  int
	notBefore time.Time // not sent before
}

// item is one transaction's place in a chunk.
type item struct {
	future *Future
	end    int // of its frame; it begins where the one before ends
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

func newBatch(seq uint64) *batch {
	b := batchPool.Get().(*batch)
	*b = batch{data: b.data[:0], items: b.items[:0], seq: seq}
	return b
}

// free gives the chunk back. Nothing may refer to it any more.
func (b *batch) free() {
	clear(b.items)
	batchPool.Put(b)
}

func (b *batch) add(tx *Tx, f *Future) {
	var id [128]byte
	b.data = tx.appendFrame(b.data, f.appendID(id[:0]))
	b.items = append(b.items, item{f, len(b.data)})
}

func (b *batch) frame(i int) []byte {
	start := 0
	if i > 0 {
		start = b.items[i-1].end
	}
	return b.data[start:b.items[i].end]
}

// pick makes a chunk of those items between from and to that keep says.
func (b *batch) subset(from, to int, keep func(i int) bool) *batch {
	out := &batch{seq: b.seq, attempts: b.attempts, notBefore: b.notBefore}
	for i := from; i < to; i++ {
		if keep(i) {
			out.data = append(out.data, b.frame(i)...)
			out.items = append(out.items, item{b.items[i].future, len(out.data)})
		}
	}
	return out
}

// live reports whether the i-th transaction still waits for its outcome.
func (b *batch) isPending(i int) bool { return !b.items[i].future.completed.Load() }

// compact returns a chunk without the settled, nil if none is left.
func (b *batch) compact() *batch {
	n := 0
	for i := range b.items {
		if b.isPending(i) {
			n++
		}
	}
	switch n {
	case len(b.items):
		return b
	case 0:
		return nil
	}
	return b.subset(0, len(b.items), b.isPending)
}

// firstDeadline is the first deadline of those that wait, zero if none does;
// lane.mu is held.
func (b *batch) firstDeadline() (first time.Time) {
	// Deadlines rise with the items, for all have the same time.
	for i := range b.items {
		if b.isPending(i) {
			return b.items[i].future.deadline
		}
	}
	return first
}
