package journal_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cantuslog/cantus/wal/journal"
	"github.com/cantuslog/cantus/wal/journal/journaltest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dir = "/j"

// world is a journal on a file system that fails, and what must be true of it:
// the commits in order, up to where they were acknowledged, and from where they
// were released.
type world struct {
	t   testing.TB
	fs  *journaltest.FS
	j   *journal.Journal
	rng *rand.Rand
	// largest is the size of the largest segments. If segments grow, some
	// commits are larger than the first ones.
	largest int64

	next     uint64   // number of the next commit
	order    []uint64 // commits that may be in the log, as they were enqueued
	acked    int      // how many of order must be there
	tried    uint64   // Release was asked for commits up to this number,
	released uint64   // and returned nil up to this one

	mu     sync.Mutex
	frames map[uint64]uint64 // sequence number to last commit in it
	synced []uint64          // commits given to Synced
}

func newWorld(t testing.TB, seed uint64) *world {
	return &world{
		t: t, fs: journaltest.New(seed), rng: rand.New(rand.NewPCG(seed, 1)),
		next: 1, frames: map[uint64]uint64{}, largest: 8 << 10,
	}
}

func (w *world) options() journal.Options {
	return journal.Options{
		FS: w.fs, FirstSize: 8 << 10, SegmentSize: w.largest,
		Synced: func(seq uint64, ops []journal.Op) {
			w.mu.Lock()
			defer w.mu.Unlock()
			numbers := w.parse(ops)
			w.synced = append(w.synced, numbers...)
			w.frames[seq] = numbers[len(numbers)-1]
		},
	}.WithLimits(2<<10, 8<<10)
}

// ops returns commit number c: some puts and deletes from which parse can tell
// c, and whether all are there and unchanged.
func ops(c uint64, rng *rand.Rand) []journal.Op {
	n := 1 + rng.IntN(3)
	all := make([]journal.Op, n)
	for i := range all {
		key := binary.BigEndian.AppendUint64(nil, c)
		key = append(key, byte(i), byte(n))
		all[i] = journal.Op{Key: key, Delete: rng.IntN(4) == 0}
		if !all[i].Delete {
			all[i].Value = filler(c, i, rng.IntN(500))
		}
	}
	return all
}

func filler(c uint64, i, n int) []byte {
	b := make([]byte, n)
	for k := range b {
		b[k] = byte(c*31 + uint64(i*7+k))
	}
	return b
}

// parse returns the commits in ops. One that is not whole fails the test.
func (w *world) parse(ops []journal.Op) (numbers []uint64) {
	w.t.Helper()
	for i := 0; i < len(ops); {
		c, n := binary.BigEndian.Uint64(ops[i].Key), int(ops[i].Key[9])
		if len(ops)-i < n {
			w.t.Fatalf("commit %d: %d operations of %d", c, len(ops)-i, n)
		}
		for k := range n {
			op := ops[i+k]
			if len(op.Key) != 10 || binary.BigEndian.Uint64(op.Key) != c || int(op.Key[8]) != k {
				w.t.Fatalf("commit %d, operation %d: key %x", c, k, op.Key)
			}
			if string(op.Value) != string(filler(c, k, len(op.Value))) || op.Delete && len(op.Value) > 0 {
				w.t.Fatalf("commit %d, operation %d: other value", c, k)
			}
		}
		numbers = append(numbers, c)
		i += n
	}
	return numbers
}

// open opens the journal and checks what it replays. What was replayed counts
// as acknowledged from then on.
func (w *world) open() error {
	w.t.Helper()
	var got []uint64
	frames, last := map[uint64]uint64{}, uint64(0)
	j, err := journal.Open(dir, w.options(), func(seq uint64, ops []journal.Op) error {
		if last != 0 && seq != last+1 {
			w.t.Fatalf("frame %d replayed after %d", seq, last)
		}
		last = seq
		numbers := w.parse(ops)
		got = append(got, numbers...)
		frames[seq] = numbers[len(numbers)-1]
		return nil
	})
	if err != nil {
		return err
	}
	w.j, w.frames = j, frames
	w.checkReplay(got)
	return nil
}

func (w *world) checkReplay(got []uint64) {
	w.t.Helper()
	for _, from := range []uint64{w.released, w.tried} {
		i := 0
		for i < len(w.order) && w.order[i] <= from {
			i++
		}
		end := i + len(got)
		if end > len(w.order) || end < w.acked || fmt.Sprint(w.order[i:end]) != fmt.Sprint(got) {
			continue
		}
		w.order, w.acked = w.order[:end], end
		w.tried, w.released = from, from
		return
	}
	w.t.Fatalf("replayed %v\nof %v, %d acknowledged, released %d, perhaps %d", got, w.order, w.acked, w.released, w.tried)
}

// enqueue enqueues a commit, asynchronously or not.
func (w *world) enqueue(ops []journal.Op) (wait func() error) {
	if w.rng.IntN(2) == 0 {
		outcome := make(chan error, 1)
		if w.j.CommitAsync(ops, func(err error) { outcome <- err }) {
			return func() error {
				err := <-outcome
				if err != nil && !errors.Is(err, journal.ErrFailed) {
					w.t.Errorf("an asynchronous commit was lost, and the journal has not failed: %v", err)
				}
				return err
			}
		}
	}
	return w.j.Enqueue(ops)
}

// commit enqueues n commits, waits for all, and records which were
// acknowledged.
func (w *world) commit(n int) error {
	w.t.Helper()
	waits := make([]func() error, n)
	for i := range waits {
		w.order = append(w.order, w.next)
		o := ops(w.next, w.rng)
		if w.largest > 8<<10 && w.rng.IntN(8) == 0 {
			o[0].Delete, o[0].Value = false, filler(w.next, 0, w.rng.IntN(20<<10))
		}
		waits[i] = w.enqueue(o)
		w.next++
	}
	var failed error
	for i, wait := range waits {
		err := wait()
		switch {
		case err == nil && failed != nil:
			w.t.Fatalf("commit acknowledged after one that was not: %v", failed)
		case err == nil:
			w.acked = len(w.order) - n + i + 1
		case failed == nil:
			failed = err
		}
	}
	if failed != nil && w.acked < len(w.order) && !errors.Is(failed, journal.ErrFailed) {
		w.order = w.order[:w.acked] // certainly not written
	}
	return failed
}

func (w *world) release(seq uint64) error {
	w.mu.Lock()
	upTo := w.frames[seq]
	w.mu.Unlock()
	w.tried = max(w.tried, upTo)
	err := w.j.Release(seq)
	if err == nil {
		w.released = max(w.released, upTo)
	}
	return err
}

// run executes every kind of operation on a journal, until the first error.
func (w *world) run() error {
	for range 3 {
		if err := w.open(); err != nil {
			return err
		}
		err := w.life()
		if err = errors.Join(err, w.j.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) life() error {
	for i := range 6 {
		if err := w.commit(1 + i%3*4); err != nil {
			return err
		}
		if i%2 == 1 {
			if err := w.release(w.j.Seq() - min(w.j.Seq(), uint64(w.rng.IntN(3)))); err != nil {
				return err
			}
		}
	}
	return nil
}

// mustWork opens the journal after whatever has happened, and uses it. The file
// system of the previous one has crashed, or that one is closed.
func (w *world) mustWork(fs *journaltest.FS) {
	w.t.Helper()
	if w.j != nil {
		_ = w.j.Close()
	}
	w.fs = fs
	if err := w.open(); err != nil {
		w.t.Fatalf("open again: %v", err)
	}
	if err := w.commit(3); err != nil {
		w.t.Fatalf("commit after opening again: %v", err)
	}
}
