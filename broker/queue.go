package broker

import (
	"context"
	"sync"
)

// queue holds the messages that wait for a partition's sequencer, bounded in
// bytes. One goroutine takes; any number put.
type queue struct {
	mu     sync.Mutex
	items  []*message
	spare  []*message // the taker's last slice, to be filled again
	bytes  int
	most   int
	open   bool
	filled chan struct{} // capacity 1: there may be something to take
}

// messageCost is what a message takes beside its bytes, roughly.
const messageCost = 256

func newQueue(most int) *queue {
	return &queue{most: most, filled: make(chan struct{}, 1)}
}

// accepting opens the queue, or closes it and gives what was waiting.
func (q *queue) accepting(open bool) []*message {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.open = open
	if open {
		return nil
	}
	rest := q.items
	q.items, q.bytes = nil, 0
	return rest
}

// putResult says what became of a message that was put.
type putResult uint8

const (
	queued putResult = iota
	full
	closed
)

// put never blocks.
func (q *queue) put(m *message) putResult {
	n := len(m.header) + len(m.payload) + messageCost
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !q.open:
		return closed
	case q.bytes > 0 && q.bytes+n > q.most:
		return full
	}
	q.items = append(q.items, m)
	q.bytes += n
	if len(q.items) == 1 {
		select {
		case q.filled <- struct{}{}:
		default:
		}
	}
	return queued
}

// wait blocks until there is something to take. It returns false when ctx
// ends first.
func (q *queue) wait(ctx context.Context) bool {
	for {
		q.mu.Lock()
		n := len(q.items)
		q.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-q.filled:
		}
	}
}

// take gives messages from the front, in order: at most count, and at most
// bytes of them unless the first alone has more. The slice is good until the
// next take.
func (q *queue) take(count, bytes int) []*message {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, sum := 0, 0
	for n < len(q.items) && n < count {
		size := len(q.items[n].header) + len(q.items[n].payload)
		if n > 0 && sum+size > bytes {
			break
		}
		sum += size
		n++
	}
	clear(q.spare) // what was taken last may go
	taken := q.items[:n:n]
	q.items = append(q.spare[:0], q.items[n:]...)
	q.spare = taken
	q.bytes -= sum + n*messageCost
	return taken
}

// length is the number of messages that wait.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}
