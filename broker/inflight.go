package broker

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// batchesInFlight bounds the batches in flight of all partitions together.
// More of them would be smaller, and each costs a round of Raft.
const batchesInFlight = 4

// slowBatch is how long a batch counts as one of the node's in flight. One that
// takes longer waits for the partition's followers, and must not hold up other
// partitions.
const slowBatch = 50 * time.Millisecond

// inflightLimit bounds the batches in flight of all partitions of a node.
type inflightLimit struct{ slots *semaphore.Weighted }

func newInflightLimit(batches int64) *inflightLimit {
	return &inflightLimit{semaphore.NewWeighted(batches)}
}

// acquire takes a slot. It blocks until one is free or ctx ends.
func (l *inflightLimit) acquire(ctx context.Context) error { return l.slots.Acquire(ctx, 1) }

// releaser returns a function that releases a slot, the first time that it is
// called. The slot is also released after slowBatch.
func (l *inflightLimit) releaser() (release func()) {
	once := sync.OnceFunc(func() { l.slots.Release(1) })
	timer := time.AfterFunc(slowBatch, once)
	return func() {
		timer.Stop()
		once()
	}
}
