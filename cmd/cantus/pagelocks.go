package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cantuslog/cantus/cmd/internal/page"
	"github.com/cantuslog/cantus/subjects"
)

// A search for a lock uses the index of names, and is bounded for what that
// does not have: a node reads all of the log there.
const (
	searchMost   = 200_000 // transactions
	searchFirst  = 2_000   // those of the archive that are searched first; then more at a time
	searchTime   = 4 * time.Second
	searchPlaces = 20 // found transactions of a lock
	searchPage   = 512
)

// found is a transaction that recorded a lock.
type found struct {
	Txid uint64 `json:"txid,string"`
	Time string `json:"time"`
	Kind string `json:"kind"`
}

// direction is one side of a transaction along a lock. If Found is nil, none of
// First to Last recorded the lock; if Exact is true, none at all on that side.
type direction struct {
	Found *found `json:"found"`
	First uint64 `json:"first,string"`
	Last  uint64 `json:"last,string"`
	Exact bool   `json:"exact"`
	// Because is how it is known without a search. Checked is the first of the
	// transactions up to this one of which the check of the lock has proved
	// that none recorded it; 0 for none.
	Because string `json:"because,omitempty"`
	Checked uint64 `json:"checked,string,omitempty"`
}

// aroundOfPage answers [page.AroundQuery].
type aroundOfPage struct {
	Before direction `json:"before"`
	After  direction `json:"after"`
}

// Around implements [page.Viewer].
func (v *pageViewer) Around(ctx context.Context, q page.AroundQuery) (any, error) {
	if err := subjects.CheckLock(q.Lock); err != nil {
		return nil, plain(err)
	}
	newest, err := v.newest(ctx, q.Partition, q.Lock)
	if err != nil {
		return nil, v.explain(err)
	}
	var a aroundOfPage
	if a.After, err = v.after(ctx, q, newest); err != nil {
		return nil, v.explain(err)
	}
	if a.Before, err = v.before(ctx, q, newest); err != nil {
		return nil, v.explain(err)
	}
	return a, nil
}

// newest returns the newest transaction that recorded a lock, nil if the
// partition knows of none.
func (v *pageViewer) newest(ctx context.Context, partition int, lock string) (*transaction, error) {
	t, err := v.get(ctx, partition, subjects.GetRequest{Lock: lock})
	if refused, _ := errors.AsType[*subjects.Error](err); refused != nil && refused.Reason == subjects.NotFound {
		return nil, nil
	}
	return t, err
}

// after searches forward from a transaction. The newest one that recorded the
// lock is known to the partition, unless it is forgotten.
func (v *pageViewer) after(ctx context.Context, q page.AroundQuery, newest *transaction) (d direction, err error) {
	d.First = q.Txid + 1
	if newest != nil && newest.Txid <= q.Txid {
		return direction{First: d.First, Exact: true, Because: "the partition's lock table has no newer one"}, nil
	}
	read := readOfLock(q.Partition, q.Lock)
	deadline := time.Now().Add(searchTime)
	for next := d.First; d.Found == nil; {
		var mark uint64
		next, mark, err = v.read(ctx, read, next, 1, func(t *transaction) error {
			d.Found = foundOf(t)
			return nil
		})
		if refused, _ := errors.AsType[*subjects.Error](err); refused != nil && refused.Reason == subjects.Ahead {
			return direction{First: d.First, Exact: true, Because: "it is the last transaction"}, nil
		}
		if err != nil {
			return d, err
		}
		d.Last = min(next-1, mark)
		if next > mark {
			d.Exact = true
			break
		}
		if next-d.First > searchMost || time.Now().After(deadline) {
			break
		}
	}
	return d, nil
}

// before searches backward from a transaction.
func (v *pageViewer) before(ctx context.Context, q page.AroundQuery, newest *transaction) (d direction, err error) {
	below := q.Txid
	if newest != nil && newest.Txid < q.Txid {
		return direction{Found: foundOf(newest), First: newest.Txid, Last: q.Txid - 1, Exact: true}, nil
	}
	if q.Checked && q.Mark+1 < q.Txid {
		below = q.Mark + 1
		d.Checked = below
	}
	all, from, exact, err := v.backward(ctx, q.Partition, q.Lock, below, 1)
	if err != nil {
		return d, err
	}
	d.First, d.Last, d.Exact = from, below-1, exact
	if len(all) > 0 {
		d.Found, d.Exact = foundOf(all[0]), true
	}
	return d, nil
}

// readOfLock reads the transactions that recorded a lock, without payloads. As
// a query, and not as a filter, so that the index is used.
func readOfLock(p int, lock string) *readCmd {
	return &readCmd{Partition: partition(p), Query: []queryItem{{Locks: []string{lock}}}, HeadersOnly: true}
}

func foundOf(t *transaction) *found { return &found{t.Txid, stamp(t.Time), t.Kind} }

// backward searches the transactions below a txid for those that recorded a
// lock, and returns the newest first, at most a number of them. It searched
// from the txid from on; exact is true if there is nothing before that.
func (v *pageViewer) backward(ctx context.Context, p int, lock string, below uint64, most int) (all []*transaction, from uint64, exact bool, err error) {
	var info subjects.PartitionInfo
	if err := v.conn.ask(ctx, v.conn.names.PartitionInfo(p), nil, &info); err != nil {
		return nil, 0, false, err
	}
	deadline := time.Now().Add(searchTime)
	further := func() bool { return len(all) < most && below-from < searchMost && time.Now().Before(deadline) }
	from = max(below, info.FirstTxid)
	read := readOfLock(p, lock)
	read.NewestFirst = true
	for from > info.FirstTxid && further() {
		next, _, err := v.read(ctx, read, from-1, most-len(all), func(t *transaction) error {
			all = append(all, t)
			return nil
		})
		if err != nil {
			return nil, 0, false, err
		}
		from = max(next+1, info.FirstTxid)
	}
	first := info.FirstTxid
	if info.ArchivedFrom > 0 {
		first = min(first, info.ArchivedFrom)
	}
	from = min(from, max(below, first))
	for size := uint64(searchFirst); from > first && from <= info.FirstTxid && further(); size *= 2 {
		start := first
		if from > first+size {
			start = from - size
		}
		some, err := v.window(ctx, p, lock, start, from)
		if err != nil {
			return nil, 0, false, err
		}
		for i := len(some) - 1; i >= 0 && len(all) < most; i-- {
			all = append(all, some[i])
		}
		from = start
	}
	if len(all) == most && most > 0 {
		from = all[most-1].Txid
	}
	return all, from, from <= first && first == 1, nil
}

// window returns the transactions of the archive from start to end, without it,
// that recorded a lock: what goes backwards does not go into the archive.
func (v *pageViewer) window(ctx context.Context, p int, lock string, start, end uint64) (all []*transaction, err error) {
	read := &readCmd{Partition: partition(p), Lock: lockName(lock), HeadersOnly: true}
	for next := start; next < end; {
		at := next
		next, _, err = v.read(ctx, read, at, searchPage, func(t *transaction) error {
			if t.Txid >= end {
				return nil
			}
			all = append(all, t)
			return nil
		})
		if err != nil {
			return nil, err
		}
		if next <= at {
			break // nothing further can be read
		}
	}
	return all, nil
}

// lockOfPage is what is known of a lock: the newest transactions that recorded
// it, or one that it overlaps.
type lockOfPage struct {
	Partition int                `json:"partition"`
	Lock      string             `json:"lock"`
	Newest    string             `json:"newest,omitempty"` // its txid
	Recorded  []*pageTransaction `json:"recorded"`
	// First and Last are what was searched. Exact is true if there is nothing
	// before.
	First uint64 `json:"first,string"`
	Last  uint64 `json:"last,string"`
	Exact bool   `json:"exact"`
	// Floor is not 0 if the partition has forgotten locks: of those it knows
	// only what a search finds.
	Floor uint64 `json:"floor,string"`
}

// Lock implements [page.Viewer].
func (v *pageViewer) Lock(ctx context.Context, partition int, lock string, below uint64) (any, error) {
	if err := subjects.CheckLock(lock); err != nil {
		return nil, plain(err)
	}
	newest, err := v.newest(ctx, partition, lock)
	if err != nil {
		return nil, v.explain(err)
	}
	var info subjects.PartitionInfo
	if err := v.conn.ask(ctx, v.conn.names.PartitionInfo(partition), nil, &info); err != nil {
		return nil, v.explain(err)
	}
	l := lockOfPage{Partition: partition, Lock: lock, Recorded: []*pageTransaction{}, Floor: info.Locks.Floor}
	if below == 0 || below > info.HighWaterMark {
		below = info.HighWaterMark + 1
	}
	l.Last = below - 1
	if newest != nil {
		l.Newest = fmt.Sprint(newest.Txid)
		below = min(below, newest.Txid+1) // nothing above it has recorded the lock
	} else if l.Floor == 0 {
		l.First, l.Exact = 1, true
		return l, nil
	}
	all, from, exact, err := v.backward(ctx, partition, lock, below, searchPlaces)
	if err != nil {
		return nil, v.explain(err)
	}
	for _, t := range all {
		l.Recorded = append(l.Recorded, rowOfPage(t))
	}
	l.First, l.Exact = from, exact
	return l, nil
}
