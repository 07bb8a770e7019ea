package client

import (
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// batch is a message of several transactions, and their futures. Once it has
// been sent it does not change: later attempts send the same bytes.
type batch struct {
	data      []byte
	items     []item      // of an atomic batch one, for the whole
	atomic    nats.Header // of an atomic batch, nil otherwise
	session   *Session    // of all of them, nil if they are in none
	seq       uint64      // number in the order of creation, within the sender
	attempts  int
	notBefore time.Time // earliest time to send it
}

// item is one transaction of a batch.
type item struct {
	future *Future
	end    int // end of its frame in data; it starts where the previous one ends
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

func newBatch(seq uint64) *batch {
	b := batchPool.Get().(*batch)
	*b = batch{data: b.data[:0], items: b.items[:0], seq: seq}
	return b
}

// free returns the batch to the pool. Nothing may refer to it any more.
func (b *batch) free() {
	clear(b.items)
	batchPool.Put(b)
}

func (b *batch) add(req *Request, f *Future) {
	b.data = req.appendFrame(b.data, f, f.header)
	b.items = append(b.items, item{f, len(b.data)})
}

func (b *batch) frame(i int) []byte {
	start := 0
	if i > 0 {
		start = b.items[i-1].end
	}
	return b.data[start:b.items[i].end]
}

// subset returns a new batch of those items in [from, to) for which include
// returns true.
func (b *batch) subset(from, to int, include func(i int) bool) *batch {
	out := &batch{session: b.session, seq: b.seq, attempts: b.attempts, notBefore: b.notBefore}
	for i := from; i < to; i++ {
		if include(i) {
			out.data = append(out.data, b.frame(i)...)
			out.items = append(out.items, item{b.items[i].future, len(out.data)})
		}
	}
	return out
}

// isPending reports whether the i-th transaction has no outcome yet.
func (b *batch) isPending(i int) bool { return !b.items[i].future.completed.Load() }

// isDone reports whether all transactions have their outcomes.
func (b *batch) isDone() bool {
	return !slices.ContainsFunc(b.items, func(i item) bool { return !i.future.completed.Load() })
}

// compact returns a batch without the completed transactions, nil if none is
// left.
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

// firstDeadline returns the earliest deadline of the pending transactions, zero
// if there are none. The caller holds sender.mu.
func (b *batch) firstDeadline() (first time.Time) {
	// Deadlines increase with the index: all transactions have the same
	// timeout.
	for i := range b.items {
		if b.isPending(i) {
			return b.items[i].future.deadline
		}
	}
	return first
}
