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
	// applyQueue bounds the bytes that are synced in the journal and not yet
	// in Badger; beyond it the journal's writer waits.
	applyQueue = 64 << 20
	// hintEntries and hintBytes are how far apart, at most, the batches are
	// that a txid's lookup finds in one step: it reads forward from there.
	hintEntries = 16
	hintBytes   = 64 << 10
	// writeOutBytes is after how many bytes Badger's are written out.
	writeOutBytes = 4 << 20
)

type frame struct {
	seq uint64
	ops []journal.Op
}

// applier plays synced frames into Badger, in order, in the background.
type applier struct {
	store *Store

	// hints, where each group's last hint is, and unwritten, the bytes that were
	// applied since Badger's were written out, are owned by apply.
	hints     map[uint32]*hint
	unwritten int

	wanted atomic.Int64 // bytes that there was no room for

	mu      sync.Mutex
	changed sync.Cond
	waiting []frame
	bytes   int64
	applied uint64
	closed  bool
}

// hint is the newest entry of a group that was given a txid's key, and how
// many bytes have come since.
type hint struct {
	index uint64
	bytes int
}

func newApplier(s *Store) *applier {
	a := &applier{store: s, hints: map[uint32]*hint{}}
	a.changed.L = &a.mu
	return a
}

// give hands over a frame of n bytes; it blocks while too much waits, unless
// that is for want of room: no entries come then.
func (a *applier) give(f frame, n int64) {
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

// run applies frames until close, and what waits then.
func (a *applier) run() {
	for {
		frames, ok := a.take()
		if !ok {
			return
		}
		for a.store.Failed() == nil {
			err := a.apply(frames)
			if errors.Is(err, ErrNoSpace) && a.awaitRoom() {
				continue
			}
			if err != nil && !errors.Is(err, ErrNoSpace) {
				a.store.fail(fmt.Errorf("write to badger: %w", err))
			}
			break
		}
	}
}

// awaitRoom waits until there may be room; false says that the store is being
// closed, and the frames stay in the journal.
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

// take waits for frames and takes all there are; false says that there will be
// no more.
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

// wake makes who waits look again whether the store has failed.
func (a *applier) wake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.changed.Broadcast()
}

// done is the last frame that Badger has.
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
	a.store.changing.Lock()
	defer a.store.changing.Unlock()
	d := a.demand(frames)
	if err := a.store.prepare(d); err != nil {
		a.wanted.Store(d.vlog + d.mem)
		return err
	}
	a.wanted.Store(0)
	wb := a.store.db.NewWriteBatch()
	defer func() { wb.Cancel() }()
	for _, f := range frames {
		for _, op := range f.ops {
			var err error
			a.unwritten += len(op.Value)
			switch op.Key[0] {
			case opEntry:
				err = a.putEntry(wb, op)
			case opTruncate:
				// What goes must be visible first.
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
		writeOut(filepath.Join(a.store.dir, badgerDir))
		a.unwritten = 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applied = last
	a.changed.Broadcast()
	return nil
}

// demand is what it takes to apply frames, without truncations.
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

// putEntry writes an entry, and now and then the key that finds it by txid.
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
		return nil // not a batch that a txid is looked up in: the next one that is
	}
	h.index, h.bytes = index, 0
	return wb.Set(indexKey(opTx, group, b.First), indexValue(index))
}

// truncate deletes the entries of a group from an index on. The keys that lead
// to them by txid stay: they are hints, and whoever follows one looks at what
// it finds there. Only with the whole log they go too.
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
