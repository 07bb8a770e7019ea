package broker

import (
	"context"
	"sync"
	"time"

	"github.com/cantuslog/cantus/broker/internal/natslink"
)

// queue holds the messages that wait for a partition's sequencer, or for its
// cursor writer, bounded in bytes. One goroutine takes; any number put.
type queue struct {
	mu       sync.Mutex
	items    []*natslink.Message
	spare    []*natslink.Message // what was taken last, to be reused
	bytes    int
	inflight int // bytes of the messages that were taken and have no outcome yet
	most     int
	isOpen   bool
	// rejecting says that messages are rejected, and need not gather.
	rejecting bool
	// late says the same for the time in which a batch in flight has no
	// outcome although it was answered.
	late   bool
	filled chan struct{} // capacity 1: there may be something to take
}

// messageCost is about what a message takes beside its bytes.
const messageCost = 256

func newQueue(most int) *queue {
	return &queue{most: most, filled: make(chan struct{}, 1)}
}

// resize changes how many bytes may wait. Messages that wait already stay.
func (q *queue) resize(most int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.most = most
}

// open lets the queue accept messages.
func (q *queue) open() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.isOpen = true
}

// close ends that, and returns the messages that were waiting.
func (q *queue) close() []*natslink.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.isOpen = false
	rest := q.items
	q.items, q.bytes = nil, 0
	return rest
}

// putResult is the outcome of put.
type putResult uint8

const (
	putQueued putResult = iota
	putFull
	putClosed
)

// maxQueueWait is how long the oldest message may have waited when another one
// is accepted. A message behind it would be answered after most clients have
// given up.
const maxQueueWait = time.Second

// put never blocks.
func (q *queue) put(m *natslink.Message) putResult {
	n := len(m.Header) + len(m.Payload) + messageCost
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case !q.isOpen:
		return putClosed
	case q.bytes > 0 && q.bytes+n > q.most:
		return putFull
	case len(q.items) > 0 && waitsSince(m).Sub(waitsSince(q.items[0])) > maxQueueWait:
		return putFull
	}
	q.items = append(q.items, m)
	q.bytes += n
	q.wake()
	return putQueued
}

// waitsSince returns since when a message has waited in its queue. One that the
// log was searched for is older than what arrives behind it, which would be
// refused otherwise.
func waitsSince(m *natslink.Message) time.Time {
	if m.Requeued.IsZero() {
		return m.Received
	}
	return m.Requeued
}

// putOrReject puts a message in the queue, or has it rejected. It does not
// block.
func (q *queue) putOrReject(m *natslink.Message, r *refusals) {
	switch q.put(m) {
	case putFull:
		r.rejectBusy(m)
	case putClosed:
		r.rejectUnavailable([]*natslink.Message{m})
	}
}

// shouldFlush reports whether the waiting messages should be taken. Under load
// they gather until they have as many bytes as are in flight, or a whole batch,
// or half of what may wait, because each batch costs a round of Raft and a sync
// of every replica's disk, whatever its size. With nothing in flight a message
// is taken at once. mu is held.
func (q *queue) shouldFlush() bool {
	return len(q.items) > 0 && (q.rejecting || q.late || q.bytes >= min(q.inflight, batchBytes, q.most/2))
}

// wake wakes the taker if it should take messages; mu is held.
func (q *queue) wake() {
	if !q.shouldFlush() {
		return
	}
	select {
	case q.filled <- struct{}{}:
	default:
	}
}

// reject sets whether messages are taken as they arrive, without gathering.
func (q *queue) reject(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.rejecting = on
	q.wake()
}

// setLate sets whether a batch in flight was answered without an outcome.
func (q *queue) setLate(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.late = on
	q.wake()
}

// addInflight adds n to the bytes taken from the queue whose outcome is
// unknown; a negative n removes them.
func (q *queue) addInflight(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inflight += n
	q.wake()
}

// cost returns how many bytes messages count as.
func cost(ms []*natslink.Message) (bytes int) {
	for _, m := range ms {
		bytes += len(m.Header) + len(m.Payload) + messageCost
	}
	return bytes
}

// wait blocks until messages should be taken, or until ctx ends, when it
// returns false.
func (q *queue) wait(ctx context.Context) bool {
	for {
		q.mu.Lock()
		ready := q.shouldFlush()
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

// take removes messages from the front, in order: at most count, and at most
// batchBytes of them unless the first alone has more. The slice is valid until
// the next take.
func (q *queue) take(count int) []*natslink.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, sum := 0, 0
	for n < len(q.items) && n < count {
		size := len(q.items[n].Header) + len(q.items[n].Payload)
		if n > 0 && sum+size > batchBytes {
			break
		}
		sum += size
		n++
	}
	clear(q.spare) // the messages taken last
	taken := q.items[:n:n]
	q.items = append(q.spare[:0], q.items[n:]...)
	q.spare = taken
	q.bytes -= sum + n*messageCost
	return taken
}

// waiting returns how many messages wait, and how many bytes they count as.
func (q *queue) waiting() (messages, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items), q.bytes
}
