package wal_test

import (
	"fmt"
	"testing"

	"github.com/cantuslog/cantus/wal"
)

// TestReadersPassOverLongRuns writes few transactions among many cursor writes.
// Readers must not read all of these.
func TestReadersPassOverLongRuns(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"in memory", "on disk"} {
		t.Run(where, func(t *testing.T) {
			opts := small()
			if where == "in memory" {
				opts.TailBytes = 64 << 20
			}
			s := openStore(t, t.TempDir(), opts)
			l := s.Log(0)
			const runs, each, count = 5, 2000, 2
			for i := range uint64(runs) {
				if i == 3 { // a batch that came out of turn, behind a long run
					index := appendCursors(t, l, each)
					if err := l.Append(wal.Entry{Index: index, Data: batch(99, count, "void")}); err != nil {
						t.Fatal(err)
					}
					if err := l.Void(index); err != nil {
						t.Fatal(err)
					}
				}
				index := appendCursors(t, l, each)
				if err := l.Append(wal.Entry{Index: index, Data: batch(1+i*count, count, "p")}); err != nil {
					t.Fatal(err)
				}
			}
			last := appendCursors(t, l, each) - 1
			s.WaitApplied()
			for from := uint64(1); from <= runs*count; from++ {
				before, next := l.EntriesRead(), (from-1)/count*count+1
				for _, b := range l.Batches(from, last) {
					if b.Err != nil || b.Batch.First != next || b.Batch.Count != count {
						t.Fatalf("from %d: %+v, want txid %d", from, b, next)
					}
					if next = b.Batch.Last() + 1; next > runs*count {
						break // as a caller that knows the last txid does
					}
				}
				if next != runs*count+1 {
					t.Fatalf("from %d: ended at txid %d", from, next)
				}
				if read := l.EntriesRead() - before; read > 200*runs {
					t.Errorf("from %d: %d entries were read", from, read)
				}
			}
			for txid := uint64(1); txid <= runs*count+1; txid++ {
				before, want := l.EntriesRead(), (txid-1)/count*count+1 // no later one of its batch is at that time
				if got, err := l.FindTime(batchTime(want), 1, runs*count, last); got != want || err != nil {
					t.Fatalf("the first at the time of %d is %d, %v", want, got, err)
				}
				if read := l.EntriesRead() - before; read > 200*runs {
					t.Errorf("the time of %d: %d entries were read", txid, read)
				}
			}
			found := 0
			for range l.Batches(1, last) { // and whoever does not gets all, too
				found++
			}
			if found != runs {
				t.Errorf("%d batches, want %d", found, runs)
			}
		})
	}
}

// appendCursors appends count entries of one cursor write each, and returns the
// next index.
func appendCursors(t *testing.T, l *wal.Log, count int) (next uint64) {
	t.Helper()
	var entries []wal.Entry
	for i := range count {
		var w wal.BatchWriter
		w.Begin(wal.CursorWrites, 0, 0, 0)
		w.AddCursor(wal.Cursor{Name: fmt.Append(nil, "c-", i), Txid: 1})
		entries = append(entries, wal.Entry{Index: l.LastIndex() + 1 + uint64(i), Data: w.Finish()})
	}
	if err := l.Append(entries...); err != nil {
		t.Fatal(err)
	}
	return l.LastIndex() + 1
}
