package wal_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

// TestReadersBesideAWriter appends to a log, truncates it above what is
// committed and trims it below, while readers read. They must read what is
// committed as it was written, and the rest without an error of damage.
func TestReadersBesideAWriter(t *testing.T) {
	t.Parallel()
	const perBatch = 3
	s := openStore(t, t.TempDir(), small())
	l := s.Log(0)
	entry := func(index, term uint64) wal.Entry {
		return wal.Entry{Index: index, Term: term, Data: batch(perBatch*(index-1)+1, perBatch, "p")}
	}
	var committed atomic.Uint64
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := readOnce(l, committed.Load(), perBatch); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	r := chance(t)
	last, term := uint64(0), uint64(0)
	for range testkit.Sized(100, 600, 600) {
		term++
		for range 1 + r.IntN(4) {
			last++
			if err := l.Append(entry(last, term)); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(2) == 0 && last > committed.Load() { // a tail that did not commit
			from := committed.Load() + 1 + r.Uint64N(last-committed.Load())
			if from > l.FirstIndex() {
				if err := l.TruncateSuffix(from); err != nil {
					t.Fatal(err)
				}
				last = from - 1
			}
		}
		if r.IntN(2) == 0 {
			committed.Store(last)
		}
		if r.IntN(10) == 0 && committed.Load() > l.FirstIndex() {
			if err := l.TrimHead(l.FirstIndex() + r.Uint64N(committed.Load()-l.FirstIndex())); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	readers.Wait()
}

// readOnce reads in one of the possible ways.
func readOnce(l *wal.Log, committed, perBatch uint64) error {
	first, last := l.FirstIndex(), l.LastIndex()
	if first == 0 {
		return nil
	}
	index := first + rand.Uint64N(last-first+1)
	switch rand.IntN(4) {
	case 0:
		e, err := l.Entry(index)
		return check(l, index, committed, perBatch, e, err)
	case 1:
		for e, err := range l.Entries(index, index+50) {
			if err := check(l, index, committed, perBatch, e, err); err != nil {
				return err
			}
			index++
		}
	case 2:
		txid := 1 + rand.Uint64N(perBatch*(committed+1))
		at, err := l.FindTx(txid, committed)
		return checkTx(l, txid, committed, perBatch, at, err)
	case 3:
		txid := 1 + rand.Uint64N(perBatch*(committed+1))
		for at, b := range l.Batches(txid, min(committed, (txid-1)/perBatch+20)) {
			if err := checkTx(l, txid, committed, perBatch, at, b.Err); err != nil || b.Err != nil {
				return err
			}
			txid = b.Batch.Last() + 1
		}
	}
	return nil
}

func check(l *wal.Log, index, committed, perBatch uint64, e wal.Entry, err error) error {
	if errors.Is(err, wal.ErrNotFound) && (index < l.FirstIndex() || index > committed) {
		return nil
	}
	if err != nil {
		return errors.Join(errors.New("a reader met an error"), err)
	}
	b, err := wal.ParseBatch(e.Data)
	if err == nil && (e.Index != index || b.First != perBatch*(index-1)+1) {
		err = errors.New("a reader got another entry")
	}
	return err
}

func checkTx(l *wal.Log, txid, committed, perBatch, at uint64, err error) error {
	want := (txid-1)/perBatch + 1
	switch {
	case errors.Is(err, wal.ErrTrimmed) && min(want, committed) < l.FirstIndex(),
		errors.Is(err, wal.ErrNotFound) && want > committed:
		return nil
	case err != nil:
		return errors.Join(errors.New("a lookup met an error"), err)
	case at != want:
		return errors.New("a lookup found another batch")
	}
	return nil
}

// TestReadersBesideTruncation truncates entries that Badger has and appends
// others in their place, while readers read them: each is read as the old or
// the new one.
func TestReadersBesideTruncation(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), small())
	l := s.Log(0)
	const most = 60
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				from := 1 + rand.Uint64N(most)
				for e, err := range l.Entries(from, from+10) {
					if err == nil && (e.Index < from || e.Index > from+10) {
						err = errors.New("another entry")
					}
					if err != nil && !errors.Is(err, wal.ErrNotFound) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	for term := range testkit.Sized[uint64](15, 150, 150) {
		var entries []wal.Entry
		for i := l.LastIndex() + 1; i <= most; i++ {
			entries = append(entries, wal.Entry{Index: i, Term: term, Data: batch(i, 2, "p")})
		}
		if err := l.Append(entries...); err != nil {
			t.Fatal(err)
		}
		s.WaitApplied()
		if err := l.TruncateSuffix(2 + rand.Uint64N(most-2)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	readers.Wait()
}
