package broker

import (
	"context"
	"errors"
	"math"
	"sort"

	"golang.org/x/sync/semaphore"

	"github.com/cantuslog/cantus/wal"
)

// timeSearch finds transactions of a partition's replica by their time.
type timeSearch struct {
	store   *wal.Log
	between func(at int64) timeRange
	scans   *semaphore.Weighted // shared with the reads that search a log
	// archived finds what was trimmed: see archived.find.
	archived func(ctx context.Context, at int64, from uint64, base wal.Base) (txid uint64, err error)
}

// timeRange is where the first transaction at or after some time is: its txid
// is from low to high.
type timeRange struct {
	low, high uint64
	index     uint64   // no later entry may be searched
	base      wal.Base // the chain before the oldest transaction kept
	// trimmed says that a transaction at or after that time was trimmed, or, if
	// the replica does not know when the last one that was trimmed was
	// certified, that it may have been.
	trimmed bool
}

// find returns the txid of the first transaction from txid from on that is at
// or after a time, in Unix nanoseconds; if there is none in the log, the txid
// of the next one. What was trimmed is searched in the archive. Without one,
// the error is [wal.ErrTrimmed] if that transaction may have been trimmed.
func (s *timeSearch) find(ctx context.Context, at int64, from uint64) (txid uint64, err error) {
	for {
		r := s.between(at)
		first := r.base.Txid + 1
		if from > r.high {
			return from, nil // it need not be in the log
		}
		if r.trimmed && from < first {
			txid, err := s.archived(ctx, at, from, r.base)
			switch {
			case err != nil && s.between(at).base != r.base:
				continue // the archive was asked for a log that was trimmed meanwhile
			case err != nil || txid > 0:
				return txid, err
			}
			from = first
		}
		txid, err := s.inLog(ctx, at, from, r)
		if errors.Is(err, wal.ErrTrimmed) && s.between(at).base != r.base {
			continue // it was trimmed meanwhile
		}
		return txid, err
	}
}

// inLog is find in what is kept.
func (s *timeSearch) inLog(ctx context.Context, at int64, from uint64, r timeRange) (uint64, error) {
	if err := acquireScan(ctx, s.scans); err != nil {
		return 0, err
	}
	defer s.scans.Release(1)
	return s.store.FindTime(at, max(from, r.low), r.high-1, r.index)
}

// timesBetween returns what is known without reading the log about where the
// first transaction at or after a time is: its txid is between those of two
// trim points.
func (s *partitionState) timesBetween(at int64) timeRange {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := timeRange{low: s.first, high: s.mark.Load() + 1, index: s.index, base: s.base}
	found.trimmed = s.first > 1 && at <= s.baseTime
	if at > s.lastTime {
		found.low, found.trimmed = found.high, false
		return found
	}
	n := sort.Search(len(s.trimPoints), func(i int) bool { return s.trimPoints[i].time >= at })
	if n > 0 {
		found.low, found.trimmed = s.trimPoints[n-1].Txid+1, false
	}
	if n < len(s.trimPoints) {
		found.high = s.trimPoints[n].Txid
	}
	return found
}

// unknownTime is the time of the last transaction that was trimmed if only an
// older version knew it: no transaction is known to be later.
const unknownTime = math.MaxInt64
