package broker

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/cantuslog/cantus/broker/internal/loglimit"
	"github.com/cantuslog/cantus/wal"
	"github.com/cantuslog/cantus/wal/nameindex"
)

// indexRetry is how long an indexer waits after an error, such as a full disk.
const indexRetry = time.Second

// indexPause is how long an indexer waits before it adds what has been applied:
// to add much at a time costs less. Searches look through the log for what it
// has not added yet.
const indexPause = 20 * time.Millisecond

// indexBudget is about how much memory the indexes of a node have.
const indexBudget = 64 << 20

// indexOptions are where a node keeps its indexes.
type indexOptions struct {
	dir    string // "" if it keeps none
	budget *nameindex.Budget
	room   func(bytes int64) bool // the disk has room for so much
}

// of returns the directory of a partition's index.
func (o indexOptions) of(partition int) string { return filepath.Join(o.dir, strconv.Itoa(partition)) }

// remove removes a partition's index with the replica's log.
func (o indexOptions) remove(partition int) error {
	if o.dir == "" {
		return nil
	}
	return os.RemoveAll(o.of(partition))
}

// indexer keeps the name index of a replica level with its log. What goes wrong
// with it never stops the replica: reads look through the log where the index
// has nothing.
type indexer struct {
	partition int
	label     string // of the log
	log       *slog.Logger
	store     *wal.Log
	position  func() position
	current   func() bool // the replica follows its leader, or leads, and has applied an entry of its term
	options   indexOptions

	index atomic.Pointer[nameindex.Index] // nil until it is open
	drops chan uint64                     // a transaction whose run is damaged

	logged loglimit.Repeats
	keys   []nameindex.Key // scratch
}

// run indexes until ctx ends.
func (x *indexer) run(ctx context.Context) {
	if x.options.dir == "" {
		return
	}
	defer x.close()
	for ctx.Err() == nil {
		err := x.follow(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if ok, withheld := x.logged.Allow(err.Error(), time.Now()); ok {
			x.log.Warn("the index is not kept up: reads by name look through the log, and transactions with message ids are refused once it is too far behind", "err", err, "not_logged_before", withheld)
		}
		select {
		case <-ctx.Done():
		case <-time.After(indexRetry):
		}
	}
}

func (x *indexer) close() {
	index := x.index.Swap(nil)
	if index == nil {
		return
	}
	if err := index.Close(); err != nil {
		x.log.Warn("the index was not closed: some of it is made again", "err", err)
	}
}

// follow adds transactions to the index as they are applied.
func (x *indexer) follow(ctx context.Context) error {
	index, err := x.open(ctx)
	if index == nil {
		return err
	}
	for {
		at := x.position()
		x.fit(index, at)
		if index.Next() <= at.mark {
			if err := x.add(ctx, index, at); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case txid := <-x.drops:
			index.Drop(txid)
		case <-index.FilterReady():
			index.LevelFilter()
		case <-at.changed:
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(indexPause):
			}
		}
	}
}

// open opens the index, and removes from it what is not of this log. It returns
// nil when ctx ends.
func (x *indexer) open(ctx context.Context) (*nameindex.Index, error) {
	if index := x.index.Load(); index != nil {
		return index, nil
	}
	index, err := nameindex.Open(x.options.of(x.partition), nameindex.Options{Label: x.label, Budget: x.options.budget, Room: x.options.room})
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	stamps := index.Stamps()
	at, ok := x.awaitApplied(ctx, stamps)
	if !ok {
		return nil, index.Close()
	}
	for _, s := range stamps {
		if s.Txid >= at.first && !x.stamped(s, at) {
			index.Drop(s.Txid)
		}
	}
	x.fit(index, at)
	x.index.Store(index)
	return index, nil
}

// awaitApplied waits until the replica has applied what the index has: one that
// has started applies its log again from its snapshot on. If it has applied all
// that is committed, and that is less, the rest of the index is of another log.
// It returns false when ctx ends.
func (x *indexer) awaitApplied(ctx context.Context, stamps []nameindex.Stamp) (at position, ok bool) {
	var last uint64
	for _, s := range stamps {
		last = max(last, s.Txid)
	}
	for applied := uint64(math.MaxUint64); ; {
		current := x.current()
		at = x.position()
		if at.mark >= last || current && at.mark == applied {
			return at, true
		}
		applied = at.mark
		select {
		case <-ctx.Done():
			return at, false
		case <-time.After(indexRetry):
		}
	}
}

// stamped reports whether a run's stamp is that of the log.
func (x *indexer) stamped(s nameindex.Stamp, at position) bool {
	if s.Txid > at.mark {
		return false
	}
	for _, b := range x.store.Batches(s.Txid, at.index) {
		return b.Err == nil && b.Batch.Last() == s.Txid && stampOf(b.Batch) == s.Stamp
	}
	return false
}

// stampOf returns the stamp of the log at the end of a batch. It covers the
// times of the batch's transactions, which differ in another log.
func stampOf(b wal.Batch) uint64 { return xxh3.Hash(b.Bytes()) }

// fit makes the index begin where the log does. An index that has more than the
// log starts over.
func (x *indexer) fit(index *nameindex.Index, at position) {
	if index.Next() > at.mark+1 {
		index.Reset(at.first)
	}
	index.Begin(at.first)
}

// add adds the transactions that the index lacks.
func (x *indexer) add(ctx context.Context, index *nameindex.Index, at position) error {
	for entry, b := range x.store.Batches(index.Next(), at.index) {
		switch {
		case errors.Is(b.Err, wal.ErrTrimmed):
			return nil // the position has moved
		case b.Err != nil:
			return b.Err
		case ctx.Err() != nil:
			return ctx.Err()
		case b.Batch.Last() > at.mark, b.Batch.First > index.Next():
			return nil // in the second case a damaged run was dropped
		case !x.options.room(0):
			return errFull
		case index.Full():
			return index.Flush()
		}
		if err := x.addBatch(index, entry, b.Batch); err != nil {
			return err
		}
		runtime.Gosched() // the goroutines that commit transactions go first
		if index.Next() > at.mark || len(x.drops) > 0 {
			return nil
		}
	}
	return nil
}

// addBatch adds the batch in an entry.
func (x *indexer) addBatch(index *nameindex.Index, entry uint64, b wal.Batch) error {
	records, h := b.Read(), index.Keys()
	records.Skip(int(index.Next() - b.First))
	for t := (wal.Transaction{}); records.Next(&t); {
		x.keys = keysOf(x.keys[:0], h, &t)
		index.Add(t.Txid, entry, x.keys...)
	}
	err := index.Publish(stampOf(b))
	if errors.Is(err, nameindex.ErrNoRoom) && !index.Full() {
		err = nil // there may be room before memory has no more
	}
	return errors.Join(records.Err(), err)
}

// keysOf appends the keys that a transaction is found by.
func keysOf(keys []nameindex.Key, h nameindex.Hasher, t *wal.Transaction) []nameindex.Key {
	keys = append(keys, h.Kind(text(t.Kind)))
	if len(t.MsgID) > 0 {
		keys = append(keys, h.MsgID(text(t.MsgID)))
	}
	if t.SessionSeq > 0 && t.Atomic.Index == 0 {
		keys = append(keys, h.Number(numberText(text(t.Session), t.SessionSeq)))
	}
	for _, l := range t.Locks {
		if l.Mode != wal.ReadLock {
			keys = h.Recorded(keys, text(l.Name))
		}
	}
	return keys
}

// through returns the newest transaction in the index, 0 without one.
func (x *indexer) through() uint64 {
	index := x.index.Load()
	if index == nil {
		return 0
	}
	_, last := index.Covers()
	return last
}

// loadIDs prepares for calls of mayHaveID.
func (x *indexer) loadIDs(ids []string) {
	if index := x.index.Load(); index != nil {
		index.LoadIDs(ids)
	}
}

// mayHaveID reports whether a transaction from first through last may have a
// message id. These are all that the index has.
func (x *indexer) mayHaveID(id string) (may bool, first, last uint64) {
	index := x.index.Load()
	if index == nil {
		return true, 1, 0
	}
	return index.MayHave(index.Keys().MsgID(id))
}

// size returns the bytes of the index's files.
func (x *indexer) size() uint64 {
	index := x.index.Load()
	if index == nil {
		return 0
	}
	return index.Size()
}

// covers returns the part of a range that can be searched, from its beginning.
func (x *indexer) covers(from, to uint64) (index *nameindex.Index, r nameindex.Range, ok bool) {
	if index = x.index.Load(); index == nil {
		return nil, r, false
	}
	first, last := index.Covers()
	r = nameindex.Range{From: max(from, first), To: min(to, last)}
	return index, r, r.From <= r.To && r.From <= to
}

// near returns the index of an entry near a transaction, 0 if it is not known.
func (x *indexer) near(txid uint64) (entry uint64) {
	if index := x.index.Load(); index != nil {
		entry = index.Near(txid)
	}
	return entry
}

// search iterates over the candidates in a range. After an error, the log is to
// be searched; an index that is damaged is repaired.
func (x *indexer) search(index *nameindex.Index, items []nameindex.Item, r nameindex.Range) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		for txid, err := range index.Search(items, r) {
			var damage *nameindex.DamageError
			if errors.As(err, &damage) {
				select {
				case x.drops <- damage.First:
					x.log.Warn("the index is damaged: a part of it is made again", "err", err)
				default: // others have met it
				}
			}
			if !yield(txid, err) {
				return
			}
		}
	}
}
