package wal_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cantuslog/cantus/internal/testkit"
	"github.com/cantuslog/cantus/wal"
)

func TestEntriesSurviveReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, small())
	l := s.Log(0)
	txid := uint64(1)
	for i := uint64(1); i <= 200; i++ {
		n := int(i%7) + 1
		if err := l.Append(wal.Entry{Index: i, Term: 3, Data: batch(txid, n, "p")}); err != nil {
			t.Fatal(err)
		}
		txid += uint64(n)
	}
	if err := l.SetMeta(wal.Meta{Name: "a", Value: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		checkWhole(t, s, txid-1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, small())
		if got := s.Log(0).Meta("a"); !bytes.Equal(got, []byte("b")) {
			t.Fatalf("round %d: meta is %q", round, got)
		}
	}
	for want := uint64(1); want < txid; want++ {
		if _, err := s.Log(0).FindTx(want, 200); err != nil {
			t.Fatalf("find %d: %v", want, err)
		}
	}
	if _, err := s.Log(0).FindTx(txid, 200); !errors.Is(err, wal.ErrNotFound) {
		t.Fatalf("past the end: %v", err)
	}
}

// Badger numbers its memtable logs from 1 again after a clean close: what the
// checkpoint says of the old one must not be compared with the new one.
func TestCrashAfterReopeningIsNotTakenForDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, small())
	var acked tally
	if err := errors.Join(acked.run(s.Log(0), 50), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, wal.Options{}) // with room enough until the next checkpoint
	if err := acked.run(s.Log(0), 3); err != nil {
		t.Fatal(err)
	}
	left := t.TempDir()
	copyOpen(t, s, left)
	s = openStore(t, left, small())
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}

// A start that had to replay much takes a checkpoint: if processes crash again
// and again before one is due, each would write to Badger all that the ones
// before it had written.
func TestCrashesWriteToBadgerOnceMore(t *testing.T) {
	t.Parallel()
	opts := small()
	opts.CheckpointBytes, opts.SegmentSize = 1<<20, 1<<20
	dir := t.TempDir()
	var acked tally
	for range 3 {
		s := openStore(t, dir, opts)
		replayed := s.LastFrame()
		testkit.Until(t, "a checkpoint of what was replayed", func() bool { return s.Checked() >= replayed })
		if err := acked.run(s.Log(0), 600); err != nil {
			t.Fatal(err)
		}
		left := t.TempDir()
		copyOpen(t, s, left)
		dir = left
	}
	s := openStore(t, dir, opts)
	if err := acked.check(s.Log(0)); err != nil {
		t.Fatal(err)
	}
}

func checkWhole(t *testing.T, s *wal.Store, last uint64) {
	t.Helper()
	r := wal.VerifyLog(s.Log(0), wal.Base{})
	if r.Err != nil || r.LastTxid != last {
		t.Fatalf("report %+v, want last %d", r, last)
	}
}

func TestRandomOperationsAgreeWithTheModel(t *testing.T) {
	t.Parallel()
	for range 2 {
		w := newWorld(t, chance(t), 2)
		for n := range 300 {
			w.step()
			if n%40 == 0 {
				w.check()
			}
		}
	}
}
