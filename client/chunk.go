package client

import (
	"sync"
	"time"
)

// chunk is a batch message and whom it is for. Once it was sent it does not
// change: later tries send the same bytes.
type chunk struct {
	data  []byte
	items []item
	seq   uint64 // order of beginning, within the lane
	tries int
	due   time.Time // not sent before
}

// item is one transaction's place in a chunk.
type item struct {
	f   *Future
	end int // of its frame; it begins where the one before ends
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func newChunk(seq uint64) *chunk {
	ch := chunks.Get().(*chunk)
	*ch = chunk{data: ch.data[:0], items: ch.items[:0], seq: seq}
	return ch
}

// free gives the chunk back. Nothing may refer to it any more.
func (ch *chunk) free() {
	clear(ch.items)
	chunks.Put(ch)
}

func (ch *chunk) add(tx *Tx, f *Future) {
	var id [128]byte
	ch.data = tx.appendFrame(ch.data, f.appendID(id[:0]))
	ch.items = append(ch.items, item{f, len(ch.data)})
}

func (ch *chunk) frame(i int) []byte {
	start := 0
	if i > 0 {
		start = ch.items[i-1].end
	}
	return ch.data[start:ch.items[i].end]
}

// pick makes a chunk of those items between from and to that keep says.
func (ch *chunk) pick(from, to int, keep func(i int) bool) *chunk {
	out := &chunk{seq: ch.seq, tries: ch.tries, due: ch.due}
	for i := from; i < to; i++ {
		if keep(i) {
			out.data = append(out.data, ch.frame(i)...)
			out.items = append(out.items, item{ch.items[i].f, len(out.data)})
		}
	}
	return out
}

// live reports whether the i-th transaction still waits for its outcome.
func (ch *chunk) live(i int) bool { return !ch.items[i].f.settled.Load() }

// compact returns a chunk without the settled, nil if none is left.
func (ch *chunk) compact() *chunk {
	n := 0
	for i := range ch.items {
		if ch.live(i) {
			n++
		}
	}
	switch n {
	case len(ch.items):
		return ch
	case 0:
		return nil
	}
	return ch.pick(0, len(ch.items), ch.live)
}

// firstDeadline is the first deadline of those that wait, zero if none does;
// lane.mu is held.
func (ch *chunk) firstDeadline() (first time.Time) {
	// Deadlines rise with the items, for all have the same time.
	for i := range ch.items {
		if ch.live(i) {
			return ch.items[i].f.deadline
		}
	}
	return first
}
