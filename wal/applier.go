package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"

	"github.com/cantuslog/cantus/wal/journal"
)

const (
	// applyQueue bounds the bytes that are synced in the journal and not yet in
	// Badger. While it is full the journal's writer waits.
	applyQueue = 64 << 20
	// hintEntries and hintBytes bound the distance between two batches that
	// have a key by txid. A lookup starts at such a key and reads forward.
	hintEntries = 16
	hintBytes   = 64 << 10
	// applyBytes is how many bytes are applied at once, and so how much space
	// must be found at once. A larger frame is applied by itself.
	applyBytes = 4 << 20
	// overshootShare of a value log's size is written at once, unless one entry
	// is larger: Badger exceeds the size by what is written at once. It rewrites
	// the value log with the most deleted bytes first, so one that exceeds the
	// size by much and is still needed in part would be before those that are
	// not needed, and they would stay if there is no space for that part.
	overshootShare = 128
	// writeOutBytes is how many bytes are applied between two calls of
	// writeOut.
	writeOutBytes = 4 << 20
)

type frame struct {
	seq uint64
	ops []journal.Op
}

// applier writes synced frames to Badger, in order, in the background.
type applier struct {
	store *Store

	// Owned by apply: the newest hint of each group, and the bytes applied
	// since the last writeOut.
	hints     map[uint32]*hint
	unwritten int

	wanted atomic.Int64 // bytes that there was no space for

	mu      sync.Mutex
	changed sync.Cond
	waiting []frame
	bytes   int64
	applied uint64
	closed  bool
}

// hint is the newest entry of a group that has a key by txid, and the bytes
// applied since.
type hint struct {
	index uint64
	bytes int
}

func newApplier(s *Store) *applier {
	a := &applier{store: s, hints: map[uint32]*hint{}}
	a.changed.L = &a.mu
	return a
}

// enqueue queues a frame of n bytes. It blocks while the queue is full, but not
// if the disk is full: no entries are taken then.
func (a *applier) enqueue(f frame, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.bytes > applyQueue && !a.closed && a.store.Failed() == nil && !a.store.tight.Load() {
		a.changed.Wait()
	}
	a.waiting = append(a.waiting, f)
	a.bytes += n
	a.changed.Broadcast()
}

// backlog returns how many bytes wait to be applied.
func (a *applier) backlog() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes
}

// run applies frames until close, and then the rest of the queue. Once some
// could not be applied it applies none that come after them: Badger would count
// as having them all.
func (a *applier) run() {
	for whole := true; ; {
		frames, ok := a.take()
		if !ok {
			return
		}
		for whole && len(frames) > 0 && a.store.Failed() == nil {
			n := portion(frames)
			err := a.apply(frames[:n])
			if err == nil {
				frames = frames[n:]
				continue
			}
			if errors.Is(err, ErrNoSpace) && a.awaitRoom() {
				continue
			}
			if !errors.Is(err, ErrNoSpace) {
				a.store.fail(fmt.Errorf("write to badger: %w", err))
			}
			whole = false
		}
	}
}

// portion returns how many of frames are applied at once.
func portion(frames []frame) (n int) {
	for bytes := 0; n < len(frames) && bytes < applyBytes; n++ {
		for _, op := range frames[n].ops {
			bytes += len(op.Key) + len(op.Value)
		}
	}
	return n
}

// awaitRoom waits until there may be space. It returns false if the store is
// closing: the frames then stay in the journal.
func (a *applier) awaitRoom() bool {
	a.store.refuse()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed.Broadcast() // the journal's writer does not wait for this
	for a.store.tight.Load() && !a.closed && a.store.Failed() == nil {
		a.changed.Wait()
	}
	return !a.closed
}

// take waits for frames and takes all of them. It returns false at the end.
func (a *applier) take() ([]frame, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.waiting) == 0 && !a.closed {
		a.changed.Wait()
	}
	frames := a.waiting
	a.waiting, a.bytes = nil, 0
	a.changed.Broadcast()
	return frames, len(frames) > 0
}

func (a *applier) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.changed.Broadcast()
}

// wake wakes all waiting goroutines, so that they notice a failed store.
func (a *applier) wake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed.Broadcast()
}

// done returns the last frame that Badger has.
func (a *applier) done() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied
}

// wait blocks until Badger has frame seq, and reports whether it has.
func (a *applier) wait(seq uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.applied < seq && a.store.Failed() == nil {
		if a.closed && len(a.waiting) == 0 {
			break
		}
		a.changed.Wait()
	}
	return a.applied >= seq
}

// apply writes frames to Badger. It is idempotent: a replay may repeat frames.
func (a *applier) apply(frames []frame) error {
	a.store.badgerWrite.Lock()
	defer a.store.badgerWrite.Unlock()
	d := a.demand(frames)
	if err := a.store.prepare(d); err != nil {
		a.wanted.Store(d.vlog + d.mem)
		return err
	}
	a.wanted.Store(0)
	wb := a.store.db.NewWriteBatch()
	defer func() { wb.Cancel() }()
	atOnce := a.store.db.Opts().ValueLogFileSize / overshootShare
	values := int64(0) // in wb
	for _, f := range frames {
		for _, op := range f.ops {
			var err error
			a.unwritten += len(op.Value)
			if values += int64(len(op.Value)); values > atOnce {
				if err := wb.Flush(); err != nil {
					return err
				}
				wb, values = a.store.db.NewWriteBatch(), int64(len(op.Value))
			}
			switch op.Key[0] {
			case opEntry:
				err = a.putEntry(wb, op)
			case opTruncate:
				// The entries to delete must be visible first.
				if err = wb.Flush(); err == nil {
					err = a.truncate(keyGroup(op.Key), binary.BigEndian.Uint64(op.Value))
				}
				wb = a.store.db.NewWriteBatch()
			}
			if err != nil {
				return err
			}
		}
	}
	last := frames[len(frames)-1].seq
	if err := wb.Set([]byte{opApplied}, indexValue(last)); err != nil {
		return err
	}
	if err := wb.Flush(); err != nil {
		return err
	}
	if a.unwritten >= writeOutBytes {
		writeOut(filepath.Join(a.store.dir, badgerDir), a.store.room.mostWritten)
		a.unwritten = 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applied = last
	a.changed.Broadcast()
	return nil
}

// demand returns the space that frames take in Badger, truncations aside.
func (a *applier) demand(frames []frame) (d demand) {
	threshold := a.store.db.Opts().ValueThreshold
	const number = 8 // the size of an index as a value
	for _, f := range frames {
		for i := range f.ops {
			if op := &f.ops[i]; op.Key[0] == opEntry {
				d.put(len(op.Key), len(op.Value), threshold)
				d.put(len(op.Key), number, threshold) // its hint
			}
		}
		d.put(1, number, threshold)
	}
	return d
}

// putEntry writes an entry, and for some batches a key by txid.
func (a *applier) putEntry(wb *badger.WriteBatch, op journal.Op) error {
	if err := wb.Set(op.Key, op.Value); err != nil {
		return err
	}
	group, index := keyGroup(op.Key), keyIndex(op.Key)
	h := a.hints[group]
	if h == nil {
		h = &hint{}
		a.hints[group] = h
	}
	h.bytes += len(op.Value)
	if h.index != 0 && index >= h.index && index < h.index+hintEntries && h.bytes < hintBytes {
		return nil
	}
	b, err := peekBatch(entryData(op.Value))
	if err != nil || b.Kind != Transactions || b.Count == 0 {
		return nil //nolint:nilerr // no transactions: the next batch that has some gets the key
	}
	h.index, h.bytes = index, 0
	return wb.Set(indexKey(opTx, group, b.First), indexValue(index))
}

// truncate deletes the entries of a group from an index on. Their keys by txid
// stay unless the whole log goes: they are hints, and a lookup checks the entry
// that it finds.
func (a *applier) truncate(group uint32, from uint64) error {
	l := a.store.Log(group)
	l.removing.Lock()
	defer l.removing.Unlock()
	all := func(*badger.Item) bool { return true }
	if from == 1 {
		delete(a.hints, group)
		l.removed = 0
		if err := a.store.deleteKeys(groupKey(opTx, group), groupKey(opTx, group), all); err != nil {
			return err
		}
	}
	return a.store.deleteKeys(indexKey(opEntry, group, from), groupKey(opEntry, group), all)
}
