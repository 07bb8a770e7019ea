package broker

import (
	"context"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// queue holds the messages that wait for a partition's sequencer, bounded in
// bytes. One goroutine takes; any number put.
type queue struct {
	mu       sync.Mutex
	items    []*natslink.Message
	spare    []*natslink.Message // the taker's last slice, to be filled again
	bytes    int
	inflight int // bytes of the messages that were taken and have no outcome yet
	most     int
	open     bool
	// rejecting says that messages are rejected, and need not gather.
	rejecting bool
	filled    chan struct{} // capacity 1: there may be something to take
}

// messageCost is what a message takes beside its bytes, roughly.
const messageCost = 256

func newQueue(most int) *queue {
	return &queue{most: most, filled: make(chan struct{}, 1)}
}

// resize changes how many bytes may wait. What waits already stays.
func (q *queue) resize(most int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.most = most
}

// accepting opens the queue, or closes it and gives what was waiting.
func (q *queue) accepting(open bool) []*natslink.Message {
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

// maxQueueWait is how long the oldest message may have waited when another one is
// let in. Behind it a message would wait longer than most clients do, and the
// work on it would be for nothing.
const maxQueueWait = time.Second

// put never blocks.
func (q *queue) put(m *natslink.Message) putResult {
	n := len(m.Header) + len(m.Payload) + messageCost
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !q.open:
		return closed
	case q.bytes > 0 && q.bytes+n > q.most:
		return full
	case len(q.items) > 0 && m.Received.Sub(q.items[0].Received) > maxQueueWait:
		return full
	}
	q.items = append(q.items, m)
	q.bytes += n
	q.tell()
	return queued
}

// worthwhile tells whether what waits is to be taken: it is as much as is
// in flight, or a whole batch. So batches are large when there is much to do, and
// alone, a message does not wait: each costs a round of Raft, and a sync of three
// disks, whatever its size. mu is held.
func (q *queue) worthwhile() bool {
	return len(q.items) > 0 && (q.rejecting || q.bytes >= min(q.inflight, batchBytes, q.most/2))
}

// tell wakes the taker if there is something for it; mu is held.
func (q *queue) tell() {
	if !q.worthwhile() {
		return
	}
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// reject has messages taken as they come, or as many together again.
func (q *queue) reject(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rejecting = on
	q.tell()
}

// addInflight adds n to the bytes taken from the queue whose outcome is unknown; a
// negative n removes them.
func (q *queue) addInflight(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inflight += n
	q.tell()
}

// cost is what messages count as.
func cost(ms []*natslink.Message) (bytes int) {
	for _, m := range ms {
		bytes += len(m.Header) + len(m.Payload) + messageCost
	}
	return bytes
}

// wait blocks until there is something worthwhile to take. It returns false
// when ctx ends first.
func (q *queue) wait(ctx context.Context) bool {
	for {
		q.mu.Lock()
		ready := q.worthwhile()
		q.mu.Unlock()
		if ready {
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
func (q *queue) take(count, bytes int) []*natslink.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, sum := 0, 0
	for n < len(q.items) && n < count {
		size := len(q.items[n].Header) + len(q.items[n].Payload)
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
