package broker

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/wal/nameindex"
)

// limits bound what a node does at a time. Reload changes reserve and
// queueBytes.
type limits struct {
	reserve, queueBytes atomic.Int64
	inflight            *inflightLimit      // batches of all partitions
	reading             *semaphore.Weighted // reads being served
	readsNow            atomic.Int64        // number of reads being served
	scans               *semaphore.Weighted // reads that go through a log
	archiving           *semaphore.Weighted // reads that are answered from the archive
	indexes             *nameindex.Budget
}

func newLimits(o Options) *limits {
	l := &limits{
		inflight: newInflightLimit(batchesInFlight), reading: semaphore.NewWeighted(readsAtOnce), scans: semaphore.NewWeighted(scansAtOnce()),
		archiving: semaphore.NewWeighted(archiveReads), indexes: nameindex.NewBudget(indexBudget),
	}
	l.reserve.Store(o.MinFreeBytes)
	l.queueBytes.Store(int64(o.QueueBytes))
	return l
}

// startRead runs serve on a goroutine that Close waits for, unless the node is
// closing or serves too many reads.
func (l *limits) startRead(life *lifecycle, serve func()) error {
	if !l.reading.TryAcquire(1) {
		return errTooManyReads
	}
	l.readsNow.Add(1)
	begun := life.begin(func() {
		defer l.reading.Release(1)
		defer l.readsNow.Add(-1)
		serve()
	})
	if !begun {
		l.readsNow.Add(-1)
		l.reading.Release(1)
		return context.Canceled
	}
	return nil
}
